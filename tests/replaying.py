"""Batches, runners and checks for replay against the plain run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from byhand import PadSide, Pairs, cast, prompts, relative
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedModel

from iitkit.batch import Batch
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo
from iitkit.models.anatomy import locate
from iitkit.models.replay import Keeping, Replay, ReplayPrepared, make_runner
from iitkit.models.runs import PlainRunner
from iitkit.models.sites import Site

SIDES: tuple[PadSide, ...] = ("left", "right")
LAYERS, WIDTH = 4, 32


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(fresh(family), dtype)


def fresh(family: str) -> PreTrainedModel:
    if family != "gptj":
        return tiny_model(family, LAYERS)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    untyped: Any = GPTJForCausalLM(
        GPTJConfig(vocab_size=len(tiny_tokenizer()), initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes)
    )
    found: PreTrainedModel = untyped.eval().requires_grad_(False)
    return found


def subspace(rank: int, dtype: torch.dtype, seed: int = 0) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(WIDTH, generator=torch.Generator().manual_seed(seed)), rank=rank).to(dtype)


def runners(
    model: nn.Module,
    sites: Sequence[tuple[int | None, str]],
    replay: str = "auto",
    keeping: Keeping | None = None,
) -> tuple[Replay, PlainRunner]:
    locations = [locate(model, Site(layer, component)) for layer, component in sites]
    runner = make_runner(model, locations, replay, keeping)
    assert isinstance(runner, Replay)
    return runner, PlainRunner(model, locations)


def pool(count: int, seed: int = 0, shortest: int = 4) -> tuple[list[list[int]], list[int]]:
    """Prompts of ragged length and, for each, a position: one prompt has it at 0, one at its last token."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (torch.randint(0, 6, (count,), generator=draw) + shortest).tolist()
    positions = [int(torch.randint(0, length, (1,), generator=draw)) for length in lengths]
    positions[0], positions[1] = 0, lengths[1] - 1
    return prompts(lengths, seed), positions


def draw_batch(
    rows: Sequence[tuple[int, int]],
    texts: Sequence[list[int]],
    positions: Sequence[Sequence[Sequence[int]]],
    side: PadSide,
    active: list[list[bool]] | None = None,
    candidates: Tensor | None = None,
) -> Batch:
    """The batch of pairs of prompt numbers; ``positions[prompt][placement]`` are lists."""
    numbers = [b for b, _ in rows], [s for _, s in rows]
    return pairs_of(rows, texts, positions, active).batch(side, numbers, candidates)


def pairs_of(
    rows: Sequence[tuple[int, int]],
    texts: Sequence[list[int]],
    positions: Sequence[Sequence[Sequence[int]]],
    active: list[list[bool]] | None = None,
) -> Pairs:
    """The same pairs, to be run by hand."""
    at = [[list(p) for p in placements] for placements in positions]
    return Pairs(
        [texts[b] for b, _ in rows],
        [texts[s] for _, s in rows],
        [at[b] for b, _ in rows],
        [at[s] for _, s in rows],
        active,
    )


def check_equal(
    replay: Replay,
    plain: PlainRunner,
    batch: Batch,
    edits: Sequence[Intervention],
    tolerance: float,
    effect: bool = True,
    label: bool = False,
) -> Tensor:
    """Replay and the plain run give the same logits and the same gradients; return the plain run's logits.

    ``label`` runs the labels' tokens too, and compares where they are real.
    """
    none = batch.labels[:, :-1] if label else batch.labels[:, :0]
    real = torch.cat([torch.ones_like(batch.labels[:, :1], dtype=torch.bool), none >= 0], 1)
    trained = [parameter for edit in edits for parameter in edit.parameters() if parameter.requires_grad]
    found, unedited, grads = [], [], []
    for runner in (replay, plain):
        prepared = runner.prepare(batch)
        assert isinstance(prepared, ReplayPrepared) == (runner is replay), replay.reason
        unedited.append(prepared.logits(None, none)[real])
        found.append(prepared.logits(edits, none)[real])
        if trained:
            weights = torch.randn(found[-1].shape, generator=torch.Generator().manual_seed(5))
            grads.append(torch.autograd.grad((found[-1] * weights.to(found[-1])).sum(), trained))
    assert relative(unedited[0], unedited[1]) <= tolerance
    assert relative(found[0], found[1]) <= tolerance
    if effect:  # every edit does something, so the check can fail
        assert relative(found[1], unedited[1]) > 1e-3
    for one, other in zip(*grads, strict=True) if grads else ():
        if effect or float(other.abs().max()) > 0:
            assert float(other.abs().max()) > 1e-4
            assert relative(one, other) <= tolerance
        else:
            assert float(one.abs().max()) == 0
    return found[1].detach()


ROWS = [(2, 3), (0, 1), (1, 0), (4, 5), (5, 2), (3, 4), (2, 0)]
