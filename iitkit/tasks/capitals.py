"""Capitals: where does the network look up the capital of a country?"""

from __future__ import annotations

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.tasks.base import Task, words
from iitkit.tasks.functions import mechanism_of
from iitkit.tasks.several import numbered

TEMPLATES = [
    "The capital of {country} is the city of",
    "Geography lesson: the capital of {country} is the city of",
    "Everyone knows that the capital of {country} is the city of",
    "The capital city of {country} is called",  # held out
]


class Capitals(Task):
    """``The capital of {country} is the city of`` → `` Paris``.

    Variables: ``country`` (exogenous), ``capital`` (the answer), ``rival_1`` … ``rival_n`` (the capitals that
    follow in the list). The candidates of a row are the capital and the rivals of its base, and its label; a label
    may have several tokens. Such facts are those of causal tracing (Meng et al., 2022,
    https://arxiv.org/abs/2202.05262).

    Args:
        rivals: number of other capitals that compete in each row.
    """

    split_by = ("country",)
    held_out_templates = 1

    def __init__(self, rivals: int = 4) -> None:
        if not 1 <= rivals < len(words("capitals")):
            raise IITKitError(f"Capitals.rivals: {rivals}: expected 1 to {len(words('capitals')) - 1}")
        self.rivals = rivals
        super().__init__()

    def causal_model(self) -> CausalModel:
        """Country → capital."""
        capitals = {row["country"]: row["capital"] for row in words("capitals")}
        cities = list(capitals.values())
        rivals = numbered("rival", self.rivals)
        model = CausalModel(
            prompt=TEMPLATES,
            output="capital",
            candidates=["capital", *rivals],
            surface={city: f" {city}" for city in cities},
        )
        model.variables(country=list(capitals))

        @model.mechanism(domain=cities)
        def capital(country: str) -> str:
            return capitals[country]

        for k, rival in enumerate(rivals, start=1):
            follows = dict(zip(capitals, cities[k:] + cities[:k], strict=True))
            model.mechanism(domain=cities)(mechanism_of(rival, ["country"], follows.__getitem__))
        return model
