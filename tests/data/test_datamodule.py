"""The data module, bound to a stub of the module that it serves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens
from iitkit.causal import CausalModel
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.data.loader import Padding
from iitkit.errors import IITKitError
from iitkit.positions import Position
from iitkit.tasks import Agreement, IndirectObject, PronounGender, Task, words

SMALL = Sizes(train=40, validation=14, test=12, test_templates=10)
SPLITS = ["train", "validation", "test", "test_templates"]
SCENE = re.compile(r"(?:When|After|While|Then,) (\w+) and (\w+) w.* the (\w+)[,.] (\w+) (?:gave|handed) a (\w+) to")
PRONOUN = re.compile(r"(?:Yesterday|This morning|Today|On Monday|Last night|We heard that),? (\w+) .*")


Says = Callable[[list[str], list[list[str]]], list[str]]
"""Prompts and each prompt's candidates → what the base model answers."""


@dataclass
class Place:
    """A placement."""

    position: Position = "last"
    variable: str | None = None


class Stub:
    """A module as the data see it."""

    def __init__(self, alignment: dict[str, Place] | None = None, says: Says | None = None, **places: Place) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.alignment = {**(alignment or {}), **places}
        self.given = says
        self.asked: list[str] = []
        self.stages: list[list[str]] = []
        self.isolates = False

    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        assert self.given is not None
        texts = prompts_of(tokens, self.tokenizer)
        answers = [[decoded(self.tokenizer, c) for c in row] for row in candidates.tolist()]
        self.asked += texts
        said = self.given(texts, answers)
        return torch.tensor([row.index(answer) for row, answer in zip(answers, said, strict=True)])


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text of a row's tokens without what fills it up."""
    return str(tokenizer.decode([token for token in ids if token != IGNORED]))


def prompts_of(tokens: Tokens, tokenizer: Any) -> list[str]:
    rows = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
    return [decoded(tokenizer, [t for t, real in zip(ids, mask, strict=True) if real]) for ids, mask in rows]


def bound(task: Task, *, sizes: Sizes = SMALL, stub: Stub | None = None, **options: Any) -> CounterfactualDataModule:
    data = CounterfactualDataModule(task, sizes=sizes, batch_size=8, **{"seed": 0, **options})
    data.bind(stub or Stub(io_position=Place()))
    return data


@pytest.fixture(scope="module")
def indirect() -> IndirectObject:
    return IndirectObject()


@pytest.fixture(scope="module")
def data(indirect: IndirectObject) -> CounterfactualDataModule:
    return bound(indirect)


def loaders(data: CounterfactualDataModule) -> dict[str, list[Batch]]:
    """The batches of every split, through the data module's own loaders."""
    tested = dict(zip(data.tested, data.test_dataloader(), strict=True))
    return {
        "train": list(data.train_dataloader()),
        "validation": list(data.val_dataloader()),
        "test": list(tested["test"]),
        "test_templates": list(tested["test_templates"]),
    }


def pairs_of(batches: list[Batch]) -> Iterator[tuple[str, str, list[str], str, str, bool]]:
    """Base, source, candidates, label, base label and flipped of each row, decoded."""
    tokenizer = tiny_tokenizer()
    for batch in batches:
        bases, sources = prompts_of(batch.base, tokenizer), prompts_of(batch.sources[0], tokenizer)
        for b in range(len(batch)):
            said = [decoded(tokenizer, c) for c in batch.candidates[b].tolist()]
            label = decoded(tokenizer, batch.labels[b].tolist())
            assert said[int(batch.label[b])] == label
            yield bases[b], sources[b], said, label, said[int(batch.base_label[b])], bool(batch.flipped[b])


# --- labels, recomputed by hand from the prompts ---


def scene(text: str) -> tuple[str, str, str]:
    """First name, second name, subject."""
    found = SCENE.fullmatch(text)
    assert found is not None, text
    return found[1], found[2], found[4]


def test_indirect_object_labels_by_hand(data: CounterfactualDataModule) -> None:
    for split, batches in loaders(data).items():
        rows = list(pairs_of(batches))
        assert len(rows) == getattr(SMALL, split)
        for base, source, candidates, label, base_label, flipped in rows:
            (a, b, subject), (_, source_b, source_subject) = scene(base), scene(source)
            assert candidates == [f" {a}", f" {b}"]
            assert base_label == (f" {a}" if subject == b else f" {b}")
            assert label == (f" {a}" if source_subject == source_b else f" {b}")
            assert flipped == (label != base_label)
        assert sum(flipped for *_, flipped in rows) == len(rows) / 2


