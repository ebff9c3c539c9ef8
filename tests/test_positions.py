"""Names of positions: hand-worked indices, and errors that help."""

from __future__ import annotations

import pytest

from iitkit.errors import IITKitError
from iitkit.positions import Position, check_spans, listed, resolve, span_name

SPANS = {"name": (2, 5), "place": (7, 8)}  # "name" is tokens 2, 3, 4; "place" is token 7


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("name", [4]),
        ("name.first", [2]),
        ("name.last", [4]),
        ("name.all", [2, 3, 4]),
        ("place", [7]),
        ("place.first", [7]),
        ("place.all", [7]),
        ("last", [9]),
        ("all", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0, [0]),
        (3, [3]),
        (9, [9]),
        (-1, [9]),
        (-10, [0]),
        ("f2+l3", [0, 1, 7, 8, 9]),
        ("f0+l1", [9]),
        ("f1+l0", [0]),
        ([3, 5], [3, 5]),  # two integers are two positions, not a span
        ([5, 3], [5, 3]),  # in the order written
        ((1, 4), [1, 4]),
        ([2], [2]),
        (["name", -2, "f1+l1"], [4, 8, 0, 9]),
        (["place.first", "last"], [7, 9]),
    ],
)
def test_resolve(position: Position, expected: list[int]) -> None:
    assert resolve(position, 10, SPANS) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (16, [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15]),
        (14, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        (13, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),  # token 6 is both the 7th and the 7th last: once
        (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (5, [0, 1, 2, 3, 4]),
        (1, [0]),
    ],
)
def test_first_and_last_seven(length: int, expected: list[int]) -> None:
    assert resolve("f7+l7", length) == expected


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("name", "name"),
        ("name.all", "name"),
        ("name.first", "name"),
        ("last", None),
        ("all", None),
        (-3, None),
        ("f7+l7", None),
        ("f7", "f7"),
        ("name.middle", "name.middle"),
    ],
)
def test_span_name(position: int | str, expected: str | None) -> None:
    assert span_name(position) == expected


@pytest.mark.parametrize(
    ("position", "hint"),
    [
        ("nmae", "Did you mean 'name'?"),
        ("nam.last", "Did you mean 'name.last'?"),
        ("name.frist", "Did you mean 'name.first'?"),
        ("lsat", "Did you mean 'last'?"),
        (["last", "palce"], "Did you mean 'place'?"),
    ],
)
def test_unknown_span_names_the_closest(position: Position, hint: str) -> None:
    with pytest.raises(IITKitError) as caught:
        check_spans(position, list(SPANS), "alignment.x")
    assert hint in str(caught.value)
    assert str(caught.value).startswith("alignment.x: position ")
    assert "Expected one of name, place, 'last', 'all' or an integer" in str(caught.value)
    with pytest.raises(IITKitError, match="is no span of the prompt"):
        resolve(position, 10, SPANS)


def test_known_spans_pass() -> None:
    check_spans(["name", "place.all", "last", "all", -1, "f7+l7"], list(SPANS), "site")
    with pytest.raises(IITKitError, match=r"'name\.middle'"):
        check_spans("name.middle", list(SPANS), "site")


@pytest.mark.parametrize("position", [10, -11, [0, 10]])
def test_index_outside_the_prompt(position: Position) -> None:
    with pytest.raises(IITKitError, match=r"is outside a prompt of 10 tokens"):
        resolve(position, 10, SPANS)


@pytest.mark.parametrize("position", [[], True, [0, True], [1.5], 2.0, None, [None]])
def test_no_position(position: object) -> None:
    with pytest.raises(IITKitError, match="expected the name of a span, 'last', 'all', an integer"):
        listed(position)  # type: ignore[arg-type]


def test_a_position_without_a_token() -> None:
    with pytest.raises(IITKitError, match=r"'f0\+l0' names no token of a prompt of 10 tokens"):
        resolve("f0+l0", 10)


def test_free_text_has_no_spans() -> None:
    assert resolve(["last", 1, "f1+l0"], 4) == [3, 1, 0]
    with pytest.raises(IITKitError, match=r"names token 3 twice in a prompt of 4 tokens: name it once"):
        resolve(["last", 1, "f1+l1"], 4)  # an edit would be written once, its gradient counted twice
    with pytest.raises(IITKitError, match=r"'name' names a span, and this text has none: give an integer"):
        resolve("name", 4)
