"""What a trace says: six rows of tokens, indirect effects, total effects."""

from __future__ import annotations

import numpy as np

from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""The rows that facts are averaged in. A subject's only token is its first and its last, as the prompt's last token is
also the first subsequent one where it is the only one."""


def tokens_of(role: str, subject: tuple[int, int], count: int) -> list[int]:
    """Return the tokens of a row, in a prompt of ``count`` tokens with the subject's first and one behind its last.

    >>> [tokens_of(role, (4, 7), 11) for role in ROLES]
    [[4], [5], [6], [7], [8, 9], [10]]
    >>> [tokens_of(role, (4, 5), 6) for role in ROLES]
    [[4], [], [4], [5], [], [5]]
    """
    start, stop = subject
    last = count - 1
    found = {
        "first subject token": range(start, start + 1),
        "middle subject tokens": range(start + 1, stop - 1),
        "last subject token": range(stop - 1, stop),
        "first subsequent token": range(stop, min(stop + 1, count)),
        "further tokens": range(stop + 1, last),
        "last token": range(last, count),
    }
    return list(found[role])


def by_role(grid: Grid) -> Grid:
    """Average a traced prompt's tokens in the six rows of :data:`ROLES`; a row without a token is missing.

    Raises:
        IITKitError: a grid that is no trace of a single prompt.
    """
    if "position" not in grid.dims or "subject" not in grid.about:
        raise IITKitError("rows of tokens are those of a single traced prompt: the grid has no tokens, or no subject")
    axis, count = grid.dims.index("position"), grid.sizes["position"]
    start, stop = grid.about["subject"]
    shape = [len(ROLES) if dim == "position" else size for dim, size in grid.sizes.items()]
    values = np.full(shape, np.nan)
    failed: dict[tuple[int, ...], str] = {}
    for place, role in enumerate(ROLES):
        tokens = tokens_of(role, (start, stop), count)
        if not tokens:
            continue
        part = np.take(grid.values, tokens, axis)
        known = ~np.isnan(part)
        n = known.sum(axis)
        where = tuple(place if at == axis else slice(None) for at in range(values.ndim))
        values[where] = np.divide(np.nansum(part, axis), n, out=np.full(n.shape, np.nan), where=n > 0)
        for index, line in grid.failed.items():
            cell = (*index[:axis], place, *index[axis + 1 :])
            if index[axis] in tokens and np.isnan(values[cell]):
                failed[cell] = line
    coords = {**grid.coords, "position": list(ROLES)}
    return Grid(values, grid.dims, coords, grid.references, failed, grid.about)


def indirect(grid: Grid) -> Grid:
    """Return indirect effects: each value minus the corrupted run's; the references become effects as well.

    Of facts that is one effect for each; ``.mean("example")`` is the average indirect effect (AIE),
    ``.stderr("example")`` its standard error; the reference ``clean`` is the total effect (ATE).

    Raises:
        IITKitError: a grid without a corrupted run.
    """
    low = grid.reference("corrupt")
    held = {name: numbers - grid.references["corrupt"] for name, numbers in grid.references.items()}
    about = {**grid.about, "effect": "indirect"}
    if "metric" not in grid.dims:
        about["metric"] = f"effect on {grid.about.get('metric', 'value')}"
    return Grid(grid.values - low, grid.dims, grid.coords, held, grid.failed, about)
