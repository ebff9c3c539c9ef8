"""Ready-made causal models, one file a task."""

from iitkit.tasks.agreement import Agreement
from iitkit.tasks.base import Task, words
from iitkit.tasks.binary_addition import BinaryAddition
from iitkit.tasks.boolean_tree import BooleanTree
from iitkit.tasks.capitals import Capitals
from iitkit.tasks.city_facts import CityFacts
from iitkit.tasks.entity_binding import EntityBinding
from iitkit.tasks.greater_than import GreaterThan
from iitkit.tasks.hierarchical_equality import HierarchicalEquality
from iitkit.tasks.indirect_object import IndirectObject
from iitkit.tasks.modular_addition import ModularAddition
from iitkit.tasks.multiple_choice import MultipleChoice
from iitkit.tasks.price_tagging import PriceTagging
from iitkit.tasks.pronoun_gender import PronounGender
from iitkit.tasks.sentiment import Sentiment
from iitkit.tasks.successor import Successor
from iitkit.tasks.two_digit_addition import TwoDigitAddition
from iitkit.tasks.written import Hypothesis

__all__ = [
    "Agreement",
    "BinaryAddition",
    "BooleanTree",
    "Capitals",
    "CityFacts",
    "EntityBinding",
    "GreaterThan",
    "HierarchicalEquality",
    "Hypothesis",
    "IndirectObject",
    "ModularAddition",
    "MultipleChoice",
    "PriceTagging",
    "PronounGender",
    "Sentiment",
    "Successor",
    "Task",
    "TwoDigitAddition",
    "words",
]
