"""What an intervention may know of the place it is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteInfo:
    """What an intervention may know of the site it is built for.

    Args:
        width: size of the vector that is edited; at a joint site that of all its positions together.
        input_width: size of the module's input, where there is one (LoRA and Skip read it).
        heads: number of heads at the site, 1 where there are none.
        positions: number of positions that are edited as one vector.
        generator: draws starting values; None uses torch's global one.
        stored: tensors of a released intervention while it is rebuilt: what would read a file or draw takes its sizes
            from here instead.
    """

    width: int
    input_width: int | None = None
    heads: int = 1
    positions: int = 1
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    stored: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)
