"""Prompts and completions: what is read, how it is told and tokenised, which tokens are edited, in which order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from ourtokenizers import CHATML, adding, chatting, pieces
from tiny import tiny_tokenizer

from iitkit.batch import IGNORED
from iitkit.data import CompletionDataModule, Dataset, Sizes
from iitkit.data.examples import own_folders
from iitkit.errors import IITKitError

END = 0  # <|endoftext|>


@dataclass(frozen=True)
class Place:
    """What the data know of a placement."""

    position: Any = "last"
    variable: str | None = None


@dataclass(frozen=True)
class Subject:
    """What the data know of a module."""

    tokenizer: Any = field(default_factory=tiny_tokenizer)
    where: Any = "prompt"
    context: int | None = 128
    alignment: Mapping[str, Place] = field(default_factory=lambda: {"it": Place()})


def write(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def splits(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as every split."""
    for name in ("train", "validation", "test"):
        write(folder, rows, name)
    return folder


def module(folder: Path, subject: Subject | None = None, **options: Any) -> CompletionDataModule:
    found = CompletionDataModule(Dataset(str(folder)), **{"batch_size": 2, "seed": 0, **options})
    found.bind(subject or Subject())
    return found


def row(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


ROWS = [row("The boy", " is happy"), row("When Mary", " went to the park"), row("The dog near the park", " is late")]


# --- tokens and columns ---


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_by_hand(tmp_path: Path, padding: Any) -> None:
    tokenizer = tiny_tokenizer()
    data = module(splits(tmp_path, ROWS), Subject(where="all", alignment={"it": Place("f1+l1")}), padding=padding)
    batch = data.batch("train", [0, 2, 1])
    prompts = [tokenizer(ROWS[i]["prompt"])["input_ids"] for i in (0, 2, 1)]
    said = [[*tokenizer(ROWS[i]["completion"])["input_ids"], END] for i in (0, 2, 1)]
    width, longest = max(map(len, prompts)), max(map(len, said))
    assert len(set(map(len, prompts))) > 1
    assert len(set(map(len, said))) > 1
    for i, (prompt, ids) in enumerate(zip(prompts, said, strict=True)):
        pad = width - len(prompt)
        row_ids = [0] * pad + prompt if padding == "left" else prompt + [0] * pad
        assert batch.base.ids[i].tolist() == row_ids
        assert batch.labels[i].tolist() == ids + [IGNORED] * (longest - len(ids))
        first = pad if padding == "left" else 0
        last = first + len(prompt) - 1
        columns = batch.base_positions[i, 0][batch.position_mask[i, 0]].tolist()
        assert columns == [first, last, *range(last + 1, last + len(ids))]  # the end is never fed back
    assert batch.share == 1 / sum(map(len, said))
    assert batch.sources == ()


def test_ends_of_a_short_prompt_are_each_token_once(tmp_path: Path) -> None:
    data = module(splits(tmp_path, [*ROWS, row("When", " Mary")]), Subject(alignment={"it": Place("f7+l7")}))
    lengths = data.batch("train", range(4)).base.mask.sum(1).tolist()
    assert max(lengths) < 14
    batch = data.batch("train", range(4))
    assert batch.position_mask.sum(2)[:, 0].tolist() == lengths
    for i, n in enumerate(lengths):
        assert batch.base_positions[i, 0, :n].tolist() == list(range(n))
    long = module(
        splits(tmp_path / "long", [row("The dog near" * 9, " is late")]), Subject(alignment={"it": Place("f7+l7")})
    )
    n = int(long.batch("train", [0]).base.mask.sum())
    assert n > 14
    assert long.batch("train", [0]).base_positions[0, 0].tolist() == [*range(7), *range(n - 7, n)]


def test_prefix_special_tokens_and_the_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = splits(tmp_path, ROWS)
    data = module(folder, prefix="<|endoftext|>", eos=False)
    batch = data.batch("train", [0])
    assert batch.base.ids[0].tolist() == [END, *tokenizer("The boy")["input_ids"]]
    assert batch.labels[0].tolist() == tokenizer(" is happy")["input_ids"]
    data = module(folder, Subject(adding("<|endoftext|>")))
    assert data.batch("train", [0]).base.ids[0].tolist() == [END, *tokenizer("The boy")["input_ids"]]
    data = module(folder, Subject(adding("<|endoftext|>")), special_tokens=False)
    assert data.batch("train", [0]).base.ids[0].tolist() == tokenizer("The boy")["input_ids"]
    with pytest.raises(IITKitError, match=r"' is happy' does not stand .* set data\.special_tokens to false"):
        module(folder, Subject(adding(behind="<|endoftext|>")))


def test_completions_are_cut_and_the_context_is_checked(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = splits(tmp_path, ROWS)
    long = [*tokenizer(" went to the park")["input_ids"], END]
    data = module(folder, max_completion=3)
    assert data.told["train"].completions[1] == long[:3]  # its end is lost with it
    assert data.told["train"].completions[0] == [*tokenizer(" is happy")["input_ids"], END]
    n = len(tokenizer("When Mary")["input_ids"])
    assert n + len(long) > 6
    module(folder, Subject(context=n + len(long)), max_tokens=n)
    with pytest.raises(
        IITKitError,
        match=rf"train\.jsonl line 2: {n} tokens of prompt and {len(long)} of completion, the network takes "
        rf"{n + len(long) - 1}: set data\.max_tokens",
    ):
        module(folder, Subject(context=n + len(long) - 1), max_tokens=n)
    data = module(folder, max_tokens=2)
    assert data.batch("train", [2]).base.ids[0].tolist() == tokenizer("The dog near the park")["input_ids"][-2:]
    assert data.told["train"].completions[2] == [*tokenizer(" is late")["input_ids"], END]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("The boy", "")], r"train\.jsonl line 1: column 'completion' is empty: expected text; leave the row out"),
        ([row("The", " is"), row("", " is")], r"line 2: column 'prompt' is empty: expected text"),
        ([row("The\ud83d", " is")], r"column 'prompt' is 'The\\ud83d' \(str\): expected text"),
        ([row("The", 3)], r"column 'completion' is 3 \(int\): expected text"),
        ([{"prompt": "The", "complection": " is"}], r"no column 'completion'\. Did you mean 'complection'\?"),
        ([row("The", " is", positons={"x": "The"})], r"unknown column 'positons'\. Did you mean 'positions'\?"),
        ([row("The", " is", positions="The")], r"column 'positions' is 'The' \(str\): expected a mapping"),
        ([row("The", " is", messages=[])], "has columns 'messages' and 'completion': keep one"),
        (
            [{"messages": [{"role": "assistant", "content": "The"}]}],
            "column 'messages' is .*: expected two turns or more",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}],
            "column 'messages' is .*: expected two turns or more",
        ),
        (
            [{"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "column 'messages' is .*: expected two turns or more",
        ),
        ([{"messages": [{"role": "user", "content": "The"}]}], "column 'messages' is .*: expected two turns or more"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}],
            "expected two turns .* the last an assistant's",
        ),
        ([row("The", "<|endoftext|>")], r"line 1: completion '<\|endoftext\|>' has no token: leave the row out"),
        (
            [row("The", " is<|endoftext|> late")],
            r"line 1: completion .* goes on behind the end of text, .*: end it there",
        ),
        (
            [row("The", " is"), row("The dog", "house")],
            r"line 2: completion 'house' does not stand as tokens of its own behind its prompt: begin it with a space",
        ),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, rows: Any, expected: str) -> None:
    with pytest.raises(IITKitError, match=expected):
        module(splits(tmp_path, rows))


