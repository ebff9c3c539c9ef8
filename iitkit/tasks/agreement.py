"""Agreement: does the network keep the number of the subject across an attractor?"""

from __future__ import annotations

from typing import Literal

from iitkit.causal import CausalModel
from iitkit.causal.splits import By
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task, words

TEMPLATES = {
    "prepositional": [
        "The {subject} near the {attractor}",
        "The {subject} behind the {attractor}",
        "The {subject} beside the {attractor}",  # held out
    ],
    "relative": [
        "The {subject} that the {attractor} {embedded}",
        "Today, the {subject} that the {attractor} {embedded}",
        "I think that the {subject} that the {attractor} {embedded}",  # held out
    ],
}


class Agreement(Task):
    """``The {subject} near the {attractor}`` → `` is`` or `` are``.

    Variables: ``noun``, ``plural``, ``attractor_noun``, ``attractor_plural`` (exogenous), ``subject`` and
    ``attractor`` (the words), ``number`` (of the subject), ``verb`` (the answer). With a relative clause, as in ``The
    {subject} that the {attractor} {embedded}``, also ``embedded_verb`` (exogenous, its plural form) and ``embedded``
    (``helps`` or ``help``, which agrees with the attractor). After Linzen et al., 2016,
    https://arxiv.org/abs/1611.01368; relative clauses as in Marvin and Linzen, 2018, https://arxiv.org/abs/1808.09031.

    Args:
        clause: what stands between subject and verb: a prepositional phrase or an object relative clause.
    """

    split_by: By = ("noun", "attractor_noun")
    held_out_templates = 1

    def __init__(self, clause: Literal["prepositional", "relative"] = "prepositional") -> None:
        if clause not in TEMPLATES:
            raise IITKitError(f"Agreement.clause: {clause!r}: expected prepositional or relative")
        self.clause = clause
        if clause == "relative":
            self.split_by = (*self.split_by, "embedded_verb")
        super().__init__()

    def causal_model(self) -> CausalModel:
        """(Noun, plural) → subject; plural → number → verb; the attractor does not matter."""
        plurals = {row["singular"]: row["plural"] for row in words("nouns")}
        model = CausalModel(prompt=TEMPLATES[self.clause], output="verb")
        model.variables(
            noun=list(plurals), plural=[False, True], attractor_noun=list(plurals), attractor_plural=[False, True]
        )

        @model.mechanism
        def subject(noun: str, plural: bool) -> str:
            return plurals[noun] if plural else noun

        @model.mechanism
        def attractor(attractor_noun: str, attractor_plural: bool) -> str:
            return plurals[attractor_noun] if attractor_plural else attractor_noun

        @model.mechanism
        def number(plural: bool) -> str:
            return "plural" if plural else "singular"

        @model.mechanism
        def verb(number: str) -> str:
            return {"plural": " are", "singular": " is"}[number]

        @model.constraint
        def two_nouns(noun: str, attractor_noun: str) -> bool:
            return noun != attractor_noun

        if self.clause == "relative":
            singulars = {row["plural"]: row["singular"] for row in words("verbs")}
            model.variables(embedded_verb=list(singulars))

            @model.mechanism
            def embedded(embedded_verb: str, attractor_plural: bool) -> str:
                return embedded_verb if attractor_plural else singulars[embedded_verb]

        return model
