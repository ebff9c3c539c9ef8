"""The hypothesis: causal models, prompt templates with spans, sampling and interchange labels. Knows no networks."""

from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Chain, Plan, Together
from iitkit.causal.sampling import draw_sources, sample_inputs, sample_sources
from iitkit.causal.template import Template, Text

__all__ = [
    "CausalModel",
    "Chain",
    "Plan",
    "Setting",
    "Template",
    "Text",
    "Together",
    "draw_sources",
    "sample_inputs",
    "sample_sources",
]
