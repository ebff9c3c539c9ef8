"""Tasks that are wrong in one way each; the command line is given them by ``--allow hypotheses``."""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.tasks import Task

THINGS = ["sun", "sea", "fire", "ice", "door", "wall"]


def hypothesis(cold: object, warm: object, things: list[str] | None = None) -> CausalModel:
    """A causal model whose two answers are given."""
    model = CausalModel(prompt="The {kind} {thing} is", output="answer")
    model.variables(kind=["cold", "warm"], thing=things or THINGS)

    @model.mechanism
    def answer(kind: str) -> object:
        return warm if kind == "warm" else cold

    return model


class Sound(Task):
    """Nothing is wrong here."""

    def causal_model(self) -> CausalModel:
        return hypothesis(" he", " she")


class NumberLabel(Task):
    """An answer that is no string, as YAML's bare ``012`` would make it."""

    def causal_model(self) -> CausalModel:
        return hypothesis(" he", 12)


class PrefixLabels(Task):
    """One answer begins the other."""

    def causal_model(self) -> CausalModel:
        return hypothesis(" he", " he she")


class EmptyLabel(Task):
    """An answer without a token."""

    def causal_model(self) -> CausalModel:
        return hypothesis(" he", "")


class FewWords(Task):
    """Two words cannot be split three ways."""

    split_by = ("thing",)

    def causal_model(self) -> CausalModel:
        return hypothesis(" he", " she", ["sun", "sea"])
