"""What steering does to what a model writes: continuations side by side, and how effect and fluency change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.analysis.prompts import answer_token, pad_of, short
from iitkit.errors import IITKitError
from iitkit.models.passes import unedited

FLUENT = 2.0
"""A strength is fluent while the plain model finds what is written at most this many times as perplexing as its own."""

Context = Callable[[float], AbstractContextManager[Any]]
"""Strength → the context in which the model is steered that strongly."""


@dataclass(frozen=True)
class Continuations:
    """What a model wrote.

    Args:
        texts: each prompt's continuation, special tokens left out.
        perplexity: of each under the plain model: exp of the mean negative log-likelihood of its tokens; NaN of none.
        first: log-probabilities of the first new token under which they were written, [prompts, vocabulary].
    """

    texts: list[str]
    perplexity: list[float]
    first: Tensor


def left_padded(
    tokenizer: Any, texts: Sequence[str], device: torch.device, add_special_tokens: bool = True
) -> dict[str, Tensor]:
    """Return texts as tokens, padded on the left.

    Args:
        tokenizer: of the model.
        texts: the texts.
        device: where the tokens go.
        add_special_tokens: whether the tokenizer adds what it adds by itself, e.g. a first token.

    Raises:
        IITKitError: no text, or one without a token.
    """
    rows = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
    if not rows or not all(rows):
        raise IITKitError("no prompt given: expected one text or more, each of a token or more")
    width, pad = max(len(row) for row in rows), pad_of(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def written(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    context: AbstractContextManager[Any],
    *,
    new_tokens: int = 40,
    seed: int | None = None,
    temperature: float = 1.0,
    add_special_tokens: bool = True,
) -> Continuations:
    """Let a model continue prompts inside a context.

    Args:
        model: a language model that generates.
        tokenizer: its tokenizer.
        texts: the prompts.
        context: what steers it.
        new_tokens: tokens to write at most.
        seed: sample with it; greedy unless said.
        temperature: of sampling.
        add_special_tokens: see :func:`left_padded`; a chat template writes these tokens itself.

    Raises:
        IITKitError: no prompt, or what the context finds wrong when the model runs.
    """
    device = next(model.parameters()).device
    given = left_padded(tokenizer, texts, device, add_special_tokens)
    untyped: Any = model
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if seed is not None:
        options = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    options |= {"num_beams": 1, "num_return_sequences": 1}  # whatever the model's own settings say
    pad = getattr(tokenizer, "pad_token_id", None)
    options["pad_token_id"] = pad if pad is not None else getattr(tokenizer, "eos_token_id", 0)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        if seed is not None:
            torch.manual_seed(seed)
        with context:
            out = untyped.generate(
                **given, max_new_tokens=new_tokens, output_logits=True, return_dict_in_generate=True, **options
            )
    new = out.sequences[:, given["input_ids"].shape[1] :]
    real = _real(new, untyped.generation_config.eos_token_id)
    return Continuations(
        [tokenizer.decode(row[keep], skip_special_tokens=True) for row, keep in zip(new, real, strict=True)],
        _perplexity(model, given, new, real),
        out.logits[0].float().log_softmax(-1).cpu(),
    )


def _real(new: Tensor, ends: Any) -> Tensor:
    """Return which new tokens were written: up to the first that ends a text, and that one."""
    stops = [] if ends is None else ends if isinstance(ends, list) else [ends]
    ended = torch.isin(new, torch.tensor(stops, device=new.device, dtype=new.dtype))
    return ended.long().cumsum(1) - ended.long() == 0


def _perplexity(model: nn.Module, given: Mapping[str, Tensor], new: Tensor, real: Tensor) -> list[float]:
    ids = torch.cat([given["input_ids"], new], 1)
    mask = torch.cat([given["attention_mask"], real.long()], 1)
    # the mask counts on the left only: what follows a text's end is seen by nothing that is counted
    with unedited(model):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    start = given["input_ids"].shape[1]
    scores = logits[:, start - 1 : -1].float().log_softmax(-1).gather(2, new[:, :, None])[:, :, 0]
    means = (scores * real).sum(1) / real.sum(1)
    return [float(value) for value in (-means).exp()]


@dataclass(frozen=True)
class Strength:
    """One row of a sweep, averaged over the prompts.

    Args:
        strength: of the steering.
        divergence: KL(steered ‖ plain) of the first new token's distribution, in nats.
        expected: share of probability that the expected answer has of both answers; None without answers.
        perplexity: of what is written under the plain model: the geometric mean over prompts.
        text: the first prompt's continuation.
    """

    strength: float
    divergence: float
    expected: float | None
    perplexity: float
    text: str


def sweep(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    context: Context,
    strengths: Sequence[float],
    *,
    answers: tuple[str, str] | None = None,
    new_tokens: int = 40,
    tell: Callable[[Strength], None] | None = None,
    add_special_tokens: bool = True,
) -> list[Strength]:
    """Measure effect and fluency of steering at several strengths; greedy continuations.

    Args:
        model: a language model that generates.
        tokenizer: its tokenizer.
        texts: the prompts.
        context: the steering at a strength.
        strengths: what to try.
        answers: the answer that steering should bring, and the other one; their first tokens are compared.
        new_tokens: tokens to write at most.
        tell: is told each row as soon as it is known.
        add_special_tokens: see :func:`left_padded`; a chat template writes these tokens itself.

    Raises:
        IITKitError: an answer without a token of its own behind a prompt, or both with the same first one.
    """
    pairs = None if answers is None else _first_tokens(tokenizer, texts, answers)
    with unedited(model):
        plain = written(
            model, tokenizer, texts, context(0.0), new_tokens=1, add_special_tokens=add_special_tokens
        ).first
    rows = []
    for strength in strengths:
        found = written(
            *(model, tokenizer, texts, context(strength)), new_tokens=new_tokens, add_special_tokens=add_special_tokens
        )
        expected = None if pairs is None else float(found.first.gather(1, pairs).softmax(-1)[:, 0].mean())
        rows.append(
            Strength(
                strength,
                float((found.first.exp() * (found.first - plain)).sum(-1).mean()),
                expected,
                float(torch.tensor(found.perplexity).log().nanmean().exp()),
                found.texts[0],
            )
        )
        if tell is not None:
            tell(rows[-1])
    return rows


def _first_tokens(tokenizer: Any, texts: Sequence[str], answers: tuple[str, str]) -> Tensor:
    """Return the first token of each answer behind each text, [texts, 2]."""
    found = []
    for text in texts:
        pair = [answer_token(tokenizer, text, answer) for answer in answers]
        if pair[0] == pair[1]:
            raise IITKitError(
                f"answers {answers[0]!r} and {answers[1]!r} begin with the same token behind {short(text)}: give others"
            )
        found.append(pair)
    return torch.tensor(found)


def suggested(rows: Sequence[Strength]) -> tuple[float, float] | None:
    """Return the range of strengths that are fluent and do at least half of what the fluent ones can do.

    It is around the one that does most (of several, the weakest), as far as every strength tried in it will do.
    Fluent: at most ``FLUENT`` times the perplexity of strength 0 (of the weakest, without 0). The effect is the
    expected answer's share, where answers were given, and the divergence otherwise. None where nothing has an effect.
    """
    reference = min(rows, key=lambda row: abs(row.strength))
    fluent = [row for row in rows if row.perplexity <= FLUENT * reference.perplexity]

    def effect(row: Strength) -> float:
        return row.divergence if row.expected is None else row.expected - (reference.expected or 0.0)

    best = max((effect(row) for row in fluent), default=0.0)
    if best <= 0:
        return None
    top = min((row for row in fluent if effect(row) == best), key=lambda row: abs(row.strength))
    able = {id(row) for row in fluent if effect(row) >= best / 2}
    first = last = top.strength
    tried = sorted(rows, key=lambda row: row.strength)
    at = tried.index(top)
    for row in takewhile(lambda row: id(row) in able, reversed(tried[:at])):
        first = row.strength
    for row in takewhile(lambda row: id(row) in able, tried[at:]):
        last = row.strength
    return first, last
