"""Sentiment: does the network sum a review up in one direction, and does "not" turn it round?"""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.tasks.base import Task, words

TEMPLATES = [
    "The {thing} {was} {adjective}. Overall, this review is",
    "The {thing} {was} {adjective}. The review was",
    "I think the {thing} {was} {adjective}. The sentiment of this review is",
    "The {thing} {was} {adjective}, so the review was",  # held out
]
OPPOSITE = {"positive": "negative", "negative": "positive"}


class Sentiment(Task):
    """``The film was wonderful. Overall, this review is`` → `` positive`` or `` negative``.

    Variables: ``thing``, ``adjective``, ``negated`` (always false unless ``negation``; all exogenous), ``was`` (``was``
    or ``was not``), ``polarity`` (of the adjective: positive or negative), ``sentiment`` (the answer: the polarity,
    turned round where the review is negated, which is an exclusive or).
    After Tigges et al., 2023, https://arxiv.org/abs/2310.15154.

    Args:
        negation: whether half of the reviews say ``was not``.
    """

    split_by = ("adjective", "thing")
    held_out_templates = 1

    def __init__(self, negation: bool = False) -> None:
        self.negation = negation
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Adjective → polarity; (polarity, negated) → sentiment."""
        polarities = {row["adjective"]: row["sentiment"] for row in words("adjectives")}
        model = CausalModel(
            prompt=TEMPLATES,
            output="sentiment",
            surface={"positive": " positive", "negative": " negative"},
        )
        model.variables(
            thing=[row["thing"] for row in words("things")],
            adjective=list(polarities),
            negated=[False, True] if self.negation else [False],
        )

        @model.mechanism
        def polarity(adjective: str) -> str:
            return polarities[adjective]

        @model.mechanism
        def was(negated: bool) -> str:
            return "was not" if negated else "was"

        @model.mechanism(domain=["positive", "negative"])
        def sentiment(polarity: str, negated: bool) -> str:
            return OPPOSITE[polarity] if negated else polarity

        return model
