"""What a user may ask of the pairs: balance, rivals, splits, few shots, inputs of no text, recorded pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor

from iitkit.batch import Tokens, Values
from iitkit.causal import CausalModel, Symbols, Vectors
from iitkit.data import CounterfactualDataModule, Dataset, Sizes
from iitkit.data.report import as_plain, data_report
from iitkit.errors import IITKitError
from iitkit.tasks import Agreement, IndirectObject, Task

SMALL = Sizes(train=60, validation=20, test=20, test_templates=10)


class Place:
    """A placement."""

    def __init__(self, position: Any = "last", variable: str | None = None) -> None:
        self.position, self.variable = position, variable


class Stub:
    """A module as the data see it; its base model answers with the last candidate."""

    def __init__(self, **places: Place) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.alignment = places
        self.stages: list[list[str]] = []
        self.isolates = False

    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        return (candidates[:, :, 0] >= 0).sum(1) - 1


def made(task: Task | None = None, stub: Stub | None = None, **options: Any) -> CounterfactualDataModule:
    data = CounterfactualDataModule(task, **{"sizes": SMALL, "seed": 0, "batch_size": 8, **options})
    data.bind(stub or Stub(number=Place("subject")))
    return data


def column(data: CounterfactualDataModule, name: str, rows: Any, split: str = "train") -> list[Any]:
    """A variable's values in prompts of a pool."""
    assert data.task is not None
    setting = data.pools[split].setting
    return data.task.model.values({name: setting[name][rows]}, name)


# --- pairs ---


class Uneven(Task):
    """Nine words of ten are of one kind."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {word} near the {place}", output="answer")
        model.variables(word=[f"word{i}" for i in range(10)], place=[f"place{i}" for i in range(10)])

        @model.mechanism
        def kind(word: str) -> str:
            return "rare" if word == "word7" else "common"

        @model.mechanism
        def answer(kind: str) -> str:
            return {"rare": " is", "common": " are"}[kind]

        return model


def test_balance() -> None:
    stub = Stub(kind=Place("word"))
    plain = made(Uneven(), stub, flipped=None)
    pairs = plain.pairs("train")
    assert Counter(column(plain, "kind", pairs.source))["rare"] < 15
    data = made(Uneven(), stub, flipped=None, balance=["output", "variable"])
    pairs = data.pairs("train")
    assert Counter(column(data, "answer", pairs.base)) == {" is": 30, " are": 30}
    assert Counter(column(data, "kind", pairs.source)) == {"rare": 30, "common": 30}
    labels = Counter(row[i] for row, i in zip(pairs.candidates, pairs.label, strict=True))
    assert labels == {" is": 30, " are": 30}
    assert data.pairs("train", 1).base.tolist() != pairs.base.tolist()


def test_pairs_differ_in_only_what_they_may() -> None:
    data = made(Agreement(), differ_in=["plural"], flipped=1.0)
    for epoch in range(2):
        pairs = data.pairs("train", epoch)
        for name in ("noun", "attractor_noun", "attractor_plural"):
            assert column(data, name, pairs.base) == column(data, name, pairs.source)
        assert (data.pools["train"].templates[pairs.base] == data.pools["train"].templates[pairs.source]).all()
        changed = [
            a != b
            for a, b in zip(column(data, "plural", pairs.base), column(data, "plural", pairs.source), strict=True)
        ]
        assert pairs.flipped.tolist() == changed
    with pytest.raises(IITKitError, match=r"data.differ_in: 'subject' is computed from noun, plural"):
        made(Agreement(), differ_in=["subject"])


def test_rivals_are_told_apart() -> None:
    stub = Stub(io_position=Place())
    data = made(IndirectObject(), stub, flipped=None, tell_apart=["no_change", "name_a"])
    pairs = data.pairs("train")
    assert pairs.flipped.all()
    found = data.source.distinguish(data.pools["train"].setting, pairs, ["io_position"])  # type: ignore[union-attr]
    assert found.names[:2] == ["io_position", "name_a"]
    assert found.matrix[0, 1] == found.between("io_position", "no change") == 1.0
    with pytest.raises(IITKitError, match=r"data.tell_apart: 'nme_a' is no hypothesis\. Did you mean 'name_a'\?"):
        made(IndirectObject(), stub, tell_apart=["nme_a"])


class Attracted(Agreement):
    """The rival: the verb agrees with the nearest noun."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {noun} {plural} near the {attractor_noun} {attractor_plural}", output="verb")
        model.variables(**{name: domain.values for name, domain in Agreement().model.exogenous.items()})

        @model.mechanism
        def nearest(attractor_plural: bool) -> str:
            return "plural" if attractor_plural else "singular"

        @model.mechanism
        def verb(nearest: str) -> str:
            return {"plural": " are", "singular": " is"}[nearest]

        return model

    held_out_templates = 0


