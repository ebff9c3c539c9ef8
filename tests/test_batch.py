"""Token rows and batches: hand-worked values under padding on either side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens, Values

RIGHT = Tokens(
    torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]]),
    torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]),
    torch.tensor([10, 11, 12]),
)
LEFT = Tokens(
    torch.tensor([[0, 5, 6, 7], [0, 0, 0, 8], [1, 2, 3, 4]]),
    torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]),
    torch.tensor([10, 11, 12]),
)


def read(tokens: Tokens) -> list[list[int]]:
    """The real tokens of each row, by plain Python."""
    pairs = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
    return [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]


def test_position_ids() -> None:
    assert RIGHT.position_ids.tolist() == [[0, 1, 2, 2], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert LEFT.position_ids.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3]]


def test_last() -> None:
    assert RIGHT.last.tolist() == [2, 0, 3]
    assert LEFT.last.tolist() == [3, 3, 3]
    assert [row[column] for row, column in zip(RIGHT.ids.tolist(), RIGHT.last.tolist(), strict=True)] == [7, 8, 4]


@pytest.mark.parametrize("tokens", [RIGHT, LEFT], ids=["right", "left"])
def test_extended(tokens: Tokens) -> None:
    continuation = torch.tensor([[20, 21], [30, IGNORED], [IGNORED, IGNORED]])
    longer = tokens.extended(continuation)
    assert read(longer) == [[5, 6, 7, 20, 21], [8, 30], [1, 2, 3, 4]]
    assert (longer.ids[longer.mask == 0] == 0).all()  # no IGNORED is ever fed to an embedding
    # the new tokens count on from each row's last
    position = longer.position_ids
    assert [position[row][longer.mask[row].bool()].tolist() for row in range(3)] == [
        [0, 1, 2, 3, 4],
        [0, 1],
        [0, 1, 2, 3],
    ]
    assert longer.mask.dtype == tokens.mask.dtype


def test_extended_stands_directly_behind_the_last_token() -> None:
    longer = RIGHT.extended(torch.tensor([[20], [30], [40]]))
    assert longer.ids.tolist() == [[5, 6, 7, 20, 0], [8, 30, 0, 0, 0], [1, 2, 3, 4, 40]]
    assert longer.mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_extended_by_nothing() -> None:
    assert RIGHT.extended(torch.zeros(3, 0, dtype=torch.long)) is RIGHT


@pytest.mark.parametrize("tokens", [RIGHT, LEFT], ids=["right", "left"])
def test_repeated(tokens: Tokens) -> None:
    twice = tokens.repeated(2)
    assert read(twice) == [[5, 6, 7], [5, 6, 7], [8], [8], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert twice.prompts is not None
    assert twice.prompts.tolist() == [10, 10, 11, 11, 12, 12]
    assert Tokens(tokens.ids, tokens.mask).repeated(2).prompts is None
    assert len(twice) == 6


def batch() -> Batch:
    ones: Tensor = torch.ones(3, dtype=torch.long)
    return Batch(
        base=RIGHT,
        sources=(LEFT, Tokens(RIGHT.ids, RIGHT.mask)),
        active=torch.tensor([[True], [False], [True]]),
        source_of=torch.zeros(3, 1, dtype=torch.long),
        base_positions=torch.tensor([[[2]], [[0]], [[3]]]),
        source_positions=torch.tensor([[[3]], [[3]], [[3]]]),
        position_mask=torch.ones(3, 1, 1, dtype=torch.bool),
        labels=torch.tensor([[4], [5], [6]]),
        candidates=torch.tensor([[[4], [5]], [[5], [4]], [[6], [4]]]),
        label=0 * ones,
        base_label=ones,
        flipped=torch.tensor([True, True, False]),
        variable=0 * ones,
        rows=torch.arange(3),
    )


def test_to_moves_every_tensor() -> None:
    here = batch()
    moved = here.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    tensors += [
        t for tokens in (moved.base, *moved.sources) for t in (tokens.ids, tokens.mask, tokens.prompts) if t is not None
    ]
    assert len(tensors) == 12 + 3 + 3 + 2
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved.sources, tuple)
    assert here.base.ids.device.type == "cpu"  # the original stays


def test_to_keeps_values() -> None:
    same = batch().to(torch.device("cpu"))
    assert read(same.base) == [[5, 6, 7], [8], [1, 2, 3, 4]]
    assert read(same.sources[0]) == [[5, 6, 7], [8], [1, 2, 3, 4]]
    assert same.sources[1].prompts is None
    assert same.labels.tolist() == [[4], [5], [6]]
    assert same.active.tolist() == [[True], [False], [True]]
    assert len(same) == 3


def test_winners_are_answers() -> None:
    """Row 0: the best candidate is the second form of answer 0; row 1: of answer 1; row 2: its only answer."""
    scores = torch.tensor([[-3.0, -1.0, -2.0], [-3.0, -2.0, -1.0], [-1.0, -torch.inf, -torch.inf]])
    forms = replace(batch(), answer_of=torch.tensor([[0, 0, 1], [0, 0, 1], [0, -1, -1]]))
    assert forms.winners(scores).tolist() == [0, 1, 0]
    assert batch().winners(scores).tolist() == [1, 2, 0]  # each candidate is an answer of its own
    moved = forms.to("cpu")
    assert moved.answer_of is not None
    assert moved.answer_of.tolist() == [[0, 0, 1], [0, 0, 1], [0, -1, -1]]


def test_values() -> None:
    values = Values(torch.arange(6.0).reshape(3, 2), torch.tensor([10, 11, 12]))
    assert len(values) == 3
    twice = values.repeated(2)
    assert twice.inputs.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    assert twice.prompts is not None
    assert twice.prompts.tolist() == [10, 10, 11, 11, 12, 12]
    assert Values(values.inputs).repeated(2).prompts is None
    made: Batch[Values] = replace(batch(), base=values, sources=(values,)).to("meta")  # type: ignore[arg-type]
    assert len(made) == 3
    assert {x.device.type for x in (made.base.inputs, made.sources[0].inputs, made.labels)} == {"meta"}
