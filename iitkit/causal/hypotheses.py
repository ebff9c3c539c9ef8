"""Which hypotheses a set of pairs can tell apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iitkit.causal.variables import key_of
from iitkit.errors import IITKitError, choices

if TYPE_CHECKING:
    from iitkit.causal.model import CausalModel

COPY = "copy the source's output"
"""The rival that every interchange has: the network takes over the source's answer as a whole."""
NO_CHANGE = "no change"
"""The rival that does nothing: the answer stays the base's."""

Hypothesis = Any
"""Variables that are interchanged: a name, names, or (causal model, name or names) for another model's."""


@dataclass(frozen=True)
class Disagreement:
    """How often hypotheses predict different labels.

    Args:
        names: the hypotheses, with :data:`COPY` and :data:`NO_CHANGE` last.
        matrix: share of pairs on which two of them differ, [H, H].
        pairs: number of pairs.
    """

    names: list[str]
    matrix: npt.NDArray[np.float64]
    pairs: int

    def between(self, one: str, other: str) -> float:
        """Return the share of pairs on which two hypotheses differ.

        Raises:
            IITKitError: a name that is none of them.
        """
        for name in (one, other):
            if name not in self.names:
                raise IITKitError(f"no hypothesis {name!r}: there are {choices(self.names)}")
        return float(self.matrix[self.names.index(one), self.names.index(other)])

    def confounded(self) -> list[tuple[str, str]]:
        """Return the pairs of names that agree on every pair, the rivals between themselves left out."""
        rivals = {COPY, NO_CHANGE}
        return [
            (one, other)
            for i, one in enumerate(self.names)
            for j, other in enumerate(self.names)
            if i < j and self.matrix[i, j] == 0 and not {one, other} <= rivals
        ]

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = [" " * (width + 2) + "  ".join(f"{i + 1:>5}" for i in range(len(self.names)))]
        for i, name in enumerate(self.names):
            cells = "  ".join("    ·" if i == j else f"{self.matrix[i, j]:>5.1%}" for j in range(len(self.names)))
            lines.append(f"{name:<{width}}  {cells}")
        numbered = ", ".join(f"{i + 1} {name}" for i, name in enumerate(self.names))
        return f"share of {self.pairs} pairs with different labels (columns: {numbered})\n" + "\n".join(lines)


def distinguish(
    model: CausalModel,
    hypotheses: Sequence[str] | Mapping[str, Hypothesis],
    pairs: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Disagreement:
    """Return how often hypotheses predict different labels on pairs.

    Beside the hypotheses stand two that explain much without any variable: the answer is the source's, and the answer
    is the base's. A set of pairs on which a hypothesis equals one of them is no evidence for it.

    Args:
        model: the causal model that the pairs are inputs of.
        hypotheses: names of variables, or name → a variable, several (all from the one source), or (another causal
            model with the same inputs, its variable or variables).
        pairs: inputs of the bases and of the sources, n rows each.

    Raises:
        IITKitError: no hypothesis, an unknown variable, no pairs, inputs that do not fit.
    """
    named: Mapping[str, Hypothesis] = hypotheses if isinstance(hypotheses, Mapping) else {h: h for h in hypotheses}
    if not named:
        raise IITKitError("distinguish: no hypothesis: name a variable or several")
    base, source = pairs
    ids: dict[Hashable, int] = {}
    labels: dict[str, npt.NDArray[np.int64]] = {}

    def numbered(of: CausalModel, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Answers of several models by one numbering."""
        table = np.asarray([ids.setdefault(key, len(ids)) for key in answer_keys(model, of)], dtype=np.int64)
        found: npt.NDArray[np.int64] = table[codes]
        return found

    for name, hypothesis in named.items():
        own = isinstance(hypothesis, str) or all(isinstance(part, str) for part in hypothesis)
        if not own and (len(hypothesis) != 2 or not hasattr(hypothesis[0], "interchange")):
            raise IITKitError(
                f"distinguish: hypothesis {name!r} is {hypothesis!r}: expected a variable, several, or (another causal "
                "model, its variable or variables)"
            )
        other, variables = (model, hypothesis) if own else hypothesis
        chosen = [variables] if isinstance(variables, str) else list(variables)
        own_base, own_source = (
            (base, source) if other is model else (translated(model, other, base), translated(model, other, source))
        )
        after = other.interchange(own_base, dict.fromkeys(chosen, own_source))
        labels[name] = numbered(other, after[other.output])
    labels[COPY] = numbered(model, model.run(source)[model.output])
    labels[NO_CHANGE] = numbered(model, model.run(base)[model.output])
    stacked = np.stack(list(labels.values()))
    if not stacked.shape[1]:
        raise IITKitError("distinguish: no pairs: give inputs of one row or more")
    matrix = (stacked[:, None] != stacked[None]).mean(2)
    return Disagreement(list(labels), matrix, stacked.shape[1])


def answer_keys(model: CausalModel, other: CausalModel) -> list[Hashable]:
    """Return for each value of another model's output what is equal where it is the same answer as one of the model's.

    Answers that are read as text are the same where one's text is a form of the other's, whatever their values.
    """
    values = other.domains[other.output].values
    if other is model or model.encoding is not None or other.encoding is not None:
        return [key_of(value) for value in values]
    owner = {text: key_of(value) for value in model.domains[model.output].values for text in model.forms(value)}
    texts = [other.forms(value)[0] for value in values]
    return [owner.get(text, text) for text in texts]


def translated(model: CausalModel, other: CausalModel, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return one model's inputs as another's: the same variables with the same values.

    Raises:
        IITKitError: a variable that only one of them has.
    """
    if set(model.exogenous) != set(other.exogenous):
        raise IITKitError(
            f"the hypotheses have different inputs: {choices(sorted(model.exogenous))} and "
            f"{choices(sorted(other.exogenous))}: rivals must be models of the same inputs"
        )
    codes = model.encode(inputs)
    return {name: model.values(codes, name) for name in model.exogenous}
