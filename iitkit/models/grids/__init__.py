"""Grids: the logits of many cells, each of them the same run with another edit.

A cell is a run of given rows with one or several :class:`Patch` edits. Cells are computed together, by the network's
own code: a cell enters the batch at the layer behind its first edit, at the positions from the leftmost edited one on,
and reads the keys and values of the positions before it from the unedited run. Exact, chosen where it holds; any
other network is run with plain hooks, with the same results.

    engine = Engine(model)
    base, source = engine.run(Rows(base_tokens)), engine.run(Rows(source_tokens))
    cells = [Patch(layer, columns=p, source=source) for layer in range(30) for p in range(9)]
    found = engine.table(base, cells, lambda logits: logits.log_softmax(-1)[..., answer])   # [270, rows]
"""

from iitkit.models.grids.cells import Cell, Patch
from iitkit.models.grids.engine import Engine
from iitkit.models.grids.found import Cost, Found, Part, Progress, total
from iitkit.models.grids.paths import Paths, Receiver
from iitkit.models.grids.rows import Rows
from iitkit.models.grids.run import Run

__all__ = ["Cell", "Cost", "Engine", "Found", "Part", "Patch", "Paths", "Progress", "Receiver", "Rows", "Run", "total"]
