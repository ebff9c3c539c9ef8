"""The task: a causal model with a prompt, and how its words are split."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from iitkit.causal import CausalModel
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError

SPLITS = ("train", "validation", "test")


class Task(ABC):
    """A causal model with a prompt. Subclass it, say the model, and name the class in YAML.

    Class attributes:
        split_by: exogenous variables whose words no two splits share. A word that several of them use goes to one
            split for all. Words of other variables (and all flags) are common to the splits.
        held_out_templates: how many of the last templates only ``test_templates`` uses.
    """

    split_by: ClassVar[Sequence[str]] = ()
    held_out_templates: ClassVar[int] = 0

    def __init__(self) -> None:
        self.model = self.causal_model().compile()
        for name in self.split_by:
            self.model.check_variable(name, f"{type(self).__name__}.split_by")
        if not 0 <= self.held_out_templates < len(self.model.templates):
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
        seen = len(self.model.templates) - self.held_out_templates
        return list(range(seen, len(self.model.templates)) if held_out else range(seen))

    def split(
        self, generator: np.random.Generator, shares: Sequence[float] = (0.6, 0.2, 0.2)
    ) -> dict[str, dict[str, Codes]]:
        """Divide the words of :attr:`split_by` among the splits.

        Every split keeps the proportions of what the model computes from such a word alone (a name's gender, say).

        Args:
            generator: shuffles the words.
            shares: of train, validation and test; their sum is 1.

        Returns:
            Split → variable → codes it may take.

        Raises:
            IITKitError: too few words for some split.
        """
        groups: dict[tuple[Hashable, ...], list[Hashable]] = {}
        for name in self.split_by:
            for value, stratum in self._strata(name):
                members = groups.setdefault(stratum, [])
                if not any(value in group for group in groups.values()):
                    members.append(value)
        where: dict[Hashable, str] = {}
        for members in groups.values():
            order = generator.permutation(len(members))
            bounds = np.round(np.cumsum([0.0, *shares]) * len(members)).astype(int)
            for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
                where.update({members[i]: split for i in order[start:stop].tolist()})
        found: dict[str, dict[str, Codes]] = {split: {} for split in SPLITS}
        for name in self.split_by:
            values = self.model.exogenous[name].values
            for split in SPLITS:
                codes = [i for i, value in enumerate(values) if where[value] == split]
                if not codes:
                    raise IITKitError(
                        f"{self.name}: no word of {name!r} ({len(values)} words) is left for the {split} split: "
                        "enlarge the word list"
                    )
                found[split][name] = np.asarray(codes, dtype=np.int64)
        return found

    def _strata(self, name: str) -> list[tuple[Hashable, tuple[Hashable, ...]]]:
        """Each word of a variable with the values of what is computed from it alone, where few words differ in it."""
        domain = self.model.exogenous[name]
        alone = [m for m in self.model.mechanisms.values() if m.parents == [name] and len(m.domain) * 4 <= len(domain)]
        return [
            (value, (name, *(m.domain.values[int(m.table[i])] for m in alone if m.table is not None)))
            for i, value in enumerate(domain.values)
        ]


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