def test_a_rival_task() -> None:
    data = made(Agreement(), rivals=[Attracted()], tell_apart=["Attracted.nearest"], flipped=None)
    pairs = data.pairs("train")
    labels = [row[i] for row, i in zip(pairs.candidates, pairs.label, strict=True)]
    theirs = [" are" if plural else " is" for plural in column(data, "attractor_plural", pairs.source)]
    assert all(one != other for one, other in zip(labels, theirs, strict=True))
    assert "Attracted.nearest" in data_report(data)


def test_two_variables_from_one_source() -> None:
    stub = Stub(subject=Place("subject"), io_position=Place())
    data = made(IndirectObject(), stub, together=2, one_source=True, flipped=None)
    pairs = data.pairs("train")
    assert pairs.sources.shape == (60, 1)
    assert pairs.variables.shape == (60, 2)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.sources) == 1
    assert batch.active.all()
    assert (batch.source_of == 0).all()
    with pytest.raises(IITKitError, match=r"data\.one_source is of several variables at once: set data.together"):
        made(IndirectObject(), stub, one_source=True)


def test_balance_of_a_variable_is_of_one() -> None:
    stub = Stub(subject=Place("subject"), io_position=Place())
    with pytest.raises(IITKitError, match=r"data\.balance: variable is for pairs of one variable whose source is free"):
        made(IndirectObject(), stub, together=2, balance=["variable"])


# --- splits ---


class Sums(Task):
    """Two numbers in words of their own."""

    split_by = (("left", "right"),)

    def causal_model(self) -> CausalModel:
        model = CausalModel(
            prompt=[f"{i}: {{left}} plus {{right}} is" for i in range(5)],
            output="answer",
            surface={True: [" is", " are"], False: " he"},
        )
        model.variables(left=list(range(12)), right=list(range(12)))

        @model.mechanism
        def total(left: int, right: int) -> int:
            return left + right

        @model.mechanism
        def answer(total: int) -> bool:
            return total > 11

        return model


def test_splits_by_combination_by_template_and_by_nothing() -> None:
    stub = Stub(total=Place())
    data = made(Sums(), stub)
    both = {
        split: set(
            zip(column(data, "left", slice(None), split), column(data, "right", slice(None), split), strict=True)
        )
        for split in data.splits
    }
    assert not both["train"] & both["test"]
    assert not both["train"] & both["validation"]
    assert "splits: no prompts; no combinations of left × right in two splits" in data_report(data)
    by_template = made(Sums(), stub, split_by=["template"])
    used = {split: set(by_template.pools[split].templates.tolist()) for split in by_template.splits}
    assert [len(used[split]) for split in ("train", "validation", "test")] == [3, 1, 1]
    assert set().union(*used.values()) == set(range(5))
    shared = made(Sums(), stub, split_by=[], sizes=Sizes(train=500, validation=300, test=300))
    assert "train and test share" in data_report(shared)


# --- labels ---


def test_surface_forms_count_as_one_answer() -> None:
    data = made(Sums(), Stub(total=Place()))
    batch = next(iter(data.train_dataloader()))
    tokenizer = tiny_tokenizer()
    ids = {text: tokenizer(text)["input_ids"] for text in (" is", " are", " he")}
    assert batch.candidates.shape == (8, 3, 1)
    assert batch.answer_of is not None
    for row, of in zip(batch.candidates[:, :, 0].tolist(), batch.answer_of.tolist(), strict=True):
        answers = dict(zip(row, of, strict=True))
        assert answers[ids[" is"][0]] == answers[ids[" are"][0]] != answers[ids[" he"][0]]
    scores = torch.zeros(8, 3)
    scores[:, batch.candidates[0, :, 0].tolist().index(ids[" are"][0])] = 1.0
    pairs = data.pairs("train")
    right = [
        pairs.candidates[i][label] == " is" for i, label in zip(batch.rows.tolist(), batch.label.tolist(), strict=True)
    ]
    assert (batch.winners(scores) == batch.label).tolist() == right
    assert set(batch.labels[:, 0].tolist()) <= {ids[" is"][0], ids[" he"][0]}  # the first form is trained on


