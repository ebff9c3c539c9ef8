"""Artifacts: what is released, saved, loaded, steered with and shared. No Lightning, no pickle."""

from iitkit.hub.artifact import Artifact
from iitkit.hub.loading import load
from iitkit.hub.saving import write_artifact
from iitkit.hub.values import Values

__all__ = ["Artifact", "Values", "load", "write_artifact"]
