"""What an alignment asks of the data: variables, positions, stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from iitkit.batch import Tokens
from iitkit.data.pairs import Design
from iitkit.errors import IITKitError
from iitkit.positions import Position, check_spans
from iitkit.tasks import Task


class PlacementLike(Protocol):
    """What the data must know of a placement."""

    @property
    def variable(self) -> str | None:
        """The causal variable."""

    @property
    def position(self) -> Position:
        """Where in the prompt."""


class Subject(Protocol):
    """What the data must know of the module that it is made for."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer."""

    @property
    def alignment(self) -> Mapping[str, PlacementLike]:
        """Placement name → variable and position."""

    @property
    def stages(self) -> Sequence[Sequence[str]]:
        """Placements of each stage of source 0 → source 1 → … → base; empty for one stage."""

    @property
    def isolates(self) -> bool:
        """Whether pairs also need the label under another variable's interchange."""

    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        """Return which candidate the base model itself answers, [B]."""


@dataclass(frozen=True)
class Placed:
    """What an alignment asks of the data.

    Args:
        names: the placements.
        variables: their variables, each once.
        placements: for each placement the index of its variable.
        positions: placement → position.
        stage: for each placement its stage, where there are several.
        stages: the variables of each stage.
    """

    names: list[str]
    variables: list[str]
    placements: list[int]
    positions: dict[str, Position]
    stage: list[int]
    stages: list[list[str]]


def placed(subject: Subject, spans: Sequence[str], design: Design, task: Task | None) -> Placed:
    """Check an alignment against the data, and return what it asks of them.

    Raises:
        IITKitError: a variable that the causal model does not have, a span that the prompt does not have, a design of
            more variables than are placed.
    """
    positions: dict[str, Position] = {}
    of_placement: list[str] = []
    for name, placement in subject.alignment.items():
        variable = placement.variable or name
        if task is not None:
            task.model.check_variable(variable, f"alignment.{name}: variable")
        check_spans(placement.position, spans, f"alignment.{name}")
        positions[name] = placement.position
        of_placement.append(variable)
    variables = list(dict.fromkeys(of_placement))
    stage_of = {name: k for k, stage in enumerate(subject.stages) for name in stage}
    staged = bool(stage_of) or subject.isolates
    if design.together > len(variables) or (design.together > 1 and staged):
        raise IITKitError(
            f"data.together: {design.together} variables at once: the alignment places {len(variables)}"
            + (", and model.stages or mdas take one" if staged else "")
        )
    if "variable" in design.balance and (design.together > 1 or stage_of or design.differ_in):
        raise IITKitError(
            "data.balance: variable is for pairs of one variable whose source is free: leave it out, or leave out "
            "together, differ_in and model.stages"
        )
    if design.one_source and design.together < 2:
        raise IITKitError("data.one_source is of several variables at once: set data.together to 2 or more")
    return Placed(
        list(positions),
        variables,
        [variables.index(variable) for variable in of_placement],
        positions,
        [stage_of[name] for name in positions] if stage_of else [],
        [list(dict.fromkeys(subject.alignment[name].variable or name for name in s)) for s in subject.stages],
    )