def test_shots_are_training_prompts_before_every_prompt() -> None:
    data = made(Agreement(), shots=2, prefix="<|endoftext|>")
    pool = data.pools["test"]
    texts = [pool.prompts[i].text for i in range(len(pool))]
    lines = texts[0].removeprefix("<|endoftext|>").split("\n")
    assert len(lines) == 3
    assert all(text.split("\n")[:2] == texts[0].split("\n")[:2] for text in texts)
    for line in lines[:2]:
        prompt, _, answer = line.rpartition(" ")
        known = {text.text: row for row, text in enumerate(data.pools["train"].texts)}
        assert column(data, "verb", [known[prompt]]) == [f" {answer}"]
    for i in range(len(pool)):
        (column_of_site,) = list(pool.positions[0][i])
        assert tiny_tokenizer().decode([pool.prompts[i].ids[column_of_site]]).strip() in pool.texts[i].text
        start, stop = pool.texts[i].spans["subject"]
        assert (
            pool.texts[i]
            .text[start:stop]
            .endswith(tiny_tokenizer().decode([pool.prompts[i].ids[column_of_site]]).strip())
        )
    with pytest.raises(IITKitError, match=r"data.shots: 200 examples: only 60 training prompts have a known answer"):
        made(Agreement(), shots=200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "Be brief."}, "data.system: there is a system turn only in a chat"),
        ({"max_tokens": 0}, "data.max_tokens: 0: expected 1 or more"),
        ({"shots": -1}, "data.shots: -1: expected 0 or more"),
        ({"dataset": Dataset("x.jsonl")}, "data: give either a task or a dataset, not both"),
        ({"task": None}, "data: give either a task or a dataset$"),
        ({"split_by": ["nuon"]}, r"Agreement.split_by 'nuon' is no variable\. Did you mean 'noun'\?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        made(**{"task": Agreement(), **options})


# --- inputs of no text ---


class Equal(Task):
    """Are two vectors equal?"""

    def __init__(self, symbols: bool) -> None:
        self.symbols = symbols
        super().__init__()

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt=Symbols("{w} = {x}") if self.symbols else Vectors("w", "x"), output="equal")
        values = list(range(5)) if self.symbols else [(float(i), -float(i)) for i in range(5)]
        model.variables(w=values, x=values)

        @model.mechanism
        def equal(w: Any, x: Any) -> bool:
            return bool(w == x)

        return model


def test_vectors_make_batches_of_values() -> None:
    data = made(Equal(symbols=False), Stub(w=Place(0)), balance=["output"])
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch.base, Values)
    assert batch.base.inputs.shape == (8, 4)
    assert (batch.base.inputs[:, 0] == -batch.base.inputs[:, 1]).all()
    equal = (batch.base.inputs[:, :2] == batch.base.inputs[:, 2:]).all(1)
    assert batch.candidates[:, :, 0].tolist() == [[0, 1]] * 8 or batch.candidates[:, :, 0].tolist() == [[1, 0]] * 8
    said = batch.candidates[torch.arange(8), batch.base_label, 0]
    assert data.task is not None
    assert [data.task.model.domains["equal"].values[i] for i in said.tolist()] == equal.tolist()
    swapped = (batch.sources[0].inputs[:, :2] == batch.base.inputs[:, 2:]).all(1)  # type: ignore[attr-defined]
    said = batch.candidates[torch.arange(8), batch.label, 0]
    assert [data.task.model.domains["equal"].values[i] for i in said.tolist()] == swapped.tolist()
    assert "right" not in data_report(data)


