"""Entity binding: how does the network find which object goes with which of several entities?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

import numpy as np

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task, words
from iitkit.tasks.functions import mechanism_of
from iitkit.tasks.several import all_differ, draw_different, numbered

# of each pair, between the pairs, before the first, behind the last
FORMS: dict[str, list[tuple[str, str, str, str]]] = {
    "boxes": [
        ("the {object} is in box {entity}", ", ", "We know that ", ". Box {asked} contains the"),
        ("box {entity} contains the {object}", ", ", "We know that ", ". So box {asked} contains the"),
        ("the {object} lies in box {entity}", " and ", "Today, ", ". In box {asked} there is the"),  # held out
    ],
    "people": [
        ("{entity} carries the {object}", ", ", "", ". As I said, {asked} carries the"),
        ("{entity} has a {object}", ", ", "", ". Remember that {asked} has a"),
        ("{entity}: {object}", "\n", "", "\n{asked}:"),  # held out
    ],
}


class EntityBinding(Task):
    """``We know that the book is in box Z, the ring is in box Q, …. Box Q contains the`` → `` ring``.

    Variables (for n pairs): ``entity_1`` … ``entity_n`` (box letters or names, all different), ``object_1`` …
    ``object_n`` (all different), ``query`` (which pair is asked for, from 1; all exogenous), ``asked`` (its entity, as
    the last sentence names it), ``position`` (where that entity stands among the pairs, from 1: the binding index),
    ``answer`` (the object there). An entity from a source that the base does not mention changes nothing. So
    ``position`` says that the network carries a pointer, ``asked`` that it carries the entity, ``answer`` that it
    carries the object itself. The candidates of a row are the objects of its base.

    After Feng and Steinhardt, 2023, https://arxiv.org/abs/2310.17191; the boxes are those of Kim and Schuster, 2023,
    https://arxiv.org/abs/2305.02363, and Prakash et al., 2024, https://arxiv.org/abs/2402.14811.

    Args:
        pairs: number of entities with an object each, 2 to 8.
        entities: what they are: boxes with letters, or people with names.
    """

    held_out_templates = 1

    def __init__(self, pairs: int = 3, entities: Literal["boxes", "people"] = "boxes") -> None:
        if not 2 <= pairs <= 8:
            raise IITKitError(f"EntityBinding.pairs: {pairs}: expected 2 to 8")
        if entities not in FORMS:
            raise IITKitError(f"EntityBinding.entities: {entities!r}: expected boxes or people")
        self.pairs, self.entities = pairs, entities
        # there are too few letters to divide them
        self.split_by = (*numbered("object", pairs), *(numbered("entity", pairs) if entities == "people" else ()))
        super().__init__()

    def causal_model(self) -> CausalModel:
        """(Query, entities) → asked → position; (position, objects) → answer."""
        n, objects = self.pairs, [row["object"] for row in words("objects")]
        known = list(ascii_uppercase) if self.entities == "boxes" else [row["name"] for row in words("names")]
        entity, thing, answers = (numbered(name, n) for name in ("entity", "object", "answer"))
        slots = list(zip(entity, thing, strict=True))
        model = CausalModel(
            prompt=[
                before + between.join(pair.format(entity=f"{{{e}}}", object=f"{{{o}}}") for e, o in slots) + behind
                for pair, between, before, behind in FORMS[self.entities]
            ],
            output="answer",
            candidates=answers,
            surface={word: f" {word}" for word in objects},
        )
        places = list(range(1, n + 1))
        model.variables(**dict.fromkeys(entity, known), **dict.fromkeys(thing, objects), query=places)

        def at(place: int, *values: str) -> str:
            return values[place - 1]

        def position(query: int, asked: str, *entities: str) -> int:
            return entities.index(asked) + 1 if asked in entities else query

        model.mechanism(domain=known)(mechanism_of("asked", ["query", *entity], at))
        model.mechanism(domain=places)(mechanism_of("position", ["query", "asked", *entity], position))
        model.mechanism(domain=objects)(mechanism_of("answer", ["position", *thing], at))
        for one, shown in zip(answers, thing, strict=True):
            model.mechanism(mechanism_of(one, [shown], str))
        model.constraint(mechanism_of("entities_differ", entity, all_differ))
        model.constraint(mechanism_of("objects_differ", thing, all_differ))

        @model.sampler
        def draw(
            generator: np.random.Generator, size: int, among: Mapping[str, Sequence[Any]]
        ) -> dict[str, Sequence[Any]]:
            drawn = (draw_different(generator, size, among, of) for of in (entity, thing))
            return {name: values for some in drawn for name, values in some.items()}

        return model
