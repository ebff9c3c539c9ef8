"""LightningModules on one base class that owns the step."""

from iitkit.modules.base import InterventionModule
from iitkit.modules.das import DAS

__all__ = ["DAS", "InterventionModule"]
