"""iitkit: what does this network compute, and where?

Interchange intervention training (IIT) and distributed alignment search (DAS) on Hugging Face models. The names below
are imported when they are first used, so ``import iitkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iitkit.analysis.attribution import attribute
    from iitkit.analysis.facts import Fact
    from iitkit.analysis.grid import Grid
    from iitkit.analysis.lens import lens
    from iitkit.analysis.patching import patch
    from iitkit.analysis.paths import patch_paths
    from iitkit.analysis.prompts import Prompt
    from iitkit.analysis.tracing import trace
    from iitkit.analysis.vectors import SteeringVectors, vector
    from iitkit.causal import CausalModel, Images, Open, Symbols, Vectors
    from iitkit.data import CompletionDataModule, CounterfactualDataModule, Dataset, Sizes
    from iitkit.errors import IITKitError
    from iitkit.hub import Artifact, load
    from iitkit.hub.converting import convert
    from iitkit.hub.gguf import to_gguf
    from iitkit.hub.handmade import save
    from iitkit.hub.merging import merge
    from iitkit.interventions import (
        Addition,
        BoundlessSubspace,
        Collect,
        Composed,
        ConsReFT,
        Constant,
        DiReFT,
        Intervention,
        LoBiReFT,
        LoRA,
        LoReFT,
        LowRankSubspace,
        MaskedNeurons,
        MaskedSubspace,
        Mean,
        NoDiReFT,
        Noise,
        NoReFT,
        PCASubspace,
        Resample,
        RotatedSubspace,
        SAEFeatures,
        Scale,
        SiteInfo,
        Skip,
        Subtraction,
        Vanilla,
        Zero,
    )
    from iitkit.models.generation import intervening
    from iitkit.models.interchange import collect, interchange, interchange_stages
    from iitkit.models.loading import load_base, load_network
    from iitkit.models.sites import Placement, Site
    from iitkit.modules import DAS, IIT, ReFT
    from iitkit.modules.schedules import Schedule
    from iitkit.tasks import Task

__version__ = "0.1.0"

_HOMES = {
    "Addition": "iitkit.interventions",
    "Artifact": "iitkit.hub",
    "BoundlessSubspace": "iitkit.interventions",
    "CausalModel": "iitkit.causal",
    "Collect": "iitkit.interventions",
    "CompletionDataModule": "iitkit.data",
    "Composed": "iitkit.interventions",
    "ConsReFT": "iitkit.interventions",
    "Constant": "iitkit.interventions",
    "CounterfactualDataModule": "iitkit.data",
    "DAS": "iitkit.modules",
    "Dataset": "iitkit.data",
    "DiReFT": "iitkit.interventions",
    "Fact": "iitkit.analysis.facts",
    "Grid": "iitkit.analysis.grid",
    "IIT": "iitkit.modules",
    "IITKitError": "iitkit.errors",
    "Images": "iitkit.causal",
    "Intervention": "iitkit.interventions",
    "LoBiReFT": "iitkit.interventions",
    "LoRA": "iitkit.interventions",
    "LoReFT": "iitkit.interventions",
    "LowRankSubspace": "iitkit.interventions",
    "MaskedNeurons": "iitkit.interventions",
    "MaskedSubspace": "iitkit.interventions",
    "Mean": "iitkit.interventions",
    "NoDiReFT": "iitkit.interventions",
    "NoReFT": "iitkit.interventions",
    "Noise": "iitkit.interventions",
    "Open": "iitkit.causal",
    "PCASubspace": "iitkit.interventions",
    "Placement": "iitkit.models.sites",
    "Prompt": "iitkit.analysis.prompts",
    "ReFT": "iitkit.modules",
    "Resample": "iitkit.interventions",
    "RotatedSubspace": "iitkit.interventions",
    "SAEFeatures": "iitkit.interventions",
    "Scale": "iitkit.interventions",
    "Schedule": "iitkit.modules.schedules",
    "Site": "iitkit.models.sites",
    "SiteInfo": "iitkit.interventions",
    "Sizes": "iitkit.data",
    "Skip": "iitkit.interventions",
    "SteeringVectors": "iitkit.analysis.vectors",
    "Subtraction": "iitkit.interventions",
    "Symbols": "iitkit.causal",
    "Task": "iitkit.tasks",
    "Vanilla": "iitkit.interventions",
    "Vectors": "iitkit.causal",
    "Zero": "iitkit.interventions",
    "attribute": "iitkit.analysis.attribution",
    "collect": "iitkit.models.interchange",
    "convert": "iitkit.hub.converting",
    "interchange": "iitkit.models.interchange",
    "interchange_stages": "iitkit.models.interchange",
    "intervening": "iitkit.models.generation",
    "lens": "iitkit.analysis.lens",
    "load": "iitkit.hub",
    "load_base": "iitkit.models.loading",
    "load_network": "iitkit.models.loading",
    "merge": "iitkit.hub.merging",
    "patch": "iitkit.analysis.patching",
    "patch_paths": "iitkit.analysis.paths",
    "save": "iitkit.hub.handmade",
    "to_gguf": "iitkit.hub.gguf",
    "trace": "iitkit.analysis.tracing",
    "vector": "iitkit.analysis.vectors",
}

__all__ = [
    "DAS",
    "IIT",
    "Addition",
    "Artifact",
    "BoundlessSubspace",
    "CausalModel",
    "Collect",
    "CompletionDataModule",
    "Composed",
    "ConsReFT",
    "Constant",
    "CounterfactualDataModule",
    "Dataset",
    "DiReFT",
    "Fact",
    "Grid",
    "IITKitError",
    "Images",
    "Intervention",
    "LoBiReFT",
    "LoRA",
    "LoReFT",
    "LowRankSubspace",
    "MaskedNeurons",
    "MaskedSubspace",
    "Mean",
    "NoDiReFT",
    "NoReFT",
    "Noise",
    "Open",
    "PCASubspace",
    "Placement",
    "Prompt",
    "ReFT",
    "Resample",
    "RotatedSubspace",
    "SAEFeatures",
    "Scale",
    "Schedule",
    "Site",
    "SiteInfo",
    "Sizes",
    "Skip",
    "SteeringVectors",
    "Subtraction",
    "Symbols",
    "Task",
    "Vanilla",
    "Vectors",
    "Zero",
    "attribute",
    "collect",
    "convert",
    "interchange",
    "interchange_stages",
    "intervening",
    "lens",
    "load",
    "load_base",
    "load_network",
    "merge",
    "patch",
    "patch_paths",
    "save",
    "to_gguf",
    "trace",
    "vector",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iitkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
