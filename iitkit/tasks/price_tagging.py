"""Price tagging: does the network compare a price with two bounds, each by itself?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iitkit.causal import CausalModel, Symbols
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task

PLAIN = [
    "Say yes only if the price is between {lower} and {upper} dollars, otherwise no. The price is {price} dollars. "
    "Answer:",
    "Question: Is {price} dollars a price between {lower} and {upper} dollars? Answer:",
    "A thing costs {price} dollars. Is that between {lower} and {upper} dollars? Answer:",  # held out
]
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nPlease say yes only if it costs between {lower} and {upper} dollars, otherwise no.\n\n"
    "### Input:\n{price} dollars\n\n### Response:\n"
)
CENTS = 1000
"""Prices are 0.00 to 9.99."""


class PriceTagging(Task):
    """``Say yes only if the price is between {lower} and {upper} dollars … The price is {price}`` → `` Yes``, `` No``.

    Variables: ``price``, ``lower``, ``upper`` (0.00 to 9.99 as they are written; exogenous, lower < upper),
    ``left_boundary`` (price ≥ lower), ``right_boundary`` (price ≤ upper), ``output`` (both). Half of the prompts'
    answers are yes, and prices too low are as frequent as prices too high. Wu et al., 2023,
    https://arxiv.org/abs/2305.08809.

    Args:
        inputs: ``text``; or ``symbols``, the sequence ``{lower} {upper} {price} ?`` with one symbol for each price,
            whose answer is a symbol too.
        template: of text, ``plain`` (three templates, the answers `` Yes`` and `` No``) or ``alpaca`` (the paper's,
            for models that are tuned on Alpaca's instructions; the answers ``Yes`` and ``No`` begin a line).
        step: cents between two prices; 10 leaves 100 prices, which a small network learns sooner.
    """

    def __init__(
        self,
        inputs: Literal["text", "symbols"] = "text",
        template: Literal["plain", "alpaca"] = "plain",
        step: int = 1,
    ) -> None:
        if inputs not in ("text", "symbols"):
            raise IITKitError(f"PriceTagging.inputs: {inputs!r}: expected text or symbols")
        if template not in ("plain", "alpaca"):
            raise IITKitError(f"PriceTagging.template: {template!r}: expected plain or alpaca")
        if not 1 <= step <= CENTS // 20:
            raise IITKitError(f"PriceTagging.step: {step}: expected 1 to {CENTS // 20} cents")
        self.inputs, self.template, self.step = inputs, template, step
        # a network that learns the symbols from nothing must meet each of them
        self.split_by = ("price", "lower", "upper") if inputs == "text" else (("price", "lower", "upper"),)
        self.held_out_templates = 1 if inputs == "text" and template == "plain" else 0
        super().__init__()

    def causal_model(self) -> CausalModel:
        """(price, lower) → left_boundary; (price, upper) → right_boundary; both → output."""
        if self.inputs == "symbols":
            model = CausalModel(prompt=Symbols("{lower} {upper} {price} ?"), output="output")
        else:
            before = "" if self.template == "alpaca" else " "
            model = CausalModel(
                prompt=ALPACA if self.template == "alpaca" else PLAIN,
                output="output",
                surface={True: [f"{before}Yes", f"{before}yes"], False: [f"{before}No", f"{before}no"]},
            )
        # written with as many digits each, so that prices compare as their texts do
        prices = [f"{cents / 100:.2f}" for cents in range(0, CENTS, self.step)]
        model.variables(lower=prices, upper=prices, price=prices)

        @model.sampler
        def prices_around_bounds(
            generator: np.random.Generator, n: int, among: Mapping[str, Sequence[str]]
        ) -> dict[str, npt.NDArray[Any]]:
            bounds = np.stack([generator.choice(np.sort(among[name]), n) for name in ("lower", "upper")])
            bounds.sort(axis=0)  # two equal ones are not allowed, and drawn again
            return {
                "lower": bounds[0],
                "upper": bounds[1],
                "price": _prices(np.sort(among["price"]), bounds, generator),
            }

        @model.mechanism(domain=[False, True], vectorised=True)
        def left_boundary(price: npt.NDArray[Any], lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return price >= lower

        @model.mechanism(domain=[False, True], vectorised=True)
        def right_boundary(price: npt.NDArray[Any], upper: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return price <= upper

        @model.mechanism(domain=[False, True])
        def output(left_boundary: bool, right_boundary: bool) -> bool:
            return left_boundary and right_boundary

        @model.constraint(vectorised=True)
        def lower_below_upper(lower: npt.NDArray[Any], upper: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return lower < upper

        return model


def _prices(prices: npt.NDArray[Any], bounds: npt.NDArray[Any], generator: np.random.Generator) -> npt.NDArray[Any]:
    """Draw a price between its bounds for half of the rows, and below or above them as often as there are any."""
    n = bounds.shape[1]
    below: Codes = np.searchsorted(prices, bounds[0], side="left")
    inside: Codes = np.searchsorted(prices, bounds[1], side="right")
    place = generator.permutation(np.arange(n) % 4)  # 0 below, 1 above, else between
    place = np.where((place == 0) & (below == 0), 1, place)
    place = np.where((place == 1) & (inside == len(prices)), np.where(below > 0, 0, 2), place)
    place = np.where((place >= 2) & (below == inside), np.where(below > 0, 0, 1), place)
    first = np.choose(np.minimum(place, 2), [np.zeros(n, dtype=np.int64), inside, below])
    behind = np.choose(np.minimum(place, 2), [below, np.full(n, len(prices)), inside])
    drawn: npt.NDArray[Any] = prices[generator.integers(first, behind)]
    return drawn
