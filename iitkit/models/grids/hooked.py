"""The plain way: whole runs of the network with hooks, several units at a time."""

from __future__ import annotations

from torch import Tensor

from iitkit.models.editing import visiting
from iitkit.models.grids.run import Run
from iitkit.models.grids.table import Table, Units
from iitkit.models.runs import call, head_at


def hooked(base: Run, table: Table, units: Units) -> Tensor:
    """Return the logits of units, [U, T, vocabulary]."""
    network = base.network
    rows = base.rows.take(units.row.to(base.rows.tokens.ids.device))
    visits = [(location, visit) for _, location, visit in table.visits(units, "base")]
    with visiting([*network.embedded(rows.embeddings), *visits]), head_at(network.model, rows.reading):
        logits: Tensor = call(network.model, rows.tokens).logits
    return logits
