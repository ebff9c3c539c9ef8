"""Inputs that are no text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iitkit.causal import Images, Symbols, Vectors
from iitkit.errors import IITKitError


def test_symbols_are_numbered_in_the_order_in_which_they_stand() -> None:
    sums = Symbols("{a} + {b} =")
    sums.bind({"a": [3, 1], "b": [1, 2]}, answers=[4, 3, "many"])
    assert sums.vocabulary == ["+", "=", 3, 1, 2, 4, "many"]
    assert sums.encode({"a": [1, 3], "b": [2, 1]}).tolist() == [[3, 0, 4, 1], [2, 0, 3, 1]]
    assert (sums.slots, sums.spans) == (["a", "b"], {"a": (0, 1), "b": (2, 3)})
    assert [sums.label(value) for value in (4, 3, "many")] == [5, 2, 6]


def test_a_declared_vocabulary_fixes_the_ids() -> None:
    sums = Symbols("{a} = {b}", vocabulary=["=", 0, 1, 2])
    sums.bind({"a": [0, 1], "b": [1]}, answers=[2])
    assert sums.encode({"a": [1], "b": [1]}).tolist() == [[2, 0, 2]]
    with pytest.raises(IITKitError, match="5 is not in the vocabulary =, 0, 1, 2"):
        sums.bind({"a": [5], "b": [1]}, answers=[2])
    with pytest.raises(IITKitError, match="True is not in the vocabulary"):
        sums.label(True)  # not 1
    with pytest.raises(IITKitError, match="'=' stands twice in the vocabulary"):
        Symbols("{a}", vocabulary=["=", 0, "="])
    with pytest.raises(IITKitError, match="slot 'b' touches other text: put blanks around it"):
        Symbols("{a} +{b}")


def test_vectors() -> None:
    pair = Vectors("w", "x", "y")
    pair.bind({"w": [(1.0, 2.0)], "x": [5], "y": [(0.5, 0.25, 0.125)]}, answers=["a", "b"])
    rows = pair.encode({"w": [(1.0, 2.0), (3.0, 4.0)], "x": [5, 6], "y": [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]})
    assert rows.dtype == np.float32
    assert rows.tolist() == [[1, 2, 5, 1, 1, 1], [3, 4, 6, 2, 2, 2]]
    assert pair.spans == {"w": (0, 2), "x": (2, 3), "y": (3, 6)}
    assert [pair.label(value) for value in ("b", "a")] == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([(1.0, 2.0), (1.0,)], "vectors: the values of 'w' are no vectors of one width"),
        (["dog", "cat"], "vectors: the values of 'w' are no vectors of one width"),
        ([(1.0, 2.0, 3.0)], "vectors: 'w' has width 3, before 2"),
    ],
)
def test_wrong_vectors(values: Any, message: str) -> None:
    pair = Vectors("w")
    pair.bind({"w": [(1.0, 2.0)]}, answers=[0, 1])
    with pytest.raises(IITKitError, match=message):
        pair.encode({"w": values})
    with pytest.raises(IITKitError, match="output has no value 2: its values are 0, 1"):
        pair.label(2)
    with pytest.raises(IITKitError, match="vectors of nothing: name one variable or more"):
        Vectors()
    with pytest.raises(IITKitError, match="vectors of w, w"):
        Vectors("w", "w")


def test_images() -> None:
    def draw(row: int, bright: bool) -> Any:
        image = np.zeros((1, 2, 3))
        image[0, row] = 2.0 if bright else 1.0
        return image

    dots = Images((1, 2, 3), draw)
    assert dots.slots == ["row", "bright"]
    found = dots.encode({"row": [0, 1, 1], "bright": [True, False, True]})
    assert found.dtype == np.float32
    assert found.tolist() == [[[[2] * 3, [0] * 3]], [[[0] * 3, [1] * 3]], [[[0] * 3, [2] * 3]]]
    with pytest.raises(IITKitError, match=r"draw returned shape \(1, 2, 3\) for .*, expected \(3, 2, 3\)"):
        Images((3, 2, 3), draw).encode({"row": [0], "bright": [True]})
    with pytest.raises(IITKitError, match="the arguments of draw must be named after variables"):
        Images((1, 1, 1), lambda: 0)
