"""Batches and loaders: what stands in a batch, and that an interrupted epoch goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens, Values
from iitkit.causal import CausalModel, sample_inputs
from iitkit.data.answers import Answers, Classes
from iitkit.data.loader import Collator, Padding, PairLoader, TrainLoader
from iitkit.data.pairs import Design, Pairs, make_pairs
from iitkit.data.pool import Pool, input_pool, make_pool
from iitkit.data.prompts import Arrays, symbols
from iitkit.errors import IITKitError
from iitkit.positions import Position

WORDS = ["Mary", "park", "Johnzyx", "Wednesdayish", "dog"]  # one token, or several


def toy() -> CausalModel:
    """Two words; the answer is the first, and has one token or several."""
    model = CausalModel(prompt=["the {word} and {other}", "When the {word} was happy, {other}"], output="answer")
    model.variables(word=WORDS, other=WORDS)

    @model.mechanism
    def answer(word: str) -> str:
        return f" {word}"

    return model.compile()


def made(positions: dict[str, Position], placements: list[int], side: Padding) -> tuple[Pool, Pairs, Collator]:
    model, tokenizer = toy(), tiny_tokenizer()
    setting, templates = sample_inputs(model, 40, np.random.default_rng(0), [0, 1])
    pool = make_pool(model, setting, templates, tokenizer, positions, "", first=100)
    pairs = make_pairs(model, pool, Design(["word", "other"], None), 40, np.random.default_rng(1))
    return pool, pairs, Collator(pool, Answers(tokenizer), placements, 0, side)


def row_tokens(tokens: Tokens, row: int) -> list[int]:
    return [t for t, real in zip(tokens.ids[row].tolist(), tokens.mask[row].tolist(), strict=True) if real]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_says_what_the_pairs_say(side: Padding) -> None:
    positions: dict[str, Position] = {"a": "word", "b": ["other.first", 0], "c": "f1+l1"}
    pool, pairs, collate = made(positions, [0, 1, 1], side)
    tokenizer, rows = tiny_tokenizer(), [5, 0, 17, 33]
    batch = collate(pairs, rows)
    (source,) = batch.sources
    assert {len(row_tokens(batch.base, b)) for b in range(4)} != {batch.base.ids.shape[1]}  # ragged
    assert batch.rows.tolist() == rows
    assert len(batch) == 4
    for b, row in enumerate(rows):
        base, other = int(pairs.base[row]), int(pairs.source[row])
        for tokens, positions_, prompt in (
            (batch.base, batch.base_positions, base),
            (source, batch.source_positions, other),
        ):
            assert tokenizer.decode(row_tokens(tokens, b)) == pool.texts[prompt].text
            assert tokens.prompts is not None
            assert tokens.prompts[b] == 100 + prompt
            ids, text = tokens.ids[b].tolist(), pool.texts[prompt]
            slots = {name: text.text[start:stop] for name, (start, stop) in text.spans.items()}
            columns = positions_[b].tolist()
            # the last piece of the word, the first of the other, the first (twice) and the last token of the prompt
            assert slots["word"].endswith(str(tokenizer.decode([ids[columns[0][0]]])).strip())
            assert slots["other"].startswith(str(tokenizer.decode([ids[columns[1][0]]])).strip())
            assert [ids[columns[1][1]], ids[columns[2][0]], ids[columns[2][1]]] == [
                row_tokens(tokens, b)[0],
                row_tokens(tokens, b)[0],
                row_tokens(tokens, b)[-1],
            ]
            assert all(tokens.mask[b, c] == 1 for group, n in zip(columns, (1, 2, 2), strict=True) for c in group[:n])
        assert batch.position_mask[b].tolist() == [[True, False], [True, True], [True, True]]
        # each row is active at the placements of its variable, and only there
        assert batch.active[b].tolist() == ([True, False, False] if pairs.variable[row] == 0 else [False, True, True])
        assert batch.variable[b] == pairs.variable[row]
        assert batch.source_of[b].tolist() == [0, 0, 0]
        # answers
        word = pairs.candidates[row][pairs.label[row]]
        assert tokenizer.decode([t for t in batch.labels[b].tolist() if t != IGNORED]) == word
        said = [tokenizer.decode([t for t in c if t != IGNORED]) for c in batch.candidates[b].tolist()]
        assert said == [f" {w}" for w in WORDS]
        assert said[int(batch.label[b])] == word
        assert said[int(batch.base_label[b])] == f" {pool.texts[base].text.split('the ')[1].split()[0]}"
        assert bool(batch.flipped[b]) == (said[int(batch.label[b])] != said[int(batch.base_label[b])])


def test_labels_are_no_wider_than_the_longest_of_them() -> None:
    pool, pairs, collate = made({"a": "last"}, [0], "right")
    words = [pairs.candidates[i][pairs.label[i]] for i in range(40)]
    short = [i for i, word in enumerate(words) if word in (" Mary", " park", " dog")][:3]
    long = next(i for i, word in enumerate(words) if word == " Wednesdayish")
    n = len(tiny_tokenizer()(" Wednesdayish")["input_ids"])
    assert collate(pairs, short).labels.shape[1] == 1
    labels = collate(pairs, [*short, long]).labels
    assert labels.shape[1] == n
    assert (labels[:3, 1:] == IGNORED).all()
    assert len(pool) == 40


@pytest.mark.parametrize("side", ["left", "right"])
def test_whole_spans_need_as_many_tokens_in_both(side: Padding) -> None:
    pool, pairs, collate = made({"a": "word.all"}, [0], side)
    lengths = [
        (len(pool.positions[0][b]), len(pool.positions[0][s])) for b, s in zip(pairs.base, pairs.source, strict=True)
    ]
    same = [i for i, (base, source) in enumerate(lengths) if base == source]
    other = next(i for i, (base, source) in enumerate(lengths) if base != source)
    batch = collate(pairs, same)
    widths = [lengths[i][0] for i in same]
    assert len(set(widths)) > 1  # ragged sites in one batch
    assert batch.position_mask.sum(2)[:, 0].tolist() == widths
    for b, i in enumerate(same):
        columns = batch.base_positions[b, 0][batch.position_mask[b, 0]]
        word = pool.texts[pairs.base[i]].text.split("the ")[1].split()[0]
        assert str(tiny_tokenizer().decode(batch.base.ids[b, columns].tolist())).strip() == word
    with pytest.raises(IITKitError, match=r"a site has \d tokens in '.*' and \d in '.*': a swap needs as many in both"):
        collate(pairs, [*same[:1], other])


# --- loaders ---


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Batch | Tokens):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def equal(one: list[Batch], other: list[Batch]) -> bool:
    first, second = ([list(tensors(batch)) for batch in batches] for batches in (one, other))
    return len(first) == len(second) and all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def parts() -> tuple[CausalModel, Pool, Collator]:
    pool, _, collate = made({"a": "word", "b": "last"}, [0, 1], "right")
    return toy(), pool, collate


def loader(
    parts: tuple[CausalModel, Pool, Collator],
    kind: type[PairLoader] = TrainLoader,
    length: int = 22,
    rank: int = 0,
    world: int = 1,
) -> Any:
    model, pool, collate = parts

    def pairs(epoch: int) -> Pairs:
        return make_pairs(model, pool, Design(["word", "other"], None), 22, np.random.default_rng([7, epoch]))

    return kind(pairs, collate, 4, length, rank, world)


def test_an_epoch_covers_every_row_once(parts: tuple[CausalModel, Pool, Collator]) -> None:
    whole = loader(parts)
    batches = list(whole)
    assert len(whole) == len(batches) == 6
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert [row for batch in batches for row in batch.rows.tolist()] == list(range(22))


def test_epochs_differ_and_repeat_in_another_run(parts: tuple[CausalModel, Pool, Collator]) -> None:
    one, other = loader(parts), loader(parts)
    first, second = list(one), list(one)
    assert not equal(first, second)
    assert equal(first, list(other))
    assert equal(second, list(other))


def test_validation_is_the_same_every_time(parts: tuple[CausalModel, Pool, Collator]) -> None:
    fixed = loader(parts, PairLoader)
    first = list(fixed)
    assert equal(first, list(fixed))
    next(iter(fixed))  # a sanity check that stops early leaves no trace
    assert equal(first, list(fixed))


@pytest.mark.parametrize(("epoch", "k"), [(0, 0), (0, 1), (0, 5), (1, 0), (1, 2), (2, 4)])
def test_resume_within_an_epoch(parts: tuple[CausalModel, Pool, Collator], epoch: int, k: int) -> None:
    reference, stopped = loader(parts), loader(parts)
    epochs = [list(reference) for _ in range(epoch + 3)]
    for _ in range(epoch):
        list(stopped)
    iterator = iter(stopped)
    for _ in range(k):
        next(iterator)
    fresh = loader(parts)
    fresh.load_state_dict(stopped.state_dict())
    assert equal(list(fresh), epochs[epoch][k:])
    assert equal(list(fresh), epochs[epoch + 1])
    assert equal(list(fresh), epochs[epoch + 2])


@pytest.mark.parametrize("exhausted", [True, False])
def test_resume_at_the_end_of_an_epoch(parts: tuple[CausalModel, Pool, Collator], exhausted: bool) -> None:
    reference, stopped = loader(parts), loader(parts)
    epochs = [list(reference) for _ in range(3)]
    iterator = iter(stopped)
    for _ in range(6):
        next(iterator)
    if exhausted:
        assert next(iterator, None) is None
    fresh = loader(parts)
    fresh.load_state_dict(stopped.state_dict())
    assert equal(list(fresh), epochs[1])
    assert equal(list(fresh), epochs[2])


def test_state_before_the_first_batch(parts: tuple[CausalModel, Pool, Collator]) -> None:
    fresh = loader(parts)
    fresh.load_state_dict(loader(parts).state_dict())
    reference = loader(parts)
    assert equal(list(fresh), list(reference))
    assert equal(list(fresh), list(reference))


def test_a_resumed_run_that_stops_again(parts: tuple[CausalModel, Pool, Collator]) -> None:
    first = list(loader(parts))
    state = {"epoch": 0, "next": 2}
    for k in (2, 3, 4):
        fresh = loader(parts)
        fresh.load_state_dict(state)
        assert equal([next(iter(fresh))], first[k : k + 1])
        state = fresh.state_dict()


@pytest.mark.parametrize("kind", [PairLoader, TrainLoader])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows(
    parts: tuple[CausalModel, Pool, Collator], kind: type[PairLoader], world: int
) -> None:
    whole = list(loader(parts, kind))
    rows: list[int] = []
    for rank in range(world):
        batches = list(loader(parts, kind, rank=rank, world=world))
        rows += [row for batch in batches for row in batch.rows.tolist()]
        for batch in batches:  # they are the same pairs as in one process
            for b, row in enumerate(batch.rows.tolist()):
                there = whole[row // 4]
                assert row_tokens(batch.base, b) == row_tokens(there.base, row % 4)
                assert row_tokens(batch.sources[0], b) == row_tokens(there.sources[0], row % 4)
    assert sorted(rows) == list(range(22))


def test_resume_in_one_process_of_two(parts: tuple[CausalModel, Pool, Collator]) -> None:
    reference = loader(parts, rank=1, world=2)
    epochs = [list(reference) for _ in range(2)]
    fresh = loader(parts, rank=1, world=2)
    fresh.load_state_dict({"epoch": 0, "next": 1})
    assert equal(list(fresh), epochs[0][1:])
    assert equal(list(fresh), epochs[1])


def test_equal_can_say_no(parts: tuple[CausalModel, Pool, Collator]) -> None:
    batches = list(loader(parts))
    assert equal(batches, batches)
    assert not equal(batches, batches[1:])
    assert not equal(batches[:1], batches[1:2])


# --- several sources ---


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_placement_looks_into_the_source_of_its_variable(side: Padding) -> None:
    pool, _, collate = made({"a": "word", "b": "other"}, [0, 1], side)
    pairs = make_pairs(toy(), pool, Design(["word", "other"], None, together=2), 40, np.random.default_rng(1))
    batch = collate(pairs, list(range(8)))
    assert len(batch.sources) == 2
    assert batch.active.all()
    for b in range(8):
        assert batch.source_of[b].tolist() == [pairs.variables[b].tolist().index(v) for v in (0, 1)]
        for p in range(2):
            k = int(batch.source_of[b, p])
            tokens, prompt = batch.sources[k], int(pairs.sources[b, k])
            start = int(tokens.last[b] + 1 - tokens.mask[b].sum())
            assert int(batch.source_positions[b, p, 0]) == start + pool.positions[p][prompt][0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_stage_edits_the_next_source_and_the_last_one_the_base(side: Padding) -> None:
    pool, _, collate = made({"late": "other", "early": "word"}, [1, 0], side)
    collate.stage = (1, 0)
    design = Design(["other", "word"], None, stages=[["word"], ["other"]])
    pairs = make_pairs(toy(), pool, design, 40, np.random.default_rng(1))
    batch = collate(pairs, list(range(8)))
    assert batch.stage == (1, 0)
    assert batch.active.all()
    assert batch.source_of.tolist() == [[1, 0]] * 8

    def column(tokens: Tokens, b: int, prompt: int, p: int) -> int:
        return int(tokens.last[b] + 1 - tokens.mask[b].sum()) + pool.positions[p][prompt][0]

    zero, one = batch.sources
    for b in range(8):
        base, first, second = int(pairs.base[b]), *pairs.sources[b].tolist()
        assert batch.base_positions[b, :, 0].tolist() == [column(batch.base, b, base, 0), column(one, b, second, 1)]
        assert batch.source_positions[b, :, 0].tolist() == [column(one, b, second, 0), column(zero, b, first, 1)]


def test_isolated_variables_have_the_label_of_their_own_interchange() -> None:
    pool, _, collate = made({"a": "word", "b": "other"}, [0, 1], "right")
    pairs = make_pairs(toy(), pool, Design(["word", "other"], None, isolate=True), 40, np.random.default_rng(1))
    batch = collate(pairs, list(range(40)))
    assert batch.isolate_active is not None
    assert batch.isolate_labels is not None
    assert torch.equal(batch.isolate_active, ~batch.active)  # of two variables the other one
    tokenizer, words = tiny_tokenizer(), pool.setting["word"]
    for b in range(40):
        # the answer is the word: set from the source where the isolated variable is the word, else the base's own
        row = int(pairs.source[b]) if pairs.variable[b] == 1 else int(pairs.base[b])
        said = tokenizer.decode([t for t in batch.isolate_labels[b].tolist() if t != IGNORED])
        assert said == f" {WORDS[int(words[row])]}"
    assert {0, 1} == set(pairs.variable.tolist())


@pytest.mark.parametrize("side", ["left", "right"])
def test_two_variables_from_one_source(side: Padding) -> None:
    pool, _, collate = made({"a": "word", "b": "other"}, [0, 1], side)
    design = Design(["word", "other"], None, together=2, one_source=True)
    pairs = make_pairs(toy(), pool, design, 40, np.random.default_rng(1))
    batch = collate(pairs, list(range(8)))
    (source,) = batch.sources
    assert batch.active.all()
    assert not batch.source_of.any()
    for b in range(8):
        start = int(source.last[b] + 1 - source.mask[b].sum())
        for p in range(2):
            assert int(batch.source_positions[b, p, 0]) == start + pool.positions[p][int(pairs.sources[b, 0])][0]


# --- surface forms ---


def with_forms(pairs: Pairs, forms: dict[str, list[str]]) -> Pairs:
    return replace(pairs, candidates=[[forms.get(answer, answer) for answer in row] for row in pairs.candidates])


def test_forms_are_candidates_of_one_answer() -> None:
    pool, pairs, collate = made({"a": "word"}, [0], "right")
    plain = collate(pairs, list(range(12)))
    assert plain.answer_of is None
    # the second answer has three forms, the fourth two, of which the first has several tokens
    forms = {" park": [" park", " Parks", " dogs"], " Wednesdayish": [" Wednesdayish", " he"]}
    batch = collate(with_forms(pairs, forms), list(range(12)))
    tokenizer = tiny_tokenizer()
    assert batch.answer_of is not None
    assert batch.answer_of.tolist() == [[0, 1, 1, 1, 2, 3, 3, 4]] * 12
    for row in batch.candidates.tolist():
        said = [tokenizer.decode([t for t in c if t != IGNORED]) for c in row]
        assert said == [" Mary", " park", " Parks", " dogs", " Johnzyx", " Wednesdayish", " he", " dog"]
    # labels number answers, as before, and the first form is what is trained on
    for one, other in zip(
        (batch.label, batch.base_label, batch.labels), (plain.label, plain.base_label, plain.labels), strict=True
    ):
        assert torch.equal(one, other)
    assert len(set(batch.label.tolist())) > 2
    best = torch.full(batch.candidates.shape[:2], -1.0)
    best[:, 6] = 0.0  # " he", a form of " Wednesdayish"
    assert batch.winners(best).tolist() == [3] * 12
    assert len(pool) == 40


def test_rows_with_other_numbers_of_forms() -> None:
    _, pairs, collate = made({"a": "word"}, [0], "right")
    pairs = replace(
        pairs,
        candidates=[[[" Mary", " he"], " dog"] if i % 2 else [" park", " dog"] for i in range(40)],
        label=[i % 2 for i in range(40)],
        base_label=[0] * 40,
    )
    batch = collate(pairs, [0, 1])
    assert batch.answer_of is not None
    assert batch.answer_of.tolist() == [[0, 1, -1], [0, 0, 1]]
    assert (batch.candidates[:, :, 0] == IGNORED).tolist() == [[False, False, True], [False, False, False]]
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(row.tolist()) for row in batch.labels] == [" park", " dog"]


# --- inputs that are no text ---


def numbers(n: int = 6) -> Pairs:
    """Pairs written by hand: the label is the source's class, the base's own without intervention."""
    base, source = np.arange(n) % 4, (np.arange(n) * 3 + 1) % 4
    return Pairs(
        base=base,
        sources=source[:, None],
        variables=np.zeros((n, 1), dtype=np.int64),
        flipped=base != source,
        candidates=[[0, 1, 2, 3]] * n,  # type: ignore[list-item]
        label=source.tolist(),
        base_label=base.tolist(),
    )


def test_vectors() -> None:
    inputs = np.arange(12, dtype=np.float32).reshape(4, 3)
    pool = input_pool(Arrays(inputs), {"a": "last", "b": 0}, first=20)
    batch = Collator(pool, Classes(), [0, 0], 0, "left")(numbers(), [5, 0, 2])
    (source,) = batch.sources
    assert isinstance(batch.base, Values)
    assert isinstance(source, Values)
    assert batch.base.inputs.tolist() == [[3, 4, 5], [0, 1, 2], [6, 7, 8]]  # rows 1, 0, 2
    assert batch.base.prompts is not None
    assert batch.base.prompts.tolist() == [21, 20, 22]
    assert source.inputs.tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]  # rows 0, 1, 3
    for positions in (batch.base_positions, batch.source_positions):
        assert positions.tolist() == [[[0], [0]]] * 3
    assert batch.position_mask.all()
    assert batch.candidates.tolist() == [[[0], [1], [2], [3]]] * 3
    assert batch.labels.tolist() == [[0], [1], [3]]
    assert batch.label.tolist() == [0, 1, 3]
    assert batch.base_label.tolist() == [1, 0, 2]
    assert batch.answer_of is None


def test_images_and_named_classes() -> None:
    pool = input_pool(Arrays(np.zeros((4, 1, 8, 8), np.float32)), {"a": "last"})
    pairs = replace(
        numbers(), candidates=[["no", "yes"]] * 6, label=[1, 0, 1, 0, 1, 0], base_label=[0] * 6, flipped=np.ones(6)
    )
    batch = Collator(pool, Classes({"no": 5, "yes": 2}.__getitem__), [0], 0, "right")(pairs, [0, 1])
    assert batch.base.inputs.shape == (2, 1, 8, 8)
    assert batch.candidates.tolist() == [[[5], [2]]] * 2
    assert batch.labels.tolist() == [[2], [5]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_symbol_sequences(side: Padding) -> None:
    ids = np.array([[2, 0, 3, 1], [3, 0, 2, 1], [2, 0, 2, 1], [3, 0, 3, 1]])
    pool = input_pool(symbols(ids, {"x": (0, 1), "y": (2, 3)}), {"a": "y", "b": ["x", "last"]})
    batch = Collator(pool, Classes(), [0, 0], 0, side)(numbers(), [0, 1])
    assert isinstance(batch.base, Tokens)
    assert batch.base.ids.tolist() == ids[:2].tolist()
    assert batch.base.mask.all()
    assert batch.base_positions.tolist() == [[[2, 0], [0, 3]]] * 2
    assert batch.position_mask.tolist() == [[[True, False], [True, True]]] * 2
    assert batch.labels.tolist() == [[1], [0]]


def test_two_answers_of_one_class() -> None:
    with pytest.raises(IITKitError, match=r"candidates 'no' and 'never' are one class \(0\): a test needs two"):
        Classes({"no": 0, "yes": 1, "never": 0}.__getitem__).choice(["no", "yes", "never"])
    typed = Classes(lambda value: {(bool, True): 3, (int, 1): 4}[type(value), value])
    assert [typed.choice([value]).tokens for value in (True, 1)] == [[(3,)], [(4,)]]  # True is not 1
    with pytest.raises(IITKitError, match="the pool is empty"):
        input_pool(Arrays(np.zeros((0, 2))), {"a": 0})
