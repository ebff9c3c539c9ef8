"""Parts whose buffers come from data."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions.parts import Part


def unseen(*shape: int) -> Tensor:
    """Return a buffer that data will fill: NaN, fp32."""
    return torch.full(shape, math.nan, dtype=torch.float32)


class Fitted(Part):
    """A part that is unfitted until data, or stored tensors, have filled its buffers.

    They have their final shapes from the start, filled with NaN, so that a checkpoint fits before and after.
    """

    result: ClassVar[str]
    """The buffer that tells."""

    _known = False

    @property
    def unfitted(self) -> bool:
        """Whether data must be seen first."""
        if self._known:  # read once: on a GPU a look costs a synchronisation
            return False
        result = getattr(self, self.result)
        self._known = result is None or not bool(torch.isnan(result).any())
        return not self._known

    def fit(self, value: Tensor) -> None:
        """Fill the result; it goes on training and saving as a buffer of its own dtype and device.

        Raises:
            IITKitError: a value that is not finite, which would be taken for data not seen yet.
        """
        value = value.to(getattr(self, self.result))
        if not bool(torch.isfinite(value).all()):
            raise IITKitError(
                f"{type(self).__name__} observed activations that are not finite (NaN, or beyond fp32): "
                "run the base in a wider dtype"
            )
        setattr(self, self.result, value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = False