def test_pronoun_labels_by_hand() -> None:
    genders = {row["name"]: row["gender"] for row in words("names")}
    pronoun = {"female": " she", "male": " he"}
    data = bound(PronounGender(), stub=Stub(gender=Place("name")), flipped=0.25)
    for split, batches in loaders(data).items():
        rows = list(pairs_of(batches))
        for base, source, candidates, label, base_label, flipped in rows:
            names = [found[1] for found in (PRONOUN.fullmatch(base), PRONOUN.fullmatch(source)) if found]
            assert sorted(candidates) == [" he", " she"]
            assert base_label == pronoun[genders[names[0]]]
            assert label == pronoun[genders[names[1]]]
            assert flipped == (label != base_label)
        assert sum(flipped for *_, flipped in rows) == round(len(rows) / 4), split


def test_agreement_labels_by_hand() -> None:
    plurals = {row["plural"] for row in words("nouns")}
    data = bound(Agreement(), stub=Stub(number=Place("subject")), flipped=None)
    for batches in loaders(data).values():
        for base, source, _, label, base_label, flipped in pairs_of(batches):
            truth = [" are" if text.split()[1] in plurals else " is" for text in (base, source)]
            assert [base_label, label] == truth
            assert flipped == (truth[0] != truth[1])


# --- positions ---

PLACES = {
    "io_position": Place("subject"),
    "first": Place("name_a.first", "io_name"),
    "object": Place("object", "io_name"),
    "end": Place("last", "io_position"),
}


@pytest.mark.parametrize("prefix", ["", "<|endoftext|>", "Well: "])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_positions_decode_to_their_spans(indirect: IndirectObject, padding: Padding, prefix: str) -> None:
    data = bound(indirect, stub=Stub(PLACES), padding=padding, prefix=prefix)
    tokenizer = tiny_tokenizer()
    batches = [batch for part in loaders(data).values() for batch in part]
    ragged = False
    for batch in batches:
        ragged |= not bool(batch.base.mask.all())
        for tokens, positions in ((batch.base, batch.base_positions), (batch.sources[0], batch.source_positions)):
            texts = prompts_of(tokens, tokenizer)
            starts = (tokens.mask.cumsum(1) == 1).int().argmax(1)
            for b, text in enumerate(texts):
                assert text.startswith(prefix)
                found = SCENE.fullmatch(text.removeprefix(prefix))
                assert found is not None
                a, _, _, subject, thing = found.groups()
                columns = positions[b, :, 0].tolist()
                said = [decoded(tokenizer, [int(tokens.ids[b, column])]).strip() for column in columns]
                assert subject.endswith(said[0])
                assert a.startswith(said[1])
                assert thing.endswith(said[2])
                assert said[3] == "to"
                # the subject stands earlier too: the site is the later one, counted by the tokens of the text before it
                before = text[: re.search(rf" {subject} (?:gave|handed)", text).start()]  # type: ignore[union-attr]
                whole = len(tokenizer(f"{before} {subject}")["input_ids"])
                assert columns[0] == int(starts[b]) + whole - 1
                assert columns[3] == int(tokens.last[b])
        assert batch.position_mask.all()
    assert ragged


def test_rows_are_active_at_their_variable_s_placements(indirect: IndirectObject) -> None:
    data = bound(indirect, stub=Stub(PLACES))
    assert data.variables == ["io_position", "io_name"]
    expected = {0: [True, False, False, True], 1: [False, True, True, False]}
    counts = {0: 0, 1: 0}
    for batch in data.train_dataloader():
        for variable, active in zip(batch.variable.tolist(), batch.active.tolist(), strict=True):
            assert active == expected[variable]
            counts[variable] += 1
    assert counts == {0: 20, 1: 20}


def test_labels_of_two_variables_by_hand(indirect: IndirectObject) -> None:
    data = bound(indirect, stub=Stub(PLACES))
    for batches in loaders(data).values():
        variables = [v for batch in batches for v in batch.variable.tolist()]
        for variable, (base, source, candidates, label, base_label, flipped) in zip(
            variables, pairs_of(batches), strict=True
        ):
            (a, b, subject), (source_a, source_b, source_subject) = scene(base), scene(source)
            first = source_subject == source_b
            if variable == 0:
                assert label == (f" {a}" if first else f" {b}")
            else:
                assert label == (f" {source_a}" if first else f" {source_b}")
            assert base_label == (f" {a}" if subject == b else f" {b}")
            assert flipped == (label != base_label)
            kept = [c for c in candidates if c]  # rows with fewer candidates end with empty ones
            assert kept[:2] == [f" {a}", f" {b}"]
            assert set(kept[2:]) <= {label}


