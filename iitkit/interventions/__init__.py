"""Interventions: nn.Modules that edit an activation. Knows torch and nothing else."""

from iitkit.interventions.ablations import Collect, Constant, Mean, Noise, Resample, Scale, Skip, Zero
from iitkit.interventions.additive import Addition, LoRA, Subtraction
from iitkit.interventions.base import Intervention
from iitkit.interventions.composed import Composed
from iitkit.interventions.gated import MaskedNeurons, MaskedSubspace, SAEFeatures
from iitkit.interventions.reft import ConsReFT, DiReFT, LoBiReFT, LoReFT, NoDiReFT, NoReFT
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.subspaces import BoundlessSubspace, LowRankSubspace, PCASubspace, RotatedSubspace, Vanilla

__all__ = [
    "Addition",
    "BoundlessSubspace",
    "Collect",
    "Composed",
    "ConsReFT",
    "Constant",
    "DiReFT",
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
    "PCASubspace",
    "Resample",
    "RotatedSubspace",
    "SAEFeatures",
    "Scale",
    "SiteInfo",
    "Skip",
    "Subtraction",
    "Vanilla",
    "Zero",
]
