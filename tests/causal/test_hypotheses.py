"""Which hypotheses pairs can tell apart: matrices counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iitkit.causal import CausalModel, sample_inputs
from iitkit.causal.hypotheses import COPY, NO_CHANGE
from iitkit.errors import IITKitError


def tree(swapped: bool = False) -> CausalModel:
    """(a and b) or c; the rival pairs b with c first."""
    model = CausalModel(prompt="{a} {b} {c}", output="answer", surface={True: " yes", False: " no"})
    model.variables(a=[False, True], b=[False, True], c=[False, True])

    if swapped:

        @model.mechanism
        def pair(b: bool, c: bool) -> bool:
            return b and c

        @model.mechanism
        def answer(a: bool, pair: bool) -> bool:
            return a or pair

    else:

        @model.mechanism
        def pair(a: bool, b: bool) -> bool:
            return a and b

        @model.mechanism
        def answer(pair: bool, c: bool) -> bool:
            return pair or c

    return model


def inputs(*rows: str) -> dict[str, list[bool]]:
    """Rows like ``101`` as inputs."""
    return {name: [row[i] == "1" for row in rows] for i, name in enumerate("abc")}


# base, source → label under pair, under c, under both; the source's, the base's
#   110 (1), 000 (0): pair ← 0: 0 · c ← 0: 1 · both: 0 · source 0 · base 1
#   000 (0), 111 (1): pair ← 1: 1 · c ← 1: 1 · both: 1 · source 1 · base 0
#   001 (1), 110 (1): pair ← 1: 1 · c ← 0: 0 · both: 1 · source 1 · base 1
#   100 (0), 001 (1): pair ← 0: 0 · c ← 1: 1 · both: 1 · source 1 · base 0
BASE, SOURCE = inputs("110", "000", "001", "100"), inputs("000", "111", "110", "001")


def test_matrix_by_hand() -> None:
    found = tree().distinguish({"pair": "pair", "c": "c", "both": ["pair", "c"]}, (BASE, SOURCE))
    assert found.names == ["pair", "c", "both", COPY, NO_CHANGE]
    labels = np.array([[0, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0]])
    expected = [[(one != other).mean() for other in labels] for one in labels]
    assert found.matrix.tolist() == expected
    assert found.pairs == 4
    assert found.between("pair", "c") == 0.75
    assert found.between("both", COPY) == 0
    assert found.confounded() == [("both", COPY)]


def test_it_prints_as_a_table() -> None:
    lines = str(tree().distinguish(["pair", "c"], (BASE, SOURCE))).splitlines()
    assert lines[0] == (
        "share of 4 pairs with different labels (columns: 1 pair, 2 c, 3 copy the source's output, 4 no change)"
    )
    assert [line.split() for line in lines[2:4]] == [
        ["pair", "·", "75.0%", "25.0%", "50.0%"],
        ["c", "75.0%", "·", "50.0%", "75.0%"],
    ]


def test_a_rival_model_of_the_same_inputs() -> None:
    model, rival = tree(), tree(swapped=True)
    found = model.distinguish({"a and b": "pair", "b and c": (rival, "pair")}, (BASE, SOURCE))
    # the rival: a or (b and c). 110←000: 1 · 000←111: 1 · 001←110: 0 · 100←001: 1
    assert found.between("b and c", "a and b") == np.mean([0 != 1, 1 != 1, 1 != 0, 0 != 1])
    assert found.between("b and c", COPY) == np.mean([1 != 0, 1 != 1, 0 != 1, 1 != 1])


def test_a_variable_that_is_the_answer() -> None:
    model = tree()
    setting, templates = sample_inputs(model, 8, np.random.default_rng(0))
    pairs = {name: setting[name] for name in "abc"}, {name: setting[name][::-1].copy() for name in "abc"}
    assert model.distinguish(["answer"], pairs).between("answer", COPY) == 0
    same = model.distinguish(["pair"], (pairs[0], pairs[0]))
    assert same.between("pair", NO_CHANGE) == 0
    assert len(templates) == 8


@pytest.mark.parametrize(
    ("hypotheses", "pairs", "message"),
    [
        ([], (BASE, SOURCE), "distinguish: no hypothesis"),
        (["pari"], (BASE, SOURCE), r"intervention 'pari' is no variable\. Did you mean 'pair'\?"),
        (["pair"], (inputs(), inputs()), "distinguish: no pairs"),
        (["pair"], (BASE, inputs("000")), "must have as many rows each"),
    ],
)
def test_wrong_questions(hypotheses: Any, pairs: Any, message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        tree().distinguish(hypotheses, pairs)


def test_a_rival_of_other_inputs() -> None:
    other = CausalModel(prompt="{a} {d}", output="answer", surface={True: " yes", False: " no"})
    other.variables(a=[False, True], d=[False, True])

    @other.mechanism
    def answer(a: bool, d: bool) -> bool:
        return a and d

    with pytest.raises(IITKitError, match="the hypotheses have different inputs: a, b, c and a, d"):
        tree().distinguish({"other": (other, "answer")}, (BASE, SOURCE))
    with pytest.raises(IITKitError, match="no hypothesis 'pari': there are pair, copy the source's output, no change"):
        tree().distinguish(["pair"], (BASE, SOURCE)).between("pair", "pari")
