"""Metrics of interchange interventions and of completions. A leaf: anyone may use it."""

from iitkit.metrics.completions import CompletionScores
from iitkit.metrics.iia import IIA, label_chance, wilson

__all__ = ["IIA", "CompletionScores", "label_chance", "wilson"]
