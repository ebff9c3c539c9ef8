"""Boolean trees: does the network compute a formula's parts?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from iitkit.causal import CausalModel, Symbols
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task
from iitkit.tasks.functions import mechanism_of

Operator = Literal["and", "or", "xor"]

OPERATORS: dict[str, Callable[[bool, bool], bool]] = {
    "and": lambda left, right: left and right,
    "or": lambda left, right: left or right,
    "xor": lambda left, right: left != right,
}
DEEPEST = 4
"""Levels of operators: 16 inputs."""

BEGINNINGS = ["", "It is said that ", "Python says that "]  # the last one is held out


class BooleanTree(Task):
    """``( {a} and {b} ) or ( {c} and {d} ) is`` → `` True`` or `` False``.

    Variables: the truths ``a``, ``b``, ``c``, ``d`` (exogenous), ``ab`` (a and b), ``cd`` (c and d), ``output``
    (ab or cd); in a larger tree each part bears the letters of the truths in it, such as ``abcd``. A tree of two levels
    has 16 inputs, so the splits draw from the same ones (text holds a template out). For interchange interventions on
    the parts of a tree see Geiger et al., 2021, https://arxiv.org/abs/2106.02997.

    Args:
        operators: each level's operator, ``and``, ``or`` or ``xor``, from the innermost to the outermost; there are 2
            truths for one level, 16 for the most, four.
        inputs: ``text``; or ``symbols``, a sequence of the truths and ``=``, whose answer is a symbol too.
    """

    def __init__(
        self, operators: Sequence[Operator] = ("and", "or"), inputs: Literal["text", "symbols"] = "text"
    ) -> None:
        if inputs not in ("text", "symbols"):
            raise IITKitError(f"BooleanTree.inputs: {inputs!r}: expected text or symbols")
        if isinstance(operators, str) or not 1 <= len(operators) <= DEEPEST:
            raise IITKitError(
                f"BooleanTree.operators: {operators!r}: expected one operator for each level, 1 to {DEEPEST} of them"
            )
        if wrong := [operator for operator in operators if operator not in OPERATORS]:
            raise IITKitError(f"BooleanTree.operators: {wrong[0]!r}: expected and, or, or xor (quote them in YAML)")
        self.operators, self.inputs = list(operators), inputs
        self.held_out_templates = 1 if inputs == "text" else 0
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Pairs of truths → parts → … → output."""
        leaves = [chr(ord("a") + i) for i in range(2 ** len(self.operators))]
        if self.inputs == "text":
            formula = self._formula(leaves, len(self.operators) - 1)
            templates = [f"{beginning}{formula} is" for beginning in BEGINNINGS]
            model = CausalModel(prompt=templates, output="output", surface={True: " True", False: " False"})
        else:
            model = CausalModel(prompt=Symbols(" ".join(f"{{{leaf}}}" for leaf in leaves) + " ="), output="output")
        model.variables(**{leaf: [False, True] for leaf in leaves})
        nodes = leaves
        for operator in self.operators:
            parts = []
            for left, right in zip(nodes[::2], nodes[1::2], strict=True):
                name = left + right if len(nodes) > 2 else "output"
                declare = model.mechanism(domain=[False, True])
                declare(mechanism_of(name, [left, right], OPERATORS[operator]))
                parts.append(name)
            nodes = parts
        return model

    def _formula(self, leaves: Sequence[str], level: int) -> str:
        """Write the tree over some leaves; parts are put in brackets."""
        if len(leaves) == 1:
            return f"{{{leaves[0]}}}"
        half = len(leaves) // 2
        sides = [self._formula(part, level - 1) for part in (leaves[:half], leaves[half:])]
        left, right = (side if half == 1 else f"( {side} )" for side in sides)
        return f"{left} {self.operators[level]} {right}"
