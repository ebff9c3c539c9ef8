"""Modular addition: does the network add up step by step, on a clock of so many hours?"""

from __future__ import annotations

from typing import Literal

from iitkit.causal import CausalModel, Symbols
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task
from iitkit.tasks.functions import mechanism_of

LARGEST = 1000


class ModularAddition(Task):
    """``( {a} + {b} + {c} ) % 7 =``, a sequence of symbols → the sum modulo 7, a symbol.

    Variables: the terms ``a``, ``b``, ``c`` (exogenous), the sum so far ``ab`` (of more terms also ``abc``, …) and
    ``output``, the whole sum, all modulo 7. The splits share no combination of the terms. Networks that learn modular
    addition: Nanda et al., 2023, https://arxiv.org/abs/2301.05217.

    Args:
        modulus: 2 to 1000; text needs single digits, 2 to 10.
        terms: number of terms, 2 to 8; with two there is no sum in between.
        inputs: ``symbols``, the sequence ``{a} + {b} + {c} =``; or ``text``, ``({a}+{b}+{c})%7=``, whose answer is a
            digit without a space before it.
    """

    def __init__(self, modulus: int = 7, terms: int = 3, inputs: Literal["symbols", "text"] = "symbols") -> None:
        if inputs not in ("symbols", "text"):
            raise IITKitError(f"ModularAddition.inputs: {inputs!r}: expected symbols or text")
        most = 10 if inputs == "text" else LARGEST
        if not 2 <= modulus <= most:
            raise IITKitError(
                f"ModularAddition.modulus: {modulus}: expected 2 to {most}"
                + (" (in text an answer is a single digit; symbols take more)" if inputs == "text" else "")
            )
        if not 2 <= terms <= 8:
            raise IITKitError(f"ModularAddition.terms: {terms}: expected 2 to 8")
        self.modulus, self.terms, self.inputs = modulus, terms, inputs
        self.names = [chr(ord("a") + i) for i in range(terms)]
        self.split_by = (tuple(self.names),)
        self.held_out_templates = 1 if inputs == "text" else 0
        super().__init__()

    def causal_model(self) -> CausalModel:
        """(a, b) → ab; (ab, c) → output."""
        numbers = list(range(self.modulus))
        slots = [f"{{{name}}}" for name in self.names]
        if self.inputs == "symbols":
            model = CausalModel(prompt=Symbols(" + ".join(slots) + " ="), output="output")
        else:
            terms = "+".join(slots)
            model = CausalModel(
                prompt=[
                    f"({terms})%{self.modulus}=",
                    f"({terms}) mod {self.modulus}=",
                    f"Modulo {self.modulus}, {terms}=",  # held out
                ],
                output="output",
                surface={number: str(number) for number in numbers},
            )
        model.variables(**dict.fromkeys(self.names, numbers))
        so_far = self.names[0]
        for i, term in enumerate(self.names[1:], 2):
            name = "output" if i == self.terms else "".join(self.names[:i])
            declare = model.mechanism(domain=numbers)
            declare(mechanism_of(name, [so_far, term], lambda left, right: (left + right) % self.modulus))
            so_far = name
        return model
