"""iitkit: what does this network compute, and where?

Interchange intervention training (IIT) and distributed alignment search (DAS) on Hugging Face models. The names below
are imported when they are first used, so ``import iitkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iitkit.causal import CausalModel, Images, Open, Symbols, Vectors
    from iitkit.data import CounterfactualDataModule, Dataset, Sizes
    from iitkit.errors import IITKitError
    from iitkit.hub import Artifact, load
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
    from iitkit.models.loading import load_base
    from iitkit.models.sites import Placement, Site
    from iitkit.modules import DAS
    from iitkit.modules.schedules import Schedule
    from iitkit.tasks import Task

__version__ = "0.1.0"

_HOMES = {
    "Addition": "iitkit.interventions",
    "Artifact": "iitkit.hub",
    "BoundlessSubspace": "iitkit.interventions",
    "CausalModel": "iitkit.causal",
    "Collect": "iitkit.interventions",
    "Composed": "iitkit.interventions",
    "ConsReFT": "iitkit.interventions",
    "Constant": "iitkit.interventions",
    "CounterfactualDataModule": "iitkit.data",
    "DAS": "iitkit.modules",
    "Dataset": "iitkit.data",
    "DiReFT": "iitkit.interventions",
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
    "Resample": "iitkit.interventions",
    "RotatedSubspace": "iitkit.interventions",
    "SAEFeatures": "iitkit.interventions",
    "Scale": "iitkit.interventions",
    "Schedule": "iitkit.modules.schedules",
    "Site": "iitkit.models.sites",
    "SiteInfo": "iitkit.interventions",
    "Sizes": "iitkit.data",
    "Skip": "iitkit.interventions",
    "Subtraction": "iitkit.interventions",
    "Symbols": "iitkit.causal",
    "Task": "iitkit.tasks",
    "Vanilla": "iitkit.interventions",
    "Vectors": "iitkit.causal",
    "Zero": "iitkit.interventions",
    "collect": "iitkit.models.interchange",
    "interchange": "iitkit.models.interchange",
    "interchange_stages": "iitkit.models.interchange",
    "intervening": "iitkit.models.generation",
    "load": "iitkit.hub",
    "load_base": "iitkit.models.loading",
}

__all__ = [
    "DAS",
    "Addition",
    "Artifact",
    "BoundlessSubspace",
    "CausalModel",
    "Collect",
    "Composed",
    "ConsReFT",
    "Constant",
    "CounterfactualDataModule",
    "Dataset",
    "DiReFT",
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
    "Resample",
    "RotatedSubspace",
    "SAEFeatures",
    "Scale",
    "Schedule",
    "Site",
    "SiteInfo",
    "Sizes",
    "Skip",
    "Subtraction",
    "Symbols",
    "Task",
    "Vanilla",
    "Vectors",
    "Zero",
    "collect",
    "interchange",
    "interchange_stages",
    "intervening",
    "load",
    "load_base",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iitkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
