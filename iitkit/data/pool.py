"""A split's fixed pool of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iitkit.causal import CausalModel, Setting, Text
from iitkit.causal.sampling import take
from iitkit.causal.variables import Codes
from iitkit.data.tokens import Prompt, find_positions, tokenise
from iitkit.positions import Position

_numbered = 0


def new_numbers(n: int) -> int:
    """Return the first of ``n`` prompt numbers that no other pool of this process has."""
    global _numbered
    _numbered += n
    return _numbered - n


@dataclass(frozen=True)
class Pool:
    """The prompts of a split; epochs only pair them anew.

    Args:
        setting: every variable's codes, [N] each.
        templates: template of each prompt, [N].
        texts: the rendered prompts.
        prompts: the tokenised prompts.
        positions: for each placement, each prompt's tokens at its site.
        first: number of the first prompt; replay keeps activations under these numbers, so no two pools share one.
    """

    setting: Setting
    templates: Codes
    texts: list[Text]
    prompts: list[Prompt]
    positions: list[list[list[int]]]
    first: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def taken(self, rows: Codes) -> Pool:
        """Return the pool with only the given rows (numbered anew from ``first``)."""
        kept = rows.tolist()
        return Pool(
            take(self.setting, rows),
            self.templates[rows],
            [self.texts[i] for i in kept],
            [self.prompts[i] for i in kept],
            [[of_prompt[i] for i in kept] for of_prompt in self.positions],
            self.first,
        )


def make_pool(
    model: CausalModel,
    setting: Setting,
    templates: Codes,
    tokenizer: Any,
    positions: Mapping[str, Position],
    prefix: str,
    first: int = 0,
) -> Pool:
    """Render and tokenise a split's prompts and find every placement's tokens in each."""
    texts = model.render(setting, templates)
    prompts = tokenise(tokenizer, texts, prefix)
    found = [
        [find_positions(tokenizer, prompt, text, position, name) for prompt, text in zip(prompts, texts, strict=True)]
        for name, position in positions.items()
    ]
    return Pool(setting, templates, texts, prompts, found, first)
