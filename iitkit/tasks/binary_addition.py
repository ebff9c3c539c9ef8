"""Binary addition, digit by digit: does a sequence model keep the carry?"""

from __future__ import annotations

from iitkit.causal import CausalModel, Symbols
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task
from iitkit.tasks.functions import mechanism_of

WIDEST = 8


class BinaryAddition(Task):
    """``{a1} {b1} {a2} {b2} {a3} {b3} {a4} {b4} =``, a sequence of symbols → the sum, a symbol such as ``10110``.

    Variables: the bits ``a1`` … ``a4`` and ``b1`` … ``b4`` (0 or 1, the lowest ones first; exogenous), ``s1`` … ``s4``
    (the sum's bits), ``c1`` … ``c4`` (the carry out of each column) and ``output``, the sum's bits as they are
    written, the last carry first. The last column's bits come last, so a network that reads from left to right must
    keep the carry and the sum's bits: what a whole hidden vector brings over from a source is more than the carry. The
    splits share no combination of the bits. For the alignment of a network's state with such variables see Geiger et
    al., 2024, https://arxiv.org/abs/2303.02536.

    Args:
        bits: columns, 2 to 8.
        answer: number of the sum's bit that is the answer (a symbol 0 or 1), 1 for the lowest and bits + 1 for the last
            carry; the whole sum unless said.
    """

    def __init__(self, bits: int = 4, answer: int | None = None) -> None:
        if not 2 <= bits <= WIDEST:
            raise IITKitError(f"BinaryAddition.bits: {bits}: expected 2 to {WIDEST}")
        if answer is not None and not 1 <= answer <= bits + 1:
            raise IITKitError(
                f"BinaryAddition.answer: {answer}: expected 1 to {bits + 1} (the last carry), or null for the whole sum"
            )
        self.bits, self.answer = bits, answer
        self.split_by = (tuple(f"{side}{i}" for i in range(1, bits + 1) for side in "ab"),)
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Bits and carry of a column → its sum and the next carry; all sums and the last carry → output."""
        columns = range(1, self.bits + 1)
        model = CausalModel(prompt=Symbols(" ".join(f"{{a{i}}} {{b{i}}}" for i in columns) + " ="), output="output")
        model.variables(**{f"{side}{i}": [0, 1] for i in columns for side in "ab"})
        for i in columns:
            parents = [f"a{i}", f"b{i}", *([f"c{i - 1}"] if i > 1 else [])]
            declare = model.mechanism(domain=[0, 1])
            declare(mechanism_of(f"s{i}", parents, lambda *bits: sum(bits) % 2))
            declare = model.mechanism(domain=[0, 1])
            declare(mechanism_of(f"c{i}", parents, lambda *bits: sum(bits) // 2))
        written = [f"c{self.bits}", *(f"s{i}" for i in reversed(columns))]
        if self.answer is None:
            model.mechanism(mechanism_of("output", written, lambda *bits: "".join(map(str, bits))))
        else:
            declare = model.mechanism(domain=[0, 1])
            declare(mechanism_of("output", [written[-self.answer]], lambda bit: bit))
        return model
