"""Successor: does the network count on by an index that days and months share?"""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError, choices
from iitkit.tasks.base import Task, words

KINDS = {
    "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "months": [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
}
NOW = {"days": "Today", "months": "This month"}
THEN = {
    "days": {-2: "The day before yesterday", -1: "Yesterday", 1: "Tomorrow", 2: "The day after tomorrow"},
    "months": {-2: "The month before last", -1: "Last month", 1: "Next month", 2: "The month after next"},
}
TEMPLATES = [
    "{name} says: {now}: {item}. {then}:",
    "Diary of {name}. {now}: {item}. {then}:",
    "Note for {name}\n{now}: {item}\n{then}:",
    "{name}'s calendar. {now}: {item}. {then}:",  # held out
]


class Successor(Task):
    """``Mary says: Today: Monday. Tomorrow:`` → `` Tuesday``, and the like for months.

    Variables: ``item`` (the day or month), ``offset`` (how many steps on), ``name`` (which does not matter; all
    exogenous), ``kind`` (days or months), ``index`` (of the item in its kind, from 0), ``now`` and ``then`` (the
    words), ``successor`` (the answer). An index from the other kind counts modulo the kind's length: the claim that
    days and months share one index. After Gould et al., 2023, https://arxiv.org/abs/2312.09230.

    Args:
        kinds: which of days and months there are.
        offsets: how many steps on the prompts ask for, of −2, −1, 1 and 2.
    """

    split_by = ("name",)
    held_out_templates = 1

    def __init__(self, kinds: Sequence[str] = ("days", "months"), offsets: Sequence[int] = (1,)) -> None:
        for key, given, known in (("kinds", kinds, KINDS), ("offsets", offsets, THEN["days"])):
            if isinstance(given, str) or not given or not set(given) <= set(known) or len(set(given)) < len(given):
                raise IITKitError(f"Successor.{key}: {given!r}: expected a list of one or more of {choices(known)}")
        self.kinds, self.offsets = list(kinds), list(offsets)
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Item → kind and index; (kind, index, offset) → successor."""
        items = [item for kind in self.kinds for item in KINDS[kind]]
        kind_of = {item: kind for kind in self.kinds for item in KINDS[kind]}
        model = CausalModel(prompt=TEMPLATES, output="successor", surface={item: f" {item}" for item in items})
        model.variables(name=[row["name"] for row in words("names")], item=items, offset=self.offsets)

        @model.mechanism
        def kind(item: str) -> str:
            return kind_of[item]

        @model.mechanism
        def index(item: str) -> int:
            return KINDS[kind_of[item]].index(item)

        @model.mechanism
        def now(kind: str) -> str:
            return NOW[kind]

        @model.mechanism
        def then(kind: str, offset: int) -> str:
            return THEN[kind][offset]

        @model.mechanism(domain=items)
        def successor(kind: str, index: int, offset: int) -> str:
            return KINDS[kind][(index + offset) % len(KINDS[kind])]

        return model
