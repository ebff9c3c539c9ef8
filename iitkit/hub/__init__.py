"""Artifacts: what is released, saved and loaded. No Lightning, no pickle."""

from iitkit.hub.artifact import Artifact, load, save

__all__ = ["Artifact", "load", "save"]
