"""Multiple choice: does the network first find where the right choice stands, and then read its letter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task, words
from iitkit.tasks.functions import mechanism_of
from iitkit.tasks.several import all_differ, draw_different, numbered

QUESTIONS = [
    "The {object_a} is {colour_a} and the {object_b} is {colour_b}. What color is the {object}?",
    "Question: The {object_a} is {colour_a}, and the {object_b} is {colour_b}. Which color is the {object}?",
    "I see the {object_a}, which is {colour_a}, and the {object_b}, which is {colour_b}. "
    "What is the color of the {object}?",  # held out
]


class MultipleChoice(Task):
    """``The book is red and the ring is blue. What color is the book?⏎K. blue⏎D. red⏎…⏎Answer:`` → `` D``.

    Variables (for n choices): ``object_a``, ``object_b``, ``asked`` (first or second: which object the question is
    about), ``choice_1`` … ``choice_n`` (colours, all different), ``symbol_1`` … ``symbol_n`` (letters, all different),
    ``place_a``, ``place_b`` (which choice is the colour of each object; all exogenous), ``colour_a``, ``colour_b``,
    ``object`` (the one that is asked for), ``colour`` (of that object), ``pointer`` (where that colour stands among the
    choices, from 1), ``symbol`` (the letter there, which is the answer). An object or a colour from a source that the
    base does not mention changes nothing. The candidates of a row are the letters of its base.

    This is the multiple-choice task of MIB (Mueller et al., 2025, https://arxiv.org/abs/2504.13151) with a second
    object; ``pointer`` and ``symbol`` are its answer pointer and answer.

    Args:
        choices: number of choices, 2 to 8.
        random_letters: whether the choices have random letters; A, B, … in order otherwise.
    """

    split_by = ("object_a", "object_b")
    held_out_templates = 1

    def __init__(self, choices: int = 4, random_letters: bool = True) -> None:
        if not 2 <= choices <= 8:
            raise IITKitError(f"MultipleChoice.choices: {choices}: expected 2 to 8")
        self.choices, self.random_letters = choices, random_letters
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Object → colour → pointer → symbol."""
        n, objects = self.choices, [row["object"] for row in words("objects")]
        colours = [row["colour"] for row in words("colours")]
        choice, symbol, answer = (numbered(name, n) for name in ("choice", "symbol", "answer"))
        letters = [list(ascii_uppercase) if self.random_letters else [ascii_uppercase[k]] for k in range(n)]
        listed = "".join(f"\n{{{s}}}. {{{c}}}" for s, c in zip(symbol, choice, strict=True))
        model = CausalModel(
            prompt=[f"{question}{listed}\nAnswer:" for question in QUESTIONS],
            output="symbol",
            candidates=answer,
            surface={letter: f" {letter}" for letter in sorted({x for some in letters for x in some})},
        )
        places = list(range(1, n + 1))
        model.variables(
            object_a=objects,
            object_b=objects,
            asked=["first", "second"],
            **dict.fromkeys(choice, colours),
            **dict(zip(symbol, letters, strict=True)),
            place_a=places,
            place_b=places,
        )

        @model.mechanism
        def object(asked: str, object_a: str, object_b: str) -> str:
            return object_a if asked == "first" else object_b

        @model.mechanism(domain=colours)
        def colour(object: str, asked: str, object_a: str, object_b: str, colour_a: str, colour_b: str) -> str:
            if object in (object_a, object_b):
                return colour_a if object == object_a else colour_b
            return colour_a if asked == "first" else colour_b

        def pointer(colour: str, asked: str, place_a: int, place_b: int, *choices: str) -> int:
            if colour in choices:
                return choices.index(colour) + 1
            return place_a if asked == "first" else place_b

        def at(place: int, *values: str) -> str:
            return values[place - 1]

        for x in ("a", "b"):
            model.mechanism(domain=colours)(mechanism_of(f"colour_{x}", [f"place_{x}", *choice], at))
        parents = ["colour", "asked", "place_a", "place_b", *choice]
        model.mechanism(domain=places)(mechanism_of("pointer", parents, pointer))
        model.mechanism(domain=list(dict.fromkeys(x for some in letters for x in some)))(
            mechanism_of("symbol", ["pointer", *symbol], at)
        )
        for one, shown in zip(answer, symbol, strict=True):
            model.mechanism(mechanism_of(one, [shown], str))

        drawn_apart = [["object_a", "object_b"], choice, *([symbol] if self.random_letters else [])]
        different = {"objects": drawn_apart[0], "choices": choice, "symbols": symbol, "places": ["place_a", "place_b"]}
        for name, of in different.items():
            model.constraint(mechanism_of(f"{name}_differ", of, all_differ))

        @model.sampler
        def draw(
            generator: np.random.Generator, size: int, among: Mapping[str, Sequence[Any]]
        ) -> dict[str, Sequence[Any]]:
            drawn = [draw_different(generator, size, among, of) for of in drawn_apart]
            return {name: values for some in drawn for name, values in some.items()}

        return model
