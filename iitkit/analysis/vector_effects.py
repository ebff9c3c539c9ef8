"""What steering vectors do: the logits of good and bad words, and the words that are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.analysis.prompts import Prompt, pad_of
from iitkit.analysis.vectors import SteeringVectors, encoded_prompts
from iitkit.errors import IITKitError
from iitkit.interventions.checks import number, whole
from iitkit.models.generation import intervening


@dataclass(frozen=True)
class Effect:
    """What the prompts became under one steering.

    Args:
        name: whose: a vector's name, or ``none``.
        kind: ``none``, ``vector`` or ``random`` (a random direction of the vector's norm).
        strength: what the vector was multiplied by.
        logits: for each prompt, mean logit of the good words at its end less that of the bad words.
        texts: for each prompt, what was written behind it.
        good: how many good words these texts hold.
        bad: how many bad ones.
    """

    name: str
    kind: str
    strength: float
    logits: list[float]
    texts: list[str]
    good: int
    bad: int

    @property
    def logit(self) -> float:
        """Mean over prompts."""
        return sum(self.logits) / len(self.logits)


@torch.no_grad()
def steering_effects(
    model: Any,
    tokenizer: Any,
    vectors: SteeringVectors,
    prompts: Sequence[str | Prompt],
    good: Sequence[str],
    bad: Sequence[str],
    *,
    strengths: Sequence[float] = (-1.0, 1.0),
    tokens: int = 20,
    prefix: str = "",
    seed: int = 0,
    special_tokens: bool = True,
    tell: Callable[[Effect], None] = lambda effect: None,
) -> list[Effect]:
    """Add each vector at all tokens, the generated ones too, and see what is written (greedily).

    Args:
        model: a causal language model that generates.
        tokenizer: its fast tokenizer.
        vectors: which vectors; each by itself.
        prompts: what is gone on with.
        good: words that a push towards the positive prompts should bring; a word's first token is what counts.
        bad: words that it should take away.
        strengths: what each vector is multiplied by; a random vector of the same norm is tried at the same.
        tokens: how many are generated.
        prefix: text before every prompt.
        seed: of the random vectors.
        special_tokens: as for :func:`iitkit.vector`.
        tell: called with each effect as it is found.

    Returns:
        The plain model's, then of each vector those at each strength, the random vectors' beside them.

    Raises:
        IITKitError: no prompt, word or strength, or a good and a bad word that begin with the same token.
    """
    for key, given in (("prompts", prompts), ("good", good), ("bad", bad), ("strengths", strengths)):
        if not given:
            raise IITKitError(f"{key}: expected one or more")
    whole("tokens", tokens, 1)
    pushes = [number("strengths", strength) for strength in strengths]
    wanted, unwanted = _first_tokens(tokenizer, good), _first_tokens(tokenizer, bad)
    if shared := set(wanted) & set(unwanted):
        both = [word for word in (*good, *bad) if _first_tokens(tokenizer, [word])[0] in shared]
        raise IITKitError(f"good and bad: {', '.join(both[:4])} begin with the same token: leave some of them out")
    encoded = encoded_prompts(model, tokenizer, prompts, prefix, special_tokens, tokens)
    inputs = left_padded([text.ids for text in encoded], pad_of(tokenizer), next(model.parameters()).device)
    random, found = vectors.random(seed), []
    runs: list[tuple[str, str, float, SteeringVectors | None]] = [("none", "none", 0.0, None)]
    for name in vectors.sites:
        for strength in pushes:
            runs += [(name, "vector", strength, vectors), (name, "random", strength, random)]
    for name, kind, strength, which in runs:
        alignment = {} if which is None else which.only(name).alignment()
        with intervening(model, alignment, strength=strength, where="all"), _greedy(model):
            out = model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,  # whatever the model's own settings say
                num_return_sequences=1,
                pad_token_id=pad_of(tokenizer),
                return_dict_in_generate=True,
                output_logits=True,
            )
        logits = out.logits[0].double()
        difference = logits[:, wanted].mean(1) - logits[:, unwanted].mean(1)
        texts = tokenizer.batch_decode(out.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        effect = Effect(
            name, kind, float(strength), difference.tolist(), texts, count_words(texts, good), count_words(texts, bad)
        )
        tell(effect)
        found.append(effect)
    return found


def effects_table(effects: Sequence[Effect]) -> str:
    """Return effects as a table: the mean logit difference, its shift from the plain model's, good and bad words."""
    plain = next(effect for effect in effects if effect.kind == "none")
    lines = [f"{'':<24}{'strength':>9}{'logit good − bad':>18}{'shift':>8}{'good words':>12}{'bad words':>11}"]
    for effect in effects:
        label = "no vector" if effect.kind == "none" else f"{effect.name}, {effect.kind}"
        strength = "" if effect.kind == "none" else f"{effect.strength:+g}"
        shift = "" if effect.kind == "none" else f"{effect.logit - plain.logit:+.2f}"
        lines.append(f"{label:<24}{strength:>9}{effect.logit:>+18.2f}{shift:>8}{effect.good:>12}{effect.bad:>11}")
    return "\n".join(lines)


def count_words(texts: Sequence[str], words: Sequence[str]) -> int:
    """Return how often any of some words stands in texts, as a whole word, in capitals or not.

    >>> count_words(["Good, not goodness: good!"], ["good"])
    2
    """
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word.strip()) for word in words)})(?!\w)", re.IGNORECASE)
    return sum(len(pattern.findall(text)) for text in texts)


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return ragged rows padded on the left, as ``generate`` wants them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def _greedy(model: nn.Module) -> Iterator[None]:
    """Take the model's own sampling settings away: transformers warns of those that greedy search leaves unread."""
    config = getattr(model, "generation_config", None)
    settings = [name for name in ("temperature", "top_p", "top_k", "min_p", "typical_p") if hasattr(config, name)]
    before = {name: getattr(config, name) for name in settings}
    try:
        for name in settings:
            setattr(config, name, None)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _first_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    found = []
    for word in words:
        ids = tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"] if word.strip() else []
        if not ids:
            raise IITKitError(f"word {word!r} has no token")
        found.append(int(ids[0]))
    return found
