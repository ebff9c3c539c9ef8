"""Replay is the plain run, for every component in a layer of every family; ragged prompts, both paddings."""

from __future__ import annotations

import pytest
import torch
from byhand import PadSide, Pairs, prompts, relative
from families import DECODERS, VOCABULARY, decoder

from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo
from iitkit.models.anatomy import components, locate
from iitkit.models.placing import site_info
from iitkit.models.replay import Replay, make_runner
from iitkit.models.runs import PlainRunner
from iitkit.models.sites import OUTSIDE, Site

CELLS = [
    (family, component)
    for family in DECODERS
    for component in components(decoder(family), 1)
    if component not in (*OUTSIDE, "attention_weight")
]


def pairs() -> Pairs:
    """Five ragged pairs; the two placements stand at other positions in every row, never both at the first token."""
    bases = prompts([7, 4, 9, 5, 6], seed=1, vocabulary=VOCABULARY)
    sources = prompts([5, 8, 4, 9, 6], seed=2, vocabulary=VOCABULARY)
    at = [[[3], [6]], [[1], [2]], [[8], [4]], [[2], [4]], [[4], [1]]]
    from_ = [[[4], [1]], [[7], [2]], [[0], [3]], [[3], [8]], [[4], [0]]]
    return Pairs(bases, sources, at, from_)


def edit_at(family: str, component: str, layer: int) -> Intervention:
    location = locate(decoder(family), Site(layer, component))
    width = site_info(location).width
    return LowRankSubspace(SiteInfo(width, generator=torch.Generator().manual_seed(layer)), rank=min(2, width))


def test_there_are_many_cells() -> None:
    assert len(CELLS) >= 17 * 14


@pytest.mark.parametrize(("family", "component"), CELLS)
@torch.no_grad()
def test_replay_is_the_plain_run(family: str, component: str) -> None:
    model, made = decoder(family), pairs()
    locations = [locate(model, Site(layer, component)) for layer in (1, 2)]
    edits = [edit_at(family, component, layer) for layer in (1, 2)]
    sides: tuple[PadSide, ...] = ("left", "right")
    for side in sides:
        batch = made.batch(side, (range(5), range(5, 10)))
        none = batch.labels[:, :0]
        expected = PlainRunner(model, locations).prepare(batch)
        runner = make_runner(model, locations, "auto")
        assert isinstance(runner, Replay)
        for _ in range(2):  # what is computed, and what is kept
            found = runner.prepare(batch)
            assert runner.reason is None
            plain = expected.logits(edits, none)
            assert relative(found.logits(edits, none), plain) <= 1e-5
            assert relative(found.logits(None, none), expected.logits(None, none)) <= 1e-5
            assert relative(plain, expected.logits(None, none)) > 1e-4  # the edit does something
            for ours, theirs in zip(found.features, expected.features, strict=True):
                assert relative(ours, theirs) <= 1e-5
