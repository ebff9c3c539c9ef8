"""A split's fixed pool of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iitkit.causal import CausalModel, Setting, Text
from iitkit.causal.sampling import take
from iitkit.causal.variables import Codes
from iitkit.data.cache import PromptCache
from iitkit.data.prompts import Inputs
from iitkit.data.ragged import Ragged
from iitkit.data.tokens import find_positions, tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError
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
        setting: every variable's codes, [N] each; empty where there is no causal model.
        templates: template of each prompt, [N].
        texts: the rendered prompts; empty where the input is no text.
        prompts: what they are to the network.
        positions: for each placement, each prompt's tokens at its site.
        first: number of the first prompt; replay keeps activations under these numbers, so no two pools share one.
    """

    setting: Setting
    templates: Codes
    texts: Sequence[Text]
    prompts: Inputs
    positions: list[Ragged]
    first: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def taken(self, rows: Codes) -> Pool:
        """Return the pool with only the given rows (numbered anew from ``first``)."""
        return Pool(
            take(self.setting, rows),
            self.templates[rows],
            [self.texts[i] for i in rows.tolist()] if self.texts else [],
            self.prompts.taken(rows),
            [of_prompt.taken(rows) for of_prompt in self.positions],
            self.first,
        )


def make_pool(
    model: CausalModel,
    setting: Setting,
    templates: Codes,
    tokenizer: Any,
    positions: Mapping[str, Position],
    wording: Wording | str = "",
    first: int = 0,
    cache: PromptCache | None = None,
) -> Pool:
    """Render and tokenise a split's prompts and find every placement's tokens in each; see :func:`text_pool`."""
    texts = model.render(setting, templates)
    return text_pool(texts, tokenizer, positions, wording, setting, templates, first, cache)


def text_pool(
    texts: Sequence[Text],
    tokenizer: Any,
    positions: Mapping[str, Position],
    wording: Wording | str = "",
    setting: Setting | None = None,
    templates: Codes | None = None,
    first: int = 0,
    cache: PromptCache | None = None,
) -> Pool:
    """Tokenise texts and find every placement's tokens in each.

    Args:
        texts: the prompts with their spans.
        tokenizer: a fast tokenizer.
        positions: placement → position.
        wording: what stands around each prompt, or only a prefix.
        setting: every variable's codes; none unless said.
        templates: template of each; 0 unless said.
        first: number of the first prompt.
        cache: keeps the tokens for later runs; none unless said.

    Raises:
        IITKitError: see :func:`tokenise` and :func:`find_positions`.
    """
    worded = Wording(wording) if isinstance(wording, str) else wording
    prompts = tokenise(tokenizer, texts, worded) if cache is None else cache.prompts(tokenizer, texts, worded)
    found = find_positions(tokenizer, prompts, texts, positions)
    return Pool(setting or {}, _templates(templates, len(prompts)), texts, prompts, found, first)


def input_pool(
    prompts: Inputs,
    positions: Mapping[str, Position],
    setting: Setting | None = None,
    templates: Codes | None = None,
    first: int = 0,
) -> Pool:
    """Make a pool of inputs that are no text: :func:`iitkit.data.prompts.symbols`, or :class:`Arrays`.

    Args:
        prompts: the inputs.
        positions: placement → position: of symbols a slot's name, ``last``, …; of arrays their only place.
        setting: every variable's codes; none unless said.
        templates: template of each; 0 unless said.
        first: number of the first input.

    Raises:
        IITKitError: a position that the inputs do not have, or no inputs.
    """
    if not len(prompts):
        raise IITKitError("the pool is empty: there are no inputs")
    found = [prompts.find(position, f"alignment.{name}") for name, position in positions.items()]
    return Pool(setting or {}, _templates(templates, len(prompts)), [], prompts, found, first)


def _templates(templates: Codes | None, n: int) -> Codes:
    return np.zeros(n, dtype=np.int64) if templates is None else templates