def test_an_end_of_text_in_the_data_is_the_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = splits(tmp_path, [row("The boy", " is happy<|endoftext|>"), row("The", " is<|endoftext|>\n")])
    for eos, end in ((True, [END]), (False, [])):
        data = module(folder, eos=eos)
        for i, said in enumerate((" is happy", " is")):
            assert data.told["train"].completions[i] == [*tokenizer(said)["input_ids"], *end]


def test_a_tokenizer_without_an_end_of_text(tmp_path: Path) -> None:
    folder, tokenizer = splits(tmp_path, [row("The boy", " is happy")]), pieces("The", "boy", "is", "happy")
    with pytest.raises(IITKitError, match=r"has no end of text, so no completion would end: set data\.eos to false"):
        module(folder, Subject(tokenizer))
    assert module(folder, Subject(tokenizer), eos=False).told["train"].completions[0] == [3, 4]


def test_what_is_never_fed_back_cannot_be_edited(tmp_path: Path) -> None:
    folder = splits(tmp_path, [row("The boy", " is late"), row("When Mary", " went")])
    why = r"is one token, which is not fed back, so model\.where: generated edits nothing.* set model\.where to all"
    for options, which in (
        ({"eos": False}, "2: completion ' went'"),
        ({"max_completion": 1}, "1: completion ' is late'"),
    ):
        with pytest.raises(IITKitError, match=f"line {which} {why}"):
            module(folder, Subject(where="generated"), **options)
        for where in ("prompt", "all"):
            module(folder, Subject(where=where), **options)
    batch = module(folder, Subject(where="generated")).batch("train", [1])  # its end is written behind it
    assert batch.position_mask.sum() == 1


