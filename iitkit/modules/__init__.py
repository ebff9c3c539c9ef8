"""LightningModules on one base class that owns the step."""

from iitkit.modules.base import InterventionModule
from iitkit.modules.das import DAS
from iitkit.modules.iit import IIT
from iitkit.modules.reft import ReFT

__all__ = ["DAS", "IIT", "InterventionModule", "ReFT"]