# --- splits, epochs, seeds ---


def test_splits_share_no_words(data: CounterfactualDataModule) -> None:
    found = {}
    for split in SPLITS:
        groups = [SCENE.fullmatch(text.text) for text in data.pools[split].texts]
        found[split] = {word for match in groups if match for word in match.groups()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"), ("train", "test_templates")):
        assert found[one] & found[other] == set()


@pytest.mark.parametrize(
    ("kind", "variable", "held"),
    [
        (IndirectObject, "io_position", "Then, .*"),
        (PronounGender, "gender", "Last night, .*|We heard that .*"),
        (Agreement, "number", "The .* beside the .*"),
    ],
)
def test_held_out_templates_only_in_test_templates(kind: type[Task], variable: str, held: str) -> None:
    data = bound(kind(), stub=Stub({variable: Place()}))
    for split in SPLITS:
        new = [re.fullmatch(held, text.text) is not None for text in data.pools[split].texts]
        assert all(new) if split == "test_templates" else not any(new), split


def test_prompts_of_a_split_differ_and_are_numbered(data: CounterfactualDataModule) -> None:
    number = data.pools["train"].first
    for split in SPLITS:
        pool = data.pools[split]
        texts = [text.text for text in pool.texts]
        assert len(set(texts)) == len(texts) == getattr(SMALL, split)
        assert pool.first == number
        number += len(pool)


def epoch_pairs(data: CounterfactualDataModule, epoch: int) -> list[tuple[str, str]]:
    pairs, texts = data.pairs("train", epoch), data.pools["train"].texts
    return [(texts[b].text, texts[s].text) for b, s in zip(pairs.base, pairs.source, strict=True)]


def test_epochs_draw_other_pairs_of_the_same_prompts(indirect: IndirectObject, data: CounterfactualDataModule) -> None:
    first, second = epoch_pairs(data, 0), epoch_pairs(data, 1)
    assert first != second
    assert len(set(first) & set(second)) < 10
    assert {base for base, _ in first} == {base for base, _ in second}
    assert epoch_pairs(data, 0) == first  # asking again changes nothing
    again, other = bound(indirect), bound(indirect, seed=1)
    assert epoch_pairs(again, 1) == second  # without epoch 0 before it
    assert epoch_pairs(again, 0) == first
    assert epoch_pairs(other, 0) != first


def test_the_loader_walks_the_epochs(data: CounterfactualDataModule) -> None:
    loader = data.train_dataloader()
    for epoch in range(2):
        rows = list(pairs_of(list(loader)))
        assert [(base, source) for base, source, *_ in rows] == epoch_pairs(data, epoch)


def test_the_seed_is_the_run_s_unless_said(indirect: IndirectObject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert CounterfactualDataModule(indirect).seed == 5
    assert CounterfactualDataModule(indirect, seed=2).seed == 2
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert CounterfactualDataModule(indirect).seed == 0


def test_fewer_prompts_than_pairs(indirect: IndirectObject) -> None:
    data = bound(indirect, prompts=10)
    pairs = data.pairs("train")
    assert [len(data.pools[split]) for split in SPLITS] == [10, 10, 10, 10]
    assert sorted(pairs.base.tolist()) == sorted(list(range(10)) * 4)


def test_tested_splits_and_sizes(indirect: IndirectObject, data: CounterfactualDataModule) -> None:
    assert data.tested == ["test", "test_templates", "train", "validation"]
    counts = [sum(len(batch) for batch in loader) for loader in data.test_dataloader()]
    assert counts == [12, 10, 14, 14]  # of the training pairs as many as of validation pairs
    predicted = list(data.predict_dataloader())
    assert [row for batch in predicted for row in batch.rows.tolist()] == list(range(12))
    none = bound(indirect, sizes=Sizes(8, 4, 4, 0), flipped=None)
    assert none.tested == ["test", "train", "validation"]
    assert "test_templates" not in none.pools


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_each_split(indirect: IndirectObject, world: int) -> None:
    data = bound(indirect)
    train, validation, test, steps = [], [], [], []
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, training=False)  # type: ignore[assignment]
        train += [row for batch in data.train_dataloader() for row in batch.rows.tolist()]
        steps.append(len(data.train_dataloader()))
        validation += [row for batch in data.val_dataloader() for row in batch.rows.tolist()]
        test += [row for batch in data.test_dataloader()[0] for row in batch.rows.tolist()]
    assert sorted(train) == list(range(40 - 40 % world))  # as many steps in each
    assert len(set(steps)) == 1
    assert sorted(validation) == list(range(14))
    assert sorted(test) == list(range(12))


# --- only_correct ---


def test_only_correct_keeps_what_the_judge_lets_pass(indirect: IndirectObject) -> None:
    def knows(texts: list[str], answers: list[list[str]]) -> list[str]:
        said = []
        for text, row in zip(texts, answers, strict=True):
            a, b, subject = scene(text)
            assert row == [f" {a}", f" {b}"]
            said.append(f" {a}" if (subject == b) == (a < b) else f" {b}")  # right where names are in order
        return said

    plain, stub = bound(indirect), Stub(says=knows, io_position=Place())
    data = bound(indirect, stub=stub, only_correct=True)
    number = data.pools["train"].first
    # replay knows prompts by their numbers: another data module's must not pass for ours
    assert number > max(pool.first + len(pool) - 1 for pool in plain.pools.values())
    for split in SPLITS:
        texts = [text.text for text in plain.pools[split].texts]
        right = [text for text in texts if scene(text)[0] < scene(text)[1]]
        assert [text.text for text in data.pools[split].texts] == right
        assert data.judged[split] == pytest.approx(len(right) / len(texts))
        assert data.pools[split].first == number
        number += len(right)
    assert len(stub.asked) == 40 + 14 + 12 + 10
    for batches in loaders(data).values():
        for base, source, _, label, _, _ in pairs_of(batches):
            (a, b, _), (_, source_b, source_subject) = scene(base), scene(source)
            assert a < b
            assert label == (f" {a}" if source_subject == source_b else f" {b}")


def test_only_correct_with_nothing_left(indirect: IndirectObject) -> None:
    def wrong(texts: list[str], answers: list[list[str]]) -> list[str]:
        return [f" {scene(text)[2]}" for text in texts]  # the subject

    stub = Stub(says=wrong, io_position=Place())
    message = "data.only_correct: the base model answers 0 of 40 train prompts right, so the split is empty"
    with pytest.raises(IITKitError, match=message):
        bound(indirect, stub=stub, only_correct=True)


def test_judgements_of_the_first_prompts(indirect: IndirectObject) -> None:
    stub = Stub(says=lambda texts, answers: [row[0] for row in answers])
    data = bound(indirect)
    found = data.judgements(data.pools["train"], "train", stub, most=11)
    expected = [scene(text.text)[2] == scene(text.text)[1] for text in data.pools["train"].texts[:11]]
    assert found.tolist() == expected
    assert len(set(expected)) == 2


# --- binding ---


def test_unknown_variable_and_span(indirect: IndirectObject) -> None:
    with pytest.raises(
        IITKitError, match=r"alignment.io_postion: variable 'io_postion' .* Did you mean 'io_position'\?"
    ):
        bound(indirect, stub=Stub(io_postion=Place()))
    with pytest.raises(IITKitError, match=r"alignment.a: variable 'io' is no variable"):
        bound(indirect, stub=Stub(a=Place("last", "io")))
    with pytest.raises(IITKitError, match=r"alignment.io_position: position 'subjct' .* Did you mean 'subject'\?"):
        bound(indirect, stub=Stub(io_position=Place("subjct")))
    with pytest.raises(IITKitError, match=r"alignment.io_position: position 'io_name.first' is no span of the prompt"):
        bound(indirect, stub=Stub(io_position=Place(["last", "io_name.first"])))


def test_unbound_data_say_so(indirect: IndirectObject) -> None:
    with pytest.raises(IITKitError, match=r"call bind\(module\), or hand both to a Trainer"):
        CounterfactualDataModule(indirect).setup("fit")


def test_another_module_gets_data_of_its_own(indirect: IndirectObject) -> None:
    one, other = Stub(io_position=Place("last")), Stub(io_name=Place("subject"), io_position=Place("name_a"))
    data = CounterfactualDataModule(indirect, SMALL, seed=0)
    for stub, variables, placements in ((one, ["io_position"], 1), (other, ["io_name", "io_position"], 2)):
        data.trainer = SimpleNamespace(lightning_module=stub, global_rank=0, world_size=1, training=False)  # type: ignore[assignment]
        data.setup("fit")
        assert data.variables == variables
        assert next(iter(data.train_dataloader())).base_positions.shape[1] == placements
    pools = data.pools
    data.setup("test")
    assert data.pools is pools  # the same module: nothing is made anew


class Words(Task):
    """``The {noun}`` → answers as they are given."""

    split_by = ("noun",)

    def __init__(self, answers: tuple[str, str], prompt: str = "The {noun}", nouns: int = 20) -> None:
        self.answers, self.prompt = answers, prompt
        self.nouns = [row["singular"] for row in words("nouns")][:nouns]
        super().__init__()

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt=self.prompt, output="answer")
        model.variables(noun=self.nouns)
        nouns, answers = self.nouns, self.answers

        @model.mechanism
        def kind(noun: str) -> int:
            return nouns.index(noun) % 2

        @model.mechanism
        def answer(kind: int) -> str:
            return answers[kind]

        return model


