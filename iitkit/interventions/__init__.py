"""Interventions: nn.Modules that edit an activation. Knows torch and nothing else."""

from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.named import LowRankSubspace, Vanilla

__all__ = ["Intervention", "LowRankSubspace", "SiteInfo", "Vanilla"]
