"""Templates: characters of the spans by hand, and what is no template."""

from __future__ import annotations

import pytest

from iitkit.causal import Template
from iitkit.errors import IITKitError


def test_spans_by_hand() -> None:
    text = Template("The {subject} near the {attractor}!").render({"subject": "dog", "attractor": "cats"})
    assert text.text == "The dog near the cats!"
    assert text.spans == {"subject": (4, 7), "attractor": (17, 21)}


def test_a_word_that_stands_twice_has_two_spans() -> None:
    text = Template("{a} and {b}, {c} gave").render({"a": "Mary", "b": "John", "c": "Mary"})
    assert text.text == "Mary and John, Mary gave"
    assert text.spans == {"a": (0, 4), "b": (9, 13), "c": (15, 19)}


def test_values_that_are_no_strings_and_literal_braces() -> None:
    text = Template("{{x}} = {left}+{right}").render({"left": 12, "right": True})
    assert text.text == "{x} = 12+True"
    assert text.spans == {"left": (6, 8), "right": (9, 13)}


def test_slots_in_the_order_of_the_text() -> None:
    assert Template("{b} {a} {{no}} {c}").slots == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no slot at all", "has no slot"),
        ("only {{literal}} braces", "has no slot"),
        ("", "has no slot"),
        ("{a} and {a}", "slot 'a' stands twice"),
        ("{last} word", "may not be called 'last', which names a position"),
        ("{first} word", "may not be called 'first'"),
        ("{all} words", "may not be called 'all'"),
        ("an {open brace", "Write a literal brace twice"),
        ("a closed} brace {a}", "Write a literal brace twice"),
        ("{} word", "must be a plain variable name"),
        ("{0} word", "must be a plain variable name"),
        ("{a.b} word", "must be a plain variable name"),
        ("{a[0]} word", "must be a plain variable name"),
        ("{a!r} word", "must be a plain variable name"),
        ("{a:>3} word", "must be a plain variable name"),
        ("{two words}", "must be a plain variable name"),
    ],
)
def test_no_template(template: str, message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        Template(template)
    assert message in str(caught.value)
    assert repr(template) in str(caught.value)
