"""Artifacts: what is released, saved and loaded. No Lightning, no pickle."""

from iitkit.hub.artifact import Artifact, load, save
from iitkit.hub.values import Values

__all__ = ["Artifact", "Values", "load", "save"]
