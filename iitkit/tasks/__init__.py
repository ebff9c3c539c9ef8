"""Ready-made causal models, one file a task."""

from iitkit.tasks.agreement import Agreement
from iitkit.tasks.base import Task, words
from iitkit.tasks.indirect_object import IndirectObject
from iitkit.tasks.pronoun_gender import PronounGender

__all__ = ["Agreement", "IndirectObject", "PronounGender", "Task", "words"]
