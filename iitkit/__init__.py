"""iitkit: what does this network compute, and where?

Interchange intervention training (IIT) and distributed alignment search (DAS) on Hugging Face models. The names below
are imported when they are first used, so ``import iitkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iitkit.causal import CausalModel
    from iitkit.data import CounterfactualDataModule, Sizes
    from iitkit.errors import IITKitError
    from iitkit.hub import Artifact, load
    from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo, Vanilla
    from iitkit.models.interchange import collect, interchange
    from iitkit.models.loading import load_base
    from iitkit.models.sites import Placement, Site
    from iitkit.modules import DAS
    from iitkit.tasks import Task

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "iitkit.hub",
    "CausalModel": "iitkit.causal",
    "CounterfactualDataModule": "iitkit.data",
    "DAS": "iitkit.modules",
    "IITKitError": "iitkit.errors",
    "Intervention": "iitkit.interventions",
    "LowRankSubspace": "iitkit.interventions",
    "Placement": "iitkit.models.sites",
    "Site": "iitkit.models.sites",
    "SiteInfo": "iitkit.interventions",
    "Sizes": "iitkit.data",
    "Task": "iitkit.tasks",
    "Vanilla": "iitkit.interventions",
    "collect": "iitkit.models.interchange",
    "interchange": "iitkit.models.interchange",
    "load": "iitkit.hub",
    "load_base": "iitkit.models.loading",
}

__all__ = [
    "DAS",
    "Artifact",
    "CausalModel",
    "CounterfactualDataModule",
    "IITKitError",
    "Intervention",
    "LowRankSubspace",
    "Placement",
    "Site",
    "SiteInfo",
    "Sizes",
    "Task",
    "Vanilla",
    "collect",
    "interchange",
    "load",
    "load_base",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iitkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
