"""Pronoun gender: does the network keep the gender that a name suggests?"""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.tasks.base import Task, words

TEMPLATES = [
    "Yesterday, {name} walked home because",
    "This morning, {name} was happy because",
    "Today, {name} stayed home because",
    "On Monday, {name} was late because",
    "Last night, {name} felt tired because",  # held out, as is the next
    "We heard that {name} is sick because",
]


class PronounGender(Task):
    """``Yesterday, {name} walked home because`` → `` he`` or `` she``.

    Variables: ``name`` (exogenous), ``gender`` (of the name), ``pronoun`` (the answer). The task follows CausalGym's
    gendered-pronoun task (Arora et al., 2024, https://arxiv.org/abs/2402.12560).
    """

    split_by = ("name",)
    held_out_templates = 2

    def causal_model(self) -> CausalModel:
        """Name → gender → pronoun."""
        genders = {row["name"]: row["gender"] for row in words("names")}
        model = CausalModel(prompt=TEMPLATES, output="pronoun")
        model.variables(name=list(genders))

        @model.mechanism
        def gender(name: str) -> str:
            return genders[name]

        @model.mechanism
        def pronoun(gender: str) -> str:
            return {"female": " she", "male": " he"}[gender]

        return model
