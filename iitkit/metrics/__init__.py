"""Metrics of interchange interventions. A leaf: anyone may use it."""

from iitkit.metrics.iia import IIA, label_chance, wilson

__all__ = ["IIA", "label_chance", "wilson"]
