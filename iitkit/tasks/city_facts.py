"""City facts: can one attribute of a city be changed while its others stay?"""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError, choices
from iitkit.tasks.base import Task, words
from iitkit.tasks.functions import mechanism_of
from iitkit.tasks.several import numbered

RELATIONS = {
    "country": "is located in the country of",
    "continent": "is located on the continent of",
    "language": "has an official language, which is called",
}
TEMPLATES = [
    "As we all know, the city of {city} {relation}",
    "Geography lesson: the city of {city} {relation}",
    "Everyone knows that the city of {city} {relation}",
    "In the world's atlas, the city of {city} {relation}",  # held out
]


class CityFacts(Task):
    """``Geography lesson: the city of Lyon is located in the country of`` → `` France``.

    Variables: ``city``, ``attribute`` (country, continent or language: what is asked for; both exogenous),
    ``relation`` (the words that ask for it), ``country``, ``continent``, ``language`` (of the city), ``answer`` (the
    attribute that is asked for), ``rival_1`` … ``rival_n`` (the values that follow in that attribute's list). Each
    attribute is computed from the city by itself, so an interchange of ``country`` changes the answer where the country
    is asked for, and no other: flipped pairs show what RAVEL calls cause, kept pairs, most of which ask for another
    attribute, isolation. Align several attributes to measure both for each. The candidates of a row are the answer and
    the rivals of its base, and its label; a label may have several tokens. After RAVEL (Huang et al., 2024,
    https://arxiv.org/abs/2402.17700).

    Args:
        attributes: those that prompts ask for.
        rivals: number of other answers that compete in each row.
    """

    split_by = ("city",)
    held_out_templates = 1

    def __init__(self, attributes: Sequence[str] = ("country", "continent", "language"), rivals: int = 4) -> None:
        if isinstance(attributes, str) or not attributes or not set(attributes) <= set(RELATIONS):
            raise IITKitError(
                f"CityFacts.attributes: {attributes!r}: expected a list of one or more of {choices(RELATIONS)}"
            )
        if rivals < 1:
            raise IITKitError(f"CityFacts.rivals: {rivals}: expected 1 or more")
        self.attributes, self.rivals = list(dict.fromkeys(attributes)), rivals
        super().__init__()

    def causal_model(self) -> CausalModel:
        """City → country, continent, language; these and the attribute → answer."""
        facts = {row["city"]: row for row in words("cities")}
        values = {name: sorted({row[name] for row in facts.values()}) for name in RELATIONS}
        everything = [value for name in RELATIONS for value in values[name]]
        rivals = numbered("rival", self.rivals)
        model = CausalModel(
            prompt=TEMPLATES,
            output="answer",
            candidates=["answer", *rivals],
            surface={value: f" {value}" for value in everything},
        )
        model.variables(city=list(facts), attribute=self.attributes)

        @model.mechanism
        def relation(attribute: str) -> str:
            return RELATIONS[attribute]

        @model.mechanism(domain=values["country"])
        def country(city: str) -> str:
            return facts[city]["country"]

        @model.mechanism(domain=values["continent"])
        def continent(city: str) -> str:
            return facts[city]["continent"]

        @model.mechanism(domain=values["language"])
        def language(city: str) -> str:
            return facts[city]["language"]

        @model.mechanism(domain=everything)
        def answer(attribute: str, country: str, continent: str, language: str) -> str:
            return {"country": country, "continent": continent, "language": language}[attribute]

        for k, rival in enumerate(rivals, start=1):
            follows = {x: some[(i + k) % len(some)] for some in values.values() for i, x in enumerate(some)}
            model.mechanism(domain=everything)(mechanism_of(rival, ["answer"], follows.__getitem__))
        return model
