"""The task: a causal model with a prompt, and how its words are split."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from iitkit.causal import CausalModel
from iitkit.causal.splits import SPLITS, By, Share, check_split_by, divide
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError

__all__ = ["SPLITS", "Task", "words"]


class Task(ABC):
    """A causal model with a prompt. Subclass it, say the model, and name the class in YAML.

    Class attributes:
        split_by: what no two splits share: an exogenous variable's words (a word that several of them use goes to one
            split for all), a tuple of variables for combinations of their values, ``template`` for templates. Words of
            other variables (and all flags) are common to the splits; with nothing here, so are the prompts.
        held_out_templates: how many of the last templates only ``test_templates`` uses.
    """

    split_by: By = ()
    held_out_templates: int = 0

    def __init__(self) -> None:
        self.model = self.causal_model().compile()
        check_split_by(self.model, self.split_by, f"{type(self).__name__}.split_by")
        if self.held_out_templates and not 0 <= self.held_out_templates < len(self.model.templates):
            raise IITKitError(
                f"{type(self).__name__}: {self.held_out_templates} held-out templates of {len(self.model.templates)}: "
                "at least one must be left for training"
            )

    @property
    def name(self) -> str:
        """The registered name."""
        return type(self).__name__

    @abstractmethod
    def causal_model(self) -> CausalModel:
        """Return the hypothesis."""

    def templates(self, held_out: bool) -> list[int]:
        """Return the indices of the held-out templates, or of the others."""
        n = max(len(self.model.templates), 1)  # an encoding counts as one
        seen = n - self.held_out_templates
        return list(range(seen, n) if held_out else range(seen))

    def split(
        self, generator: np.random.Generator, shares: Sequence[float] = (0.6, 0.2, 0.2)
    ) -> dict[str, dict[str, Codes]]:
        """Divide the words of :attr:`split_by` among the splits.

        Args:
            generator: shuffles the words.
            shares: of train, validation and test; their sum is 1.

        Returns:
            Split → variable → codes it may take.

        Raises:
            IITKitError: too few words for some split.
        """
        return {split: share.among for split, share in self.divide(generator, shares).items()}

    def divide(
        self,
        generator: np.random.Generator,
        shares: Sequence[float] = (0.6, 0.2, 0.2),
        by: By | None = None,
    ) -> dict[str, Share]:
        """Divide words, combinations and templates among train, validation and test; see ``iitkit.causal.splits``.

        Args:
            generator: shuffles.
            shares: of train, validation and test; their sum is 1.
            by: what to divide; :attr:`split_by` unless said.

        Raises:
            IITKitError: an unknown variable, or too few words, combinations or templates for some split.
        """
        by = self.split_by if by is None else by
        check_split_by(self.model, by, f"{self.name}.split_by")
        try:
            return divide(self.model, by, generator, shares, self.templates(held_out=False))
        except IITKitError as error:
            raise IITKitError(f"{self.name}: {error}") from error


@cache
def words(name: str) -> list[dict[str, str]]:
    """Return the rows of a word list of ``datasets/words``.

    Args:
        name: the list, e.g. ``"names"``.

    Raises:
        IITKitError: a list that is not there.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_share" / "datasets", package.parent / "datasets"):
        file = root / "words" / f"{name}.jsonl"
        if file.is_file():
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    raise IITKitError(f"word list {name!r} is not installed: expected datasets/words/{name}.jsonl beside the package")
