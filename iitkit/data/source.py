"""Where pairs come from: a task's causal model, or a dataset that somebody has recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from iitkit.causal import Setting, Text
from iitkit.causal.variables import Codes
from iitkit.data.pairs import Pairs
from iitkit.errors import IITKitError

Split = Literal["train", "validation", "test", "test_templates"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "test_templates")


class PairSource(Protocol):
    """Prompts of each split, and the pairs that an epoch makes of them."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def spans(self) -> list[str]:
        """The names that positions may use."""

    def splits(self) -> list[str]:
        """Return the splits there are."""

    def prompts(self, split: str) -> tuple[Sequence[Text], Codes, Setting]:
        """Return a split's distinct prompts, the template of each [N], and every variable's codes if there are any."""

    def inputs(self, split: str) -> npt.NDArray[Any] | None:
        """Return inputs that are no text: integers [N, S] are symbols, anything else vectors or images; else None."""

    def truths(self, split: str) -> list[str]:
        """Return each prompt's label without intervention, empty where nobody has said."""

    def competing(self, split: str, rows: Codes) -> list[list[str]]:
        """Return the answers that compete behind each of these prompts, its own among them."""

    def pairs(self, split: str, epoch: int, variables: Sequence[str], n: int | None) -> Pairs:
        """Return an epoch's pairs, rows of the split's prompts."""


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """Return a generator of its own for each purpose, the same in every process."""
    if seed < 0:
        raise IITKitError(f"seed {seed}: expected 0 or more")
    numbers = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in key]
    return np.random.default_rng([seed, *numbers])