@pytest.mark.parametrize(
    ("answers", "prompt", "position", "message"),
    [
        ((" he", "s"), "The {noun}", "last", "label 's' does not stand as tokens of its own"),
        ((" he", " he"), "The {noun}", "last", "one possible answer in some rows"),
        ((" Mary", " Maryz"), "The {noun}", "last", "are told apart by no token: one begins the other"),
        ((" he", " she"), "The {noun}s", "noun", "the tokenizer joins the span to its neighbours"),
    ],
)
def test_what_the_tokenizer_cannot_tell_apart(
    answers: tuple[str, str], prompt: str, position: str, message: str
) -> None:
    with pytest.raises(IITKitError) as caught:
        bound(Words(answers, prompt), stub=Stub(kind=Place(position)), flipped=None)
    assert message in str(caught.value)


def test_an_empty_split() -> None:
    with pytest.raises(IITKitError, match=r"no word of 'noun' \(2 words\) is left for the \w+ split"):
        bound(Words((" he", " she"), nouns=2), stub=Stub(kind=Place()))


def test_a_share_that_no_source_can_give(indirect: IndirectObject) -> None:
    message = "no source changes the label under an interchange of 'place' .* set data.flipped to another share"
    with pytest.raises(IITKitError, match=message):
        bound(indirect, stub=Stub(place=Place()))
    assert not bound(indirect, stub=Stub(place=Place()), flipped=0.0).pairs("test").flipped.any()


