"""Pairs that are drawn from a task's causal model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal import CausalModel, Setting, Symbols, Text, sample_inputs
from iitkit.causal.hypotheses import Disagreement, Hypothesis
from iitkit.causal.inputs import check_varying, groups_of
from iitkit.causal.sampling import take
from iitkit.causal.splits import By, Share, audit
from iitkit.causal.variables import Codes
from iitkit.data.pairs import Design, Pairs, candidate_answers, make_pairs
from iitkit.data.source import SPLITS, generator
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.tasks import Task


@dataclass(frozen=True)
class Drawn:
    """A split's inputs: what pairs are made of.

    Args:
        setting: every variable's codes, [N] each.
        templates: template of each, [N].
    """

    setting: Setting
    templates: Codes

    def __len__(self) -> int:
        return len(self.templates)

    def taken(self, rows: Codes) -> Drawn:
        """Return only the given inputs."""
        return Drawn(take(self.setting, rows), self.templates[rows])


@dataclass(frozen=True)
class Drawing:
    """How inputs are drawn.

    Args:
        sizes: number of prompts in each split, at most.
        shares: of the words that train, validation and test get.
        split_by: what the splits are disjoint in; the task's own unless said.
        seed: of all that is drawn.
    """

    sizes: Mapping[str, int]
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    split_by: By | None = None
    seed: int = 0


class TaskPairs:
    """Pairs of a task; see :class:`iitkit.data.source.PairSource`.

    Args:
        task: the causal model with its prompt.
        drawing: how its inputs are drawn.
        design: what the pairs are like; its variables are those of a call.
        rivals: other causal models of the same inputs.
    """

    def __init__(self, task: Task, drawing: Drawing, design: Design, rivals: Sequence[Task] = ()) -> None:
        self.task, self.model, self.drawing = task, task.model, drawing
        self.by: By = task.split_by if drawing.split_by is None else drawing.split_by
        self.rivals: dict[str, tuple[CausalModel, str]] = {
            f"{rival.name}.{variable}": (rival.model, variable)
            for rival in rivals
            for variable in rival.model.mechanisms
        }
        self.design = replace(design, rivals=self.rivals)
        known = [*self.model.domains, *self.rivals, "output", "no_change"]
        for name in design.tell_apart:
            if name not in known:
                raise IITKitError(
                    f"data.tell_apart: {name!r} is no hypothesis.{did_you_mean(name, known)} "
                    f"Expected {choices(known, 20)}"
                )
        try:
            check_varying(self.model, design.differ_in)
        except IITKitError as error:
            raise IITKitError(f"data.{error}") from error
        self._shares: dict[str, Share] | None = None
        self._drawn: dict[str, Drawn] = {}

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def spans(self) -> list[str]:
        """The prompt's slots."""
        return self.model.slots

    def splits(self) -> list[str]:
        """Return the splits: ``test_templates`` only where templates are held out and pairs of them wanted."""
        held_out = bool(self.task.held_out_templates) and self.drawing.sizes.get("test_templates", 0) > 0
        return [split for split in SPLITS if split != "test_templates" or held_out]

    def share(self, split: str) -> Share:
        """Return what a split may use."""
        if self._shares is None:
            self._shares = self.task.divide(generator(self.drawing.seed, "words"), self.drawing.shares, self.by)
        if split == "test_templates":
            return replace(self._shares["test"], templates=self.task.templates(held_out=True))
        return self._shares[split]

    def drawn(self, split: str) -> Drawn:
        """Return a split's inputs."""
        if split not in self._drawn:
            share, drawing = self.share(split), self.drawing
            n = max(2, drawing.sizes[split])
            setting, templates = sample_inputs(
                self.model,
                n,
                generator(drawing.seed, "prompts", split),
                share.templates,
                share.among,
                share.where,
                self.design.differ_in,
            )
            found = Drawn(setting, templates)
            if self.design.differ_in:  # an input without another of its group has no source
                groups = groups_of(self.model, setting, templates, self.design.differ_in)
                rows = (np.bincount(groups)[groups] > 1).nonzero()[0]
                if not len(rows):
                    raise IITKitError(
                        f"data.differ_in: no two {split} prompts differ in only {choices(self.design.differ_in)}"
                    )
                found = found.taken(rows)
            self._drawn[split] = found
        return self._drawn[split]

    def prompts(self, split: str) -> tuple[list[Text], Codes, Setting]:
        """See :class:`iitkit.data.source.PairSource`."""
        drawn = self.drawn(split)
        texts = self.model.render(drawn.setting, drawn.templates) if self.model.encoding is None else []
        return texts, drawn.templates, drawn.setting

    def inputs(self, split: str) -> npt.NDArray[Any] | None:
        """See :class:`iitkit.data.source.PairSource`."""
        return None if self.model.encoding is None else self.model.features(self.drawn(split).setting)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Of symbols, each slot's place: its first and one behind its last."""
        return self.model.encoding.spans if isinstance(self.model.encoding, Symbols) else {}

    def truths(self, split: str) -> list[str]:
        """See :class:`iitkit.data.source.PairSource`."""
        return self.model.answers(self.drawn(split).setting, self.model.output)

    def competing(self, split: str, rows: Codes) -> list[list[str]]:
        """See :class:`iitkit.data.source.PairSource`."""
        chosen = take(self.drawn(split).setting, rows)
        return candidate_answers(self.model, chosen, [self.model.answers(chosen, self.model.output)])

    def pairs(
        self, split: str, epoch: int, variables: Sequence[str], n: int | None = None, kept: Codes | None = None
    ) -> Pairs:
        """See :class:`iitkit.data.source.PairSource`; with ``kept``, pairs of these prompts, as rows of them."""
        drawn = self.drawn(split) if kept is None else self.drawn(split).taken(kept)
        return make_pairs(
            self.model,
            drawn,
            replace(self.design, variables=variables),
            len(drawn) if n is None else n,
            generator(self.drawing.seed, "pairs", split, epoch),
        )

    def paired(self, split: str, kept: Codes) -> Codes:
        """Return those of some prompts that still have a source among them."""
        if not self.design.differ_in:
            return kept
        drawn = self.drawn(split).taken(kept)
        groups = groups_of(self.model, drawn.setting, drawn.templates, self.design.differ_in)
        return kept[np.bincount(groups)[groups] > 1]

    # --- what a user should know of the data ---

    def audit(self) -> list[str]:
        """Return what the splits share and what they do not."""
        held = {split: (self.drawn(split).setting, self.drawn(split).templates) for split in self.splits()}
        return audit(self.model, self.by, held, held_out={"test_templates": "test"})

    def distinguish(self, setting: Setting, pairs: Pairs, variables: Sequence[str]) -> Disagreement:
        """Return how often hypotheses predict different labels on pairs of a pool's setting (first sources)."""
        base, source = (
            {name: setting[name][rows] for name in self.model.exogenous} for rows in (pairs.base, pairs.source)
        )
        named: dict[str, Hypothesis] = {name: name for name in variables}
        for name in self.design.tell_apart:
            if name in self.rivals:
                named[name] = self.rivals[name]
            elif name in self.model.domains:
                named[name] = name
        return self.model.distinguish(named, (base, source))
