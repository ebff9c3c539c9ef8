"""The hypothesis: causal models, prompts with spans, sampling, interchange labels, rivals. Knows no networks."""

from iitkit.causal.encodings import Encoding, Images, Symbols, Vectors
from iitkit.causal.hypotheses import Disagreement
from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Chain, Plan, Together
from iitkit.causal.sampling import draw_sources, sample_inputs, sample_sources
from iitkit.causal.template import Template, Text
from iitkit.causal.variables import Open

__all__ = [
    "CausalModel",
    "Chain",
    "Disagreement",
    "Encoding",
    "Images",
    "Open",
    "Plan",
    "Setting",
    "Symbols",
    "Template",
    "Text",
    "Together",
    "Vectors",
    "draw_sources",
    "sample_inputs",
    "sample_sources",
]
