"""Agreement: does the network keep the number of the subject across an attractor?"""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.tasks.base import Task, words

TEMPLATES = [
    "The {subject} near the {attractor}",
    "The {subject} behind the {attractor}",
    "The {subject} beside the {attractor}",  # held out
]


class Agreement(Task):
    """``The {subject} near the {attractor}`` → `` is`` or `` are``.

    Variables: ``noun``, ``plural``, ``attractor_noun``, ``attractor_plural`` (exogenous), ``subject`` and
    ``attractor`` (the words), ``number`` (of the subject), ``verb`` (the answer). After Linzen et al., 2016,
    https://arxiv.org/abs/1611.01368.
    """

    split_by = ("noun", "attractor_noun")
    held_out_templates = 1

    def causal_model(self) -> CausalModel:
        """(Noun, plural) → subject; plural → number → verb; the attractor does not matter."""
        plurals = {row["singular"]: row["plural"] for row in words("nouns")}
        model = CausalModel(prompt=TEMPLATES, output="verb")
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

        return model