def test_symbols_make_batches_of_tokens_without_a_tokenizer() -> None:
    data = made(Equal(symbols=True), Stub(x=Place("x")), flipped=None)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch.base, Tokens)
    assert data.tokenizer is None
    assert batch.base.ids.shape == (8, 3)
    assert batch.base_positions[:, 0, 0].tolist() == [2] * 8
    w, equals, x = batch.base.ids.T
    assert len(set(equals.tolist())) == 1
    vocabulary = data.task.model.encoding.vocabulary  # type: ignore[union-attr]
    said = [vocabulary[i] for i in batch.candidates[torch.arange(8), batch.base_label, 0].tolist()]
    assert said == (w == x).tolist()


# --- recorded pairs ---


def recorded(tmp_path: Path, base_label: bool = True) -> Path:
    nouns, rows = ["dog", "cat", "actor", "child", "king", "tree", "ship", "lamp", "wall", "bird"], []
    for i, noun in enumerate(nouns):
        row = {
            "base": f"The {noun} near the door{i}",
            "source": f"The {noun}s near the door{i}",
            "label": " are",
            "base_positions": {"subject": noun},
            "source_positions": {"subject": f"{noun}s"},
            "base_label": " is",
            "candidates": [" is", " are"],
        }
        if not base_label:
            del row["base_label"]
        rows.append(row)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_users_own_file(tmp_path: Path) -> None:
    data = made(None, dataset=Dataset(str(recorded(tmp_path))), sizes=Sizes())
    assert [data.size(split) for split in ("train", "validation", "test")] == [6, 2, 2]
    batch = next(iter(data.train_dataloader()))
    tokenizer = tiny_tokenizer()
    for i, row in enumerate(batch.rows.tolist()):
        pairs, pool = data.pairs("train"), data.pools["train"]
        text = pool.prompts[int(pairs.base[row])].text
        assert text.split(" ")[1].endswith(
            tokenizer.decode([int(batch.base.ids[i, batch.base_positions[i, 0, 0]])]).strip()
        )
    assert tokenizer.batch_decode(batch.labels) == [" are"] * 6
    assert batch.flipped.all()
    report = data_report(data)
    assert "6 pairs of    12 prompts, 100% flipped" in report
    assert as_plain(data)["splits"]["train"] == {"pairs": 6, "prompts": 12, "flipped": 1.0}


def test_without_base_labels_the_base_model_is_asked(tmp_path: Path) -> None:
    dataset = Dataset(str(recorded(tmp_path, base_label=False)))
    data = made(None, dataset=dataset, sizes=Sizes())  # the stub answers with the last candidate, " are"
    pairs = data.pairs("train")
    assert [row[i] for row, i in zip(pairs.candidates, pairs.base_label, strict=True)] == [" are"] * 6
    assert not pairs.flipped.any()
    unasked = CounterfactualDataModule(dataset=dataset, seed=0)
    unasked.bind(Stub(number=Place("subject")), model=False)
    assert "flipped: unknown" in data_report(unasked)
    with pytest.raises(IITKitError, match="the dataset has no base_label for some prompts"):
        made(None, dataset=dataset, sizes=Sizes(), only_correct=True)


def test_options_of_a_task_are_refused_of_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"data\.balance is of a task's pairs; those of a dataset are as they are"):
        made(None, dataset=Dataset(str(recorded(tmp_path))), balance=["output"])


def test_only_correct_leaves_whole_pairs(tmp_path: Path) -> None:
    rows = [
        {
            "base": f"The dog near door{i}",
            "source": f"The dogs near door{j}",
            "label": " are",
            "base_label": [" is", " are"][i % 2],
            "candidates": [" is", " are"],
        }
        for i in range(12)
        for j in range(2)
    ]
    for split in ("train", "validation", "test"):
        file = tmp_path / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(IITKitError, match="no base_label for some prompts, so nothing says what is right"):
        made(None, Stub(number=Place()), dataset=Dataset(str(tmp_path)), sizes=Sizes(), only_correct=True)


def test_the_same_numbers_whatever_is_asked_first() -> None:
    one, other = made(Agreement(), balance=["output"]), made(Agreement(), balance=["output"])
    other.pairs("train", 3)
    for split in one.splits:
        a, b = one.pairs(split), other.pairs(split)
        assert np.array_equal(a.base, b.base)
        assert np.array_equal(a.sources, b.sources)
        assert a.label == b.label
