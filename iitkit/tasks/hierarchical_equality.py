"""Hierarchical equality: does the network compare two comparisons?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np

from iitkit.causal import CausalModel, Open, Vectors
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task, words

TEMPLATES = [
    "( {w} == {x} ) == ( {y} == {z} ) is",
    "It is said that ( {w} == {x} ) == ( {y} == {z} ) is",
    "Python says that ( {w} == {x} ) == ( {y} == {z} ) is",  # held out
]
SIDES = (("w", "x"), ("y", "z"))

LEAST = 10
"""Entities, so that each split has two of its own."""

Vector = tuple[float, ...]


class HierarchicalEquality(Task):
    """``( {w} == {x} ) == ( {y} == {z} ) is`` → `` True`` or `` False``.

    Variables: ``w``, ``x``, ``y``, ``z`` (the entities; exogenous), ``left_equal`` (w == x), ``right_equal`` (y == z),
    ``output`` (left_equal == right_equal). Either side is equal in half of the prompts, whatever the other one is, so
    that all three are balanced. Geiger et al., 2024, https://arxiv.org/abs/2303.02536.

    Args:
        inputs: ``text``, whose entities are nouns; or ``vectors``, whose entities are random vectors, uniform in
            [−1, 1]: a row has 4 × width numbers, and the classes are 0 (False) and 1 (True).
        entities: number of different entities, of which no two splits share any. Unless said: of text, all nouns there
            are; of vectors, no number, they are drawn anew for each prompt, as in the paper (more is learned from
            them, and labels take longer than from a fixed number: each is computed by itself).
        width: of a vector.
        seed: of the vectors, if their number is given.
    """

    def __init__(
        self,
        inputs: Literal["text", "vectors"] = "text",
        entities: int | None = None,
        width: int = 4,
        seed: int = 0,
    ) -> None:
        if inputs not in ("text", "vectors"):
            raise IITKitError(f"HierarchicalEquality.inputs: {inputs!r}: expected text or vectors")
        most = len(words("nouns")) if inputs == "text" else None
        if entities is not None and (entities < LEAST or (most and entities > most)):
            raise IITKitError(
                f"HierarchicalEquality.entities: {entities}: expected {LEAST} or more"
                + (f", and at most the {most} nouns there are" if most else ", or null for vectors that are all new")
            )
        if width < 1:
            raise IITKitError(f"HierarchicalEquality.width: {width}: expected 1 or more")
        self.inputs, self.entities, self.width, self.seed = inputs, entities, width, seed
        self.held_out_templates = 1 if inputs == "text" else 0
        self.split_by = () if self._open else ("w", "x", "y", "z")
        super().__init__()

    @property
    def _open(self) -> bool:
        return self.inputs == "vectors" and self.entities is None

    def vectors(self, generator: np.random.Generator, n: int) -> list[Vector]:
        """Return n random vectors."""
        return [tuple(row) for row in generator.uniform(-1, 1, (n, self.width)).tolist()]

    def causal_model(self) -> CausalModel:
        """(w, x) → left_equal; (y, z) → right_equal; both → output."""
        if self.inputs == "text":
            model = CausalModel(prompt=TEMPLATES, output="output", surface={True: " True", False: " False"})
        else:
            model = CausalModel(prompt=Vectors("w", "x", "y", "z"), output="output")
        domain: Sequence[Hashable] | Open
        if self._open:
            domain = Open(self.vectors)
        elif self.inputs == "text":
            domain = [row["singular"] for row in words("nouns")][: self.entities]
        else:
            domain = self.vectors(np.random.default_rng(self.seed), self.entities or 0)
        model.variables(w=domain, x=domain, y=domain, z=domain)

        @model.sampler
        def sides(
            generator: np.random.Generator, n: int, among: Mapping[str, Sequence[Hashable]]
        ) -> dict[str, Sequence[Hashable]]:
            drawn: dict[str, Sequence[Hashable]] = {}
            for one, other in SIDES:
                equal = generator.permutation(np.arange(n) % 2 == 0).tolist()
                if self._open:
                    first, second = self.vectors(generator, n), self.vectors(generator, n)
                    drawn[one] = first
                    drawn[other] = [a if same else b for a, b, same in zip(first, second, equal, strict=True)]
                else:
                    drawn[one], drawn[other] = _side(among[one], generator, equal)
            return drawn

        @model.mechanism(domain=[False, True])
        def left_equal(w: Hashable, x: Hashable) -> bool:
            return w == x

        @model.mechanism(domain=[False, True])
        def right_equal(y: Hashable, z: Hashable) -> bool:
            return y == z

        @model.mechanism(domain=[False, True])
        def output(left_equal: bool, right_equal: bool) -> bool:
            return left_equal == right_equal

        return model


def _side(
    entities: Sequence[Hashable], generator: np.random.Generator, equal: Sequence[bool]
) -> tuple[list[Hashable], list[Hashable]]:
    """Draw the two entities of one side."""
    n, count = len(equal), len(entities)
    if count < 2:
        raise IITKitError(f"HierarchicalEquality: a split has {count} entity, so no two differ: ask for more entities")
    first = generator.integers(count, size=n)
    other = (first + generator.integers(1, count, size=n)) % count
    second = np.where(equal, first, other)
    return [entities[i] for i in first.tolist()], [entities[i] for i in second.tolist()]
