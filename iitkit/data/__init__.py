"""Counterfactual pairs as tokens, positions and batches; the Lightning DataModule."""

from iitkit.data.datamodule import CounterfactualDataModule, Sizes

__all__ = ["CounterfactualDataModule", "Sizes"]
