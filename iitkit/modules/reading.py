"""Whether a network from scratch can read the data, asked before it runs into them."""

from __future__ import annotations

from typing import Any

from iitkit.errors import IITKitError
from iitkit.models.scratch import Network


def check_network(base: str | Network, data: Any) -> None:
    """Compare a network from scratch with a task's data; other bases are as they are.

    Raises:
        IITKitError: a network that reads no such inputs, or has too few symbols, features, classes or positions.
    """
    task = getattr(data, "task", None)
    if isinstance(base, Network) and task is not None:
        _check_inputs(base, task)
        _check_lengths(base, data)


def _check_inputs(base: Network, task: Any) -> None:
    """Compare a network from scratch with a task's inputs.

    Raises:
        IITKitError: see :meth:`iitkit.models.scratch.Network.check`.
    """
    model = task.model
    encoding, symbols, features, answers = model.encoding, None, None, None
    if hasattr(encoding, "vocabulary"):
        symbols = len(encoding.vocabulary)
    elif encoding is not None:
        ends = [end for _, end in encoding.spans.values()]
        features = max(ends) if ends else None
        domain = model.domains[model.output]
        answers = len(domain.values) if domain.complete else None
        if features is None:
            return
    base.check(symbols, features, answers)


def _check_lengths(base: Network, data: Any) -> None:
    """Compare the longest input of a network from scratch with the data's prompts.

    Raises:
        IITKitError: a prompt, with its answer, of more symbols than the network has positions for.
    """
    most = int(getattr(base, "positions", 0))
    for split, pool in data.pools.items() if most else ():
        rows = getattr(pool.prompts, "ids", None)
        longest = 0 if rows is None else int(rows.lengths.max(initial=0))
        if longest > most:
            raise IITKitError(
                f"base {type(base).__name__}.positions: {most}: a {split} prompt has {longest} tokens: set it to more"
            )
