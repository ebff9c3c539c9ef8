"""Counterfactual pairs and completions as tokens, positions and batches; the Lightning DataModule.

The names are imported when they are first used: reading a dataset or a prompt does not pay for Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iitkit.data.completions import CompletionDataModule
    from iitkit.data.datamodule import CounterfactualDataModule
    from iitkit.data.options import Dataset, Sizes

_HOMES = {
    "CompletionDataModule": "completions",
    "CounterfactualDataModule": "datamodule",
    "Dataset": "options",
    "Sizes": "options",
}

__all__ = ["CompletionDataModule", "CounterfactualDataModule", "Dataset", "Sizes"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iitkit.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"iitkit.data.{_HOMES[name]}"), name)
