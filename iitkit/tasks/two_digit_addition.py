"""Two-digit addition: does the network carry?"""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.tasks.base import Task

TEMPLATES = [
    "{a}+{b}=",
    "Sum: {a}+{b}=",
    "Here is a sum: {a}+{b}=",  # held out
]


class TwoDigitAddition(Task):
    """``{a}+{b}=`` → the sum, without a space before it: ``27+15=`` → ``42``.

    Variables: ``a`` and ``b`` (10 to 99; exogenous), their digits ``a_tens``, ``a_ones``, ``b_tens``, ``b_ones``,
    ``carry`` (of the ones column, 0 or 1), ``ones`` (the sum's last digit), ``tens`` (what stands before it, 2 to 19)
    and ``output``. The candidates of a row are its base's sum with and without a carry, and the label. The splits
    share no combination of ``a`` and ``b``. Carries in networks: Quirke and Barez, 2024,
    https://arxiv.org/abs/2310.13121.
    """

    split_by = (("a", "b"),)
    held_out_templates = 1

    def causal_model(self) -> CausalModel:
        """Ones digits → carry and ones; tens digits and carry → tens; tens and ones → output."""
        numbers = list(range(10, 100))
        model = CausalModel(prompt=TEMPLATES, output="output", candidates=["without_carry", "with_carry"])
        model.variables(a=numbers, b=numbers)

        @model.mechanism
        def a_tens(a: int) -> int:
            return a // 10

        @model.mechanism
        def a_ones(a: int) -> int:
            return a % 10

        @model.mechanism
        def b_tens(b: int) -> int:
            return b // 10

        @model.mechanism
        def b_ones(b: int) -> int:
            return b % 10

        @model.mechanism(domain=[0, 1])
        def carry(a_ones: int, b_ones: int) -> int:
            return (a_ones + b_ones) // 10

        @model.mechanism
        def ones(a_ones: int, b_ones: int) -> int:
            return (a_ones + b_ones) % 10

        @model.mechanism
        def tens(a_tens: int, b_tens: int, carry: int) -> int:
            return a_tens + b_tens + carry

        @model.mechanism
        def output(tens: int, ones: int) -> str:
            return f"{tens}{ones}"

        @model.mechanism
        def without_carry(a_tens: int, b_tens: int, ones: int) -> str:
            return f"{a_tens + b_tens}{ones}"

        @model.mechanism
        def with_carry(a_tens: int, b_tens: int, ones: int) -> str:
            return f"{a_tens + b_tens + 1}{ones}"

        return model
