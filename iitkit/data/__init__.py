"""Counterfactual pairs as tokens, positions and batches; the Lightning DataModule."""

from iitkit.data.datamodule import CounterfactualDataModule
from iitkit.data.options import Dataset, Sizes

__all__ = ["CounterfactualDataModule", "Dataset", "Sizes"]
