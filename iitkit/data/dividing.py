"""Pairs without splits are divided, such that no prompt is in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from iitkit.causal import Text
from iitkit.causal.variables import Codes
from iitkit.data.source import generator
from iitkit.errors import IITKitError, choices

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


class Prompted(Protocol):
    """What is divided: a pair, or an example."""

    @property
    def base(self) -> Text:
        """Its prompt."""

    @property
    def sources(self) -> tuple[Text, ...]:
        """Further prompts."""


Row = TypeVar("Row", bound=Prompted)


def divided(rows: dict[str, list[Row]], name: str, seed: int) -> dict[str, list[Row]]:
    """Return the rows of each split, those that are missing taken from train; no prompt of train is in two of them.

    Args:
        rows: split → its pairs; a single split is divided, whatever it is called.
        name: the dataset, for messages.
        seed: chooses the pairs; the same in any process.

    Raises:
        IITKitError: pairs that are linked by shared prompts into too large groups, or several splits without train.
    """
    if len(rows) == 1:
        rows = {"train": next(iter(rows.values()))}
    missing = [split for split in SHARES if split not in rows]
    if not missing:
        return rows
    if "train" in missing:
        raise IITKitError(f"{name} has the splits {choices(rows)} and no train: name one of its files train")
    shares = {split: share for split, share in SHARES.items() if split in ("train", *missing)}
    every = rows["train"]
    groups = groups_of(every)
    sizes = np.bincount(groups)
    order = generator(seed, "divided").permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large ones first, the small ones even out
    left = {split: share / sum(shares.values()) * len(every) for split, share in shares.items()}
    wanted, given = dict(left), dict.fromkeys(left, 0)
    where = {}
    for k, group in enumerate(order.tolist()):
        empty = [split for split in left if not given[split]]
        split = empty[0] if len(order) - k <= len(empty) else max(left, key=lambda split: left[split])
        where[group] = split
        given[split] += int(sizes[group])
        left[split] -= int(sizes[group])
    if any(given[split] < wanted[split] / 2 for split in wanted):
        raise IITKitError(
            f"{name}: {int(sizes.max())} of {len(every)} pairs are linked by shared prompts, so they cannot be divided "
            f"into {choices(shares)} without a prompt in two: give files named by split"
        )
    divided: dict[str, list[Row]] = {split: [] for split in shares}
    for row, group in zip(every, groups.tolist(), strict=True):
        divided[where[group]].append(row)
    return {**rows, **divided}


def groups_of(rows: Sequence[Prompted]) -> Codes:
    """Return a number for each pair, equal for pairs that share a prompt, or are linked by pairs that do."""
    parent: list[int] = []
    known: dict[str, int] = {}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    firsts = []
    for row in rows:
        nodes = []
        for text in (row.base, *row.sources):
            node = known.setdefault(text.text, len(known))
            if node == len(parent):
                parent.append(node)
            nodes.append(root(node))
        lowest = min(nodes)  # hence a group's root is its first prompt, however it grew
        for node in nodes:
            parent[node] = lowest
        firsts.append(nodes[0])
    numbers: dict[int, int] = {}
    return np.asarray([numbers.setdefault(root(node), len(numbers)) for node in firsts], dtype=np.int64)
