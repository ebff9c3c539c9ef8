"""The hypothesis: causal models, prompt templates with spans, sampling and interchange labels. Knows no networks."""

from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.sampling import sample_inputs, sample_sources
from iitkit.causal.template import Template, Text

__all__ = ["CausalModel", "Setting", "Template", "Text", "sample_inputs", "sample_sources"]