def test_spans_are_positions(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [
        row("When Mary went", " to", positions={"who": "Mary"}),
        row("When Mary and John went", " to", positions={"who": [14, 18]}),
    ]
    subject = Subject(alignment={"it": Place("who"), "end": Place("last")})
    batch = module(splits(tmp_path, rows), subject, prefix="<|endoftext|>").batch("train", [0, 1])
    for i, name in enumerate((" Mary", " John")):
        (token,) = tokenizer(name)["input_ids"]
        assert batch.base.ids[i, batch.base_positions[i, 0, 0]] == token
    with pytest.raises(IITKitError, match=r"alignment\.it: position 'whom' is no span .*Did you mean 'who'\?"):
        module(tmp_path, Subject(alignment={"it": Place("whom")}))
    rows[1]["positions"] = {"who": "Anna"}
    with pytest.raises(IITKitError, match="line 2: span 'who': 'Anna' is not in"):
        module(splits(tmp_path, rows), subject)
    rows[1]["positions"] = {"whom": "John"}
    with pytest.raises(IITKitError, match=r"line 2: the base has the spans whom, the first .* who"):
        module(splits(tmp_path, rows), subject)


# --- chats ---

TURNS = [
    {"role": "system", "content": "The park"},
    {"role": "user", "content": "When"},
    {"role": "assistant", "content": "Mary"},
    {"role": "user", "content": "The boy"},
    {"role": "assistant", "content": "is happy"},
]
ENDED = CHATML.replace("{{ message['content'] }}\n", "{{ message['content'] }}<|endoftext|>\n")


def test_messages_are_told_by_the_tokenizer_s_template(tmp_path: Path) -> None:
    tokenizer = chatting(ENDED)
    data = module(splits(tmp_path, [{"messages": TURNS}]), Subject(tokenizer))
    prompt = (
        "<|system|>\nThe park<|endoftext|>\n<|user|>\nWhen<|endoftext|>\n<|assistant|>\nMary<|endoftext|>\n"
        "<|user|>\nThe boy<|endoftext|>\n<|assistant|>\n"
    )
    batch = data.batch("train", [0])
    assert batch.base.ids[0].tolist() == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    # the template writes "<|endoftext|>\n" behind an answer: what stands behind the end is never generated
    assert batch.labels[0].tolist() == [*tokenizer("is happy", add_special_tokens=False)["input_ids"], END]
    assert data.texts("train", [0]) == [(prompt, "is happy")]
    with pytest.raises(IITKitError, match=r"data\.chat is of prompts and completions"):
        module(tmp_path, Subject(tokenizer), chat=True)
    with pytest.raises(IITKitError, match=r"data\.system .* write the system turn in the messages"):
        module(tmp_path, Subject(tokenizer), system="The")


def test_a_template_writes_the_special_tokens_of_a_chat(tmp_path: Path) -> None:
    """A tokenizer that puts one before each text does not in a chat, unless it is told to."""
    tokenizer = adding("<|endoftext|>")
    tokenizer.chat_template = CHATML
    folder = splits(tmp_path, [row("The boy", "is happy")])
    text = tokenizer("<|user|>\nThe boy\n<|assistant|>\n", add_special_tokens=False)["input_ids"]
    for options, before in (({}, []), ({"special_tokens": True}, [END])):
        batch = module(folder, Subject(tokenizer), chat=True, **options).batch("train", [0])
        assert batch.base.ids[0].tolist() == [*before, *text]


def test_a_prompt_is_a_user_s_turn(tmp_path: Path) -> None:
    folder = splits(tmp_path, [row("The boy", "is happy", positions={"who": "boy"})])
    tokenizer = chatting()  # writes no end of text: it is added
    data = module(folder, Subject(tokenizer, alignment={"it": Place("who")}), chat=True, system="The park", prefix="x")
    prompt = "x<|system|>\nThe park\n<|user|>\nThe boy\n<|assistant|>\n"
    batch = data.batch("train", [0])
    assert batch.base.ids[0].tolist() == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([batch.base.ids[0, batch.base_positions[0, 0, 0]]]) in " boy"
    assert data.decoded([batch.labels[0].tolist()]) == ["is happy\n"]
    assert batch.labels[0, -1] == END


def test_templates_are_chosen_by_name_or_file(tmp_path: Path) -> None:
    folder = splits(tmp_path / "data", [row("The boy", "is happy")])
    tokenizer = chatting()
    tokenizer.chat_template = {"plain": CHATML, "loud": CHATML.replace("|>\n", "|>!\n")}
    with pytest.raises(IITKitError, match=r"has the chat templates plain, loud: say which, data\.template"):
        module(folder, Subject(tokenizer), chat=True)
    assert "<|user|>!\n" in module(folder, Subject(tokenizer), chat=True, template="loud").texts("train", [0])[0][0]
    with pytest.raises(IITKitError, match=r"no chat template 'lowd'\. Did you mean 'loud'\? .* or a \.jinja file"):
        module(folder, Subject(tokenizer), chat=True, template="lowd")
    (tmp_path / "own.jinja").write_text(CHATML.replace("<|", "<<"), encoding="utf-8")
    own = module(folder, Subject(), chat=True, template=str(tmp_path / "own.jinja"))  # of a tokenizer without any
    assert own.texts("train", [0])[0][0].startswith("<<user|>\n")
    with pytest.raises(IITKitError, match=r"the tokenizer has no chat template: give one by data\.template"):
        module(folder, chat=True)
    with pytest.raises(IITKitError, match=r"data\.template is of a chat: set data\.chat to true"):
        module(folder, template="plain")
    with pytest.raises(IITKitError, match="does not end a prompt where it begins the answer"):
        module(
            folder, Subject(chatting(CHATML.replace("<|assistant|>\n{% endif %}", "<|model|>\n{% endif %}"))), chat=True
        )
    silent = CHATML.replace("{{ message['content'] }}", "{{ message['content'] if message['role'] == 'user' }}")
    with pytest.raises(IITKitError, match="does not end a prompt where it begins the answer"):
        module(folder, Subject(chatting(silent)), chat=True)
    with pytest.raises(IITKitError, match="line 1: the chat template refuses these turns: no chats"):
        module(folder, Subject(chatting("{{ raise_exception('no chats') }}")), chat=True)


# --- splits and order ---


def test_splits_that_are_missing_are_taken_from_train(tmp_path: Path) -> None:
    rows = [row(f"The {word} {i}", " is late") for i in range(10) for word in ("boy", "dog")]
    data = module(write(tmp_path, [*rows, *rows[:4]]))
    found = {split: {said for said, _ in data.texts(split, range(len(data.told[split])))} for split in data.splits}
    assert sum(len(data.told[split]) for split in data.splits) == 24
    assert {split: round(len(told) / 24, 1) for split, told in data.told.items()} == {
        "train": 0.6, "validation": 0.2, "test": 0.2,
    }  # fmt: skip
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]


