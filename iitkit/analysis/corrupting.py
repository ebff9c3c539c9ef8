"""Corrupted runs for causal tracing: what the token embeddings of a subject are replaced by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from iitkit.analysis.prompts import Encoded, padded, short
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.anatomy import locate
from iitkit.models.grids import Rows
from iitkit.models.sites import Site
from iitkit.positions import Span

Kind = Literal["noise", "prompt", "zero", "mean"]

_IDS = 4096
"""Token ids that are embedded at once for the mean of the vocabulary."""


@dataclass(frozen=True)
class Corruption:
    """How a subject is corrupted.

    Args:
        kind: ``noise`` added to its token embeddings; ``prompt``, another prompt with as many tokens; ``zero`` or
            ``mean`` (the mean embedding of the vocabulary) in the place of its token embeddings.
        noise: standard deviation of the noise, as a multiple of that of the subjects' token embeddings.
        draws: how many draws of noise are averaged; 1 of the other kinds, which have nothing to draw.
        seed: of the noise. Each prompt's draws depend on it and on the prompt alone.

    Raises:
        IITKitError: another kind, no draw, noise that is no positive number.
    """

    kind: Kind = "noise"
    noise: float = 3.0
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            hint = did_you_mean(self.kind, get_args(Kind))
            raise IITKitError(f"corruption {self.kind!r}:{hint} expected one of {choices(get_args(Kind))}")
        if self.draws < 1:
            raise IITKitError(f"draws {self.draws}: expected 1 or more")
        if not 0 < self.noise < math.inf:
            raise IITKitError(f"noise {self.noise}: expected a multiple of the embeddings' deviation, more than 0")

    @property
    def rows(self) -> int:
        """How many corrupted rows an example has."""
        return self.draws if self.kind == "noise" else 1


@torch.no_grad()
def embedded(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Return the output of the token embedding for some tokens, [n, width]."""
    module: Any = locate(model, Site(component="embeddings"), "embeddings").module
    found: Tensor = module(torch.tensor([list(ids)], device=next(model.parameters()).device))[0]
    return found


def deviation(model: nn.Module, prompts: Sequence[Encoded], subjects: Sequence[Span]) -> float:
    """Return the standard deviation of the token-embedding outputs over all subject tokens and all features."""
    found = [embedded(model, prompt.ids[slice(*at)]) for prompt, at in zip(prompts, subjects, strict=True)]
    return float(torch.cat(found).double().std())


def check_other(how: Corruption, prompt: Encoded, other: Encoded | None) -> None:
    """Check a prompt's corrupt one, where one is needed.

    Raises:
        IITKitError: a corrupt prompt that is missing, has another number of tokens, or is the prompt itself.
    """
    if how.kind != "prompt":
        return
    if other is None:
        raise IITKitError(f"{short(prompt.text)} has no corrupt prompt: give it, or another corruption than 'prompt'")
    if len(other) != len(prompt):
        raise IITKitError(
            f"{short(other.text)} has {len(other)} tokens, {short(prompt.text)} has {len(prompt)}: symmetric token "
            "replacement needs as many in both"
        )
    if other.ids == prompt.ids:
        raise IITKitError(f"{short(prompt.text)} and its corrupt prompt are the same: give another subject in it")


def corrupted(
    model: nn.Module, prompt: Encoded, subject: Span, how: Corruption, sigma: float, other: Encoded | None
) -> Rows:
    """Return the rows of a prompt's corrupted run.

    Args:
        model: the network.
        prompt: the clean prompt.
        subject: its subject's tokens.
        how: how it is corrupted.
        sigma: standard deviation of the subjects' token embeddings.
        other: the corrupt prompt, for the kind ``prompt``.

    Raises:
        IITKitError: a corrupt prompt that is missing or has another number of tokens.
    """
    device = next(model.parameters()).device
    if how.kind == "prompt":
        check_other(how, prompt, other)
        assert other is not None
        return Rows(padded([other.ids], 0, device))
    whole = embedded(model, prompt.ids)
    start, stop = subject
    rows = whole[None].repeat(how.rows, 1, 1)
    if how.kind == "noise":
        generator = torch.Generator().manual_seed(_seed(how.seed, prompt.text))
        drawn = torch.randn(how.draws, stop - start, whole.shape[1], generator=generator, dtype=torch.float32)
        rows[:, start:stop] += (how.noise * sigma * drawn).to(rows)
    else:
        rows[:, start:stop] = 0 if how.kind == "zero" else _mean(model, whole.shape[1]).to(rows)
    return Rows(padded([prompt.ids] * how.rows, 0, device), rows)


def _seed(seed: int, text: str) -> int:
    """A seed of each prompt's own, so that its draws are the same whatever prompts stand beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8], "big") % 2**63


def _mean(model: nn.Module, width: int) -> Tensor:
    module: Any = locate(model, Site(component="embeddings"), "embeddings").module
    count = int(module.weight.shape[0])
    total = torch.zeros(width, dtype=torch.float64)
    for start in range(0, count, _IDS):
        total += embedded(model, range(start, min(start + _IDS, count))).double().sum(0).cpu()
    return total / count
