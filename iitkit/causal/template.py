"""Prompt templates: text with ``{slots}``, each of which becomes a named span."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from iitkit.errors import IITKitError

RESERVED = ("first", "last", "all")


@dataclass(frozen=True)
class Text:
    """A rendered prompt.

    Args:
        text: the prompt.
        spans: slot name → (first character, one behind the last).
    """

    text: str
    spans: dict[str, tuple[int, int]]


class Template:
    """A prompt template such as ``"The {subject} near the {attractor}"``.

    Args:
        template: the text with its slots.

    Raises:
        IITKitError: no slot, a slot that is no plain name, a slot that stands twice, unbalanced braces.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise IITKitError(f"prompt {template!r}: {error}. Write a literal brace twice") from error
        self.pieces = [(literal, slot) for literal, slot, _, _ in parsed]
        self.slots = [slot for _, slot in self.pieces if slot is not None]
        for literal, slot, form, conversion in parsed:
            if slot is not None and (not slot.isidentifier() or form or conversion):
                raise IITKitError(f"prompt {template!r}: slot after {literal!r} must be a plain variable name")
            if slot in RESERVED:
                raise IITKitError(f"prompt {template!r}: a slot may not be called {slot!r}, which names a position")
        if not self.slots:
            raise IITKitError(f"prompt {template!r} has no slot: write a variable's name in braces")
        if twice := {slot for slot in self.slots if self.slots.count(slot) > 1}:
            raise IITKitError(
                f"prompt {template!r}: slot {sorted(twice)[0]!r} stands twice, so its span would be ambiguous: "
                "give the second place a variable of its own"
            )

    def render(self, values: Mapping[str, object]) -> Text:
        """Return the text with its slots filled and the characters of each slot."""
        text, spans = "", {}
        for literal, slot in self.pieces:
            text += literal
            if slot is not None:
                start = len(text)
                text += str(values[slot])
                spans[slot] = (start, len(text))
        return Text(text, spans)
