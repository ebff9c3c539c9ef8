"""``iitkit sites MODEL``: the components of a network, without loading its weights."""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.errors import IITKitError, choices

USAGE = """\
iitkit sites: which components does a network have, and where?

usage: iitkit sites MODEL

MODEL is a Hub id, a folder, or a model type of transformers (llama, gpt2, …: its default sizes, nothing downloaded).
Weights are not loaded. A placement names a component by layer and component, or any module by its path.
"""

HEADER = ("component", "layers", "module", "side", "width", "heads")


def run(command: str, arguments: Sequence[str]) -> None:
    """Print the table.

    Args:
        command: ``sites``.
        arguments: the model.

    Raises:
        IITKitError: not one model, or one that cannot be found or built.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return
    if len(arguments) != 1 or arguments[0].startswith("-"):
        given = choices(arguments) if arguments else "nothing"
        raise IITKitError(f"sites: expected one model, given {given}: iitkit sites gpt2")
    from iitkit.models.skeleton import skeleton
    from iitkit.models.table import rows, summary, without

    model = skeleton(arguments[0])
    found = rows(model)
    table = [HEADER, *found]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    print(summary(model))
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in without(model, found):
        print(line)