def test_a_slow_tokenizer_is_refused(indirect: IndirectObject) -> None:
    stub = Stub(io_position=Place())
    stub.tokenizer = SimpleNamespace(is_fast=False, pad_token_id=0)
    with pytest.raises(IITKitError, match="load the model's fast tokenizer"):
        bound(indirect, stub=stub)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": Sizes(train=0)}, "data.sizes.train: 0 pairs: expected 1 or more"),
        ({"sizes": Sizes(validation=-1)}, "data.sizes.validation: -1 pairs"),
        ({"sizes": Sizes(test=0)}, "data.sizes.test: 0 pairs"),
        ({"sizes": Sizes(test_templates=-1)}, "data.sizes.test_templates: -1 pairs"),
        ({"batch_size": 0}, "data.batch_size: 0: expected 1 or more"),
        ({"flipped": 1.5}, "data.flipped: 1.5: expected a share from 0 to 1, or null"),
        ({"flipped": -0.1}, "data.flipped: -0.1"),
        ({"prompts": 1}, "data.prompts: 1: expected 2 or more"),
        ({"shares": (0.5, 0.5, 0.5)}, "three positive shares whose sum is 1"),
        ({"shares": (0.5, 0.5, 0.0)}, "three positive shares whose sum is 1"),
    ],
)
def test_wrong_options(indirect: IndirectObject, options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        CounterfactualDataModule(indirect, **options)
    assert message in str(caught.value)


def test_right_options(indirect: IndirectObject) -> None:
    made = CounterfactualDataModule(
        indirect, Sizes(1, 1, 1, 0), batch_size=1, flipped=0.0, prompts=2, shares=(0.4, 0.3, 0.3)
    )
    made.bind(Stub(io_position=Place()))
    assert [len(made.pools[split]) for split in ("train", "validation", "test")] == [2, 2, 2]
    assert np.sum(made.pairs("train").flipped) == 0
