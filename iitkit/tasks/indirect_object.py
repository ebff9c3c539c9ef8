"""Indirect object identification: how does the network find who is given something?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iitkit.causal import CausalModel
from iitkit.tasks.base import Task, words

Strings = npt.NDArray[np.str_]

TEMPLATES = [
    "When {name_a} and {name_b} went to the {place}, {subject} gave a {object} to",
    "After {name_a} and {name_b} went to the {place}, {subject} gave a {object} to",
    "While {name_a} and {name_b} were at the {place}, {subject} handed a {object} to",
    "Then, {name_a} and {name_b} went to the {place}. {subject} gave a {object} to",  # held out
]


class IndirectObject(Task):
    """``When {name_a} and {name_b} went to the {place}, {subject} gave a {object} to`` → the other name.

    Variables: ``name_a``, ``name_b``, ``place``, ``object``, ``io_position`` (first or second: which of the names is
    the indirect object; all exogenous), ``subject`` (the name that is not), ``io_name`` (the name that is not the
    subject), ``answer``. A subject from a source that is neither of the base's names changes nothing, one that is the
    base's indirect object swaps the two. The candidates of a row are the two names of its base. Wang et al., 2022,
    https://arxiv.org/abs/2211.00593.
    """

    split_by = ("name_a", "name_b", "place", "object")
    held_out_templates = 1

    def causal_model(self) -> CausalModel:
        """(Position, names) → subject; (subject, names) → indirect object → answer."""
        names = [row["name"] for row in words("names")]
        model = CausalModel(prompt=TEMPLATES, output="answer", candidates=["answer_a", "answer_b"])
        model.variables(
            io_position=["first", "second"],
            name_a=names,
            name_b=names,
            place=[row["place"] for row in words("places")],
            object=[row["object"] for row in words("objects")],
        )

        @model.mechanism(domain=names)
        def subject(io_position: str, name_a: str, name_b: str) -> str:
            return name_b if io_position == "first" else name_a

        @model.mechanism(domain=names, vectorised=True)
        def io_name(io_position: Strings, subject: Strings, name_a: Strings, name_b: Strings) -> Strings:
            other = np.where(subject == name_a, name_b, name_a)
            known = (subject == name_a) | (subject == name_b)
            return np.where(known, other, np.where(io_position == "first", name_a, name_b))

        @model.mechanism
        def answer(io_name: str) -> str:
            return f" {io_name}"

        @model.mechanism
        def answer_a(name_a: str) -> str:
            return f" {name_a}"

        @model.mechanism
        def answer_b(name_b: str) -> str:
            return f" {name_b}"

        @model.constraint
        def two_names(name_a: str, name_b: str) -> bool:
            return name_a != name_b

        return model
