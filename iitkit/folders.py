"""Where iitkit keeps what later runs use again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return iitkit's cache: ``$IITKIT_CACHE``, else ``$XDG_CACHE_HOME/iitkit``, else ``~/.cache/iitkit``."""
    if own := os.environ.get("IITKIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "iitkit"
