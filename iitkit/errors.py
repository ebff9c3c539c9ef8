"""The one error class that users see, and the hints it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IITKitError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do, in a line or two.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(given: object, options: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the closest option, or an empty string.

    >>> did_you_mean("positon", ["position", "layer"])
    " Did you mean 'position'?"
    """
    close = difflib.get_close_matches(str(given), [str(option) for option in options], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def choices(options: Iterable[object], limit: int = 12) -> str:
    """Return the options as a short readable list, e.g. for ``expected one of …``.

    >>> choices("abc", limit=2)
    'a, b, … (3 in all)'
    """
    names = [str(option) for option in options]
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[:limit])}, … ({len(names)} in all)"