def test_measuring_takes_more_examples_at_once(tmp_path: Path) -> None:
    data = module(splits(tmp_path, [row(f"The {i}", " is late") for i in range(9)]))
    assert [len(batch) for batch in data.val_dataloader()] == [8, 1]  # 4 · batch_size
    data = module(tmp_path, eval_batch_size=5)
    assert [len(batch) for batch in data.val_dataloader()] == [5, 4]
    assert len(next(iter(data.train_dataloader()))) == 2


def test_sizes_take_the_first_examples(tmp_path: Path) -> None:
    folder = splits(tmp_path, ROWS)
    data = module(folder, sizes=Sizes(train=2, test=1))
    assert {split: len(told) for split, told in data.told.items()} == {"train": 2, "validation": 3, "test": 1}
    assert [prompt for prompt, _ in data.texts("train", [0, 1])] == ["The boy", "When Mary"]
    for n in (0, 4):
        with pytest.raises(IITKitError, match=rf"data\.sizes\.train: {n} examples: .* has 3"):
            module(folder, sizes=Sizes(train=n))


def test_each_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    rows = [row(f"The {i}", " is late") for i in range(20)]
    data, again, other = (module(splits(tmp_path, rows), seed=seed, batch_size=3) for seed in (0, 0, 1))
    loader, twin = data.train_dataloader(), again.train_dataloader()
    epochs = [[batch.rows.tolist() for batch in loader] for _ in range(3)]
    assert epochs == [[batch.rows.tolist() for batch in twin] for _ in range(3)]
    assert [len(part) for part in epochs[0]] == [3] * 6 + [2]
    assert all(sorted(chain.from_iterable(epoch)) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [batch.rows.tolist() for batch in other.train_dataloader()]
    # within an epoch a loader goes on where it was
    resumed = again.train_dataloader()
    resumed.load_state_dict({"epoch": 1, "next": 4})
    assert [batch.rows.tolist() for batch in resumed] == epochs[1][4:]
    assert [batch.rows.tolist() for batch in resumed] == epochs[2]
    for loader in data.test_dataloader():  # of the test, of train no more than of validation, of validation
        assert list(chain.from_iterable(batch.rows.tolist() for batch in loader)) == list(range(20))


def test_two_processes_take_as_many_steps(tmp_path: Path) -> None:
    """Of 11 rows each takes 5 an epoch, none in both; the one that is left out is another in another epoch."""
    rows = [row(f"The {i}", " is late") for i in range(11)]
    taken: list[list[list[int]]] = []
    for rank in range(2):
        data = module(splits(tmp_path, rows))
        trainer: Any = SimpleNamespace(
            accumulate_grad_batches=1, world_size=2, global_rank=rank, num_training_batches=3, training=False
        )
        data.trainer = trainer
        loader = data.train_dataloader()
        assert len(loader) == 3  # of 2, 2 and 1
        taken.append([sorted(chain.from_iterable(batch.rows.tolist() for batch in loader)) for _ in range(4)])
    left = set()
    for ours, theirs in zip(*taken, strict=True):
        assert len(ours) == len(theirs) == 5
        assert not set(ours) & set(theirs)
        left |= set(range(11)) - {*ours, *theirs}
    assert len(left) > 1


def test_shares_make_a_step_the_mean_over_its_tokens(tmp_path: Path) -> None:
    """Of two processes with two batches of two to a step: 8 rows, then the last 3 of 11."""
    rows = [row(f"The {i}", " is" + " late" * (i % 3)) for i in range(11)]
    data = module(splits(tmp_path, rows))
    lengths = [2 + i % 3 for i in range(11)]
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, world_size=2, num_training_batches=3)
    data.trainer = trainer
    order = np.asarray([10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    first, rest = sum(lengths[i] for i in order[:8]), sum(lengths[i] for i in order[8:])
    for position, tokens in ((0, first), (1, first), (4, first), (5, first), (8, rest), (9, rest)):
        # Lightning divides by 2 batches and by 2 processes
        assert data._share(order, position) == pytest.approx(2 * 2 / tokens)
    trainer.num_training_batches = 1  # limit_train_batches: the step ends early
    assert data._share(order, 0) == pytest.approx(2 * 2 / sum(lengths[i] for i in order[:4]))
    data.trainer = None
    assert data._share(order, 4) == pytest.approx(1 / (lengths[6] + lengths[5]))


# --- iitkit's own ---


def test_own_data_are_hub_datasets(tmp_path: Path) -> None:
    folders = own_folders()
    assert "tags" in folders
    for name, folder in folders.items():
        data = CompletionDataModule(Dataset(name))
        for split in ("train", "validation", "test"):
            theirs = load_dataset(str(folder), split=split, cache_dir=str(tmp_path))  # not what it once was
            assert [(r["prompt"], r["completion"]) for r in theirs] == [
                (example.prompt, example.completion) for example in data.examples[split]
            ]


def test_tags_are_held_out() -> None:
    data = CompletionDataModule(Dataset("tags"))
    texts = {
        split: [example.prompt.removeprefix("Review: ").removesuffix(".\nTag:") for example in examples]  # type: ignore[union-attr]
        for split, examples in data.examples.items()
    }
    assert {split: len(each) for split, each in texts.items()} == {"train": 192, "validation": 140, "test": 100}
    tags = sorted({example.completion for example in data.examples["train"]})
    topics = ("food", "price", "room", "service")
    assert tags == [f" [{topic}: {said}]" for topic in topics for said in ("bad", "good")]
    assert {example.completion for example in data.examples["test"]} == set(tags)
    counts = Counter(example.completion for example in data.examples["test"])
    assert set(counts.values()) == {12, 13}
    assert not set(texts["train"]) & set(texts["validation"])
    # no thing and no judgement of the test stands in the others: no beginning or end of three words does
    for part in (slice(None, 2), slice(-3, None)):
        seen, held = (
            {" ".join(text.split()[part]) for split in of for text in texts[split]}
            for of in (("train", "validation"), ("test",))
        )
        assert not held & seen
    # it was written before anything was run on it: settings are chosen by validation, and it stays as it is
    digest = hashlib.sha256((own_folders()["tags"] / "test.jsonl").read_bytes()).hexdigest()
    assert digest == "74d1513de27c3be032062677b35a5085dd7d27571b36598671501cb39756fb29"


def test_prompts_that_two_splits_share_are_reported(tmp_path: Path) -> None:
    folder = write(tmp_path, ROWS)
    write(folder, [row("The girl", " is late"), row("The boy", " was sick")], "validation")
    write(folder, [row("The cat", " is late")], "test")
    (line,) = [line for line in module(folder).report().splitlines() if "warning" in line]
    assert line.strip().startswith("warning: train and validation share 1 prompts")
    assert "warning" not in module(folder, sizes=Sizes(validation=1)).report()


def test_unknown_data_are_refused() -> None:
    with pytest.raises(IITKitError, match=r"no such file or folder 'tag'\. Did you mean 'tags'\?"):
        CompletionDataModule(Dataset("tag"))
    with pytest.raises(IITKitError, match=r"data\.batch_size: 0: expected 1 or more"):
        CompletionDataModule(Dataset("tags"), batch_size=0)
    with pytest.raises(IITKitError, match=r"columns: unknown name 'promt'\. Did you mean 'prompt'\?"):
        CompletionDataModule(Dataset("tags", columns={"promt": "x"}))


def test_columns_of_other_names(tmp_path: Path) -> None:
    folder = splits(tmp_path, [{"question": "The boy", "answer": " is happy"}])
    data = CompletionDataModule(Dataset(str(folder), columns={"prompt": "question", "completion": "answer"}))
    data.bind(Subject())
    assert data.texts("train", [0]) == [("The boy", " is happy")]


def test_the_report_says_what_is_edited(tmp_path: Path) -> None:
    for where, expected in (
        ("prompt", "it edits ' boy'"),
        ("generated", "it edits each generated token"),
        ("all", "it edits ' boy', each generated token"),
    ):
        report = module(splits(tmp_path, ROWS), Subject(where=where)).report()
        assert f"  {expected}" in report.splitlines()
        assert "  train: 3 examples; prompts of 2 to" in report or "  train: 3 examples; prompts of 3 to" in report
        assert "first: 'The boy' → ' is happy<|endoftext|>'" in report
