"""Alignments whose placements share, join or divide: against hooks placed by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from byhand import DTYPES, PadSide, Pairs, activation, cast, gram_schmidt, logits_of, module_of, prompts, relative, swap
from tiny import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.batch import Batch
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, RotatedSubspace, SiteInfo, Vanilla
from iitkit.models.placing import place, site_info
from iitkit.models.replay import make_runner
from iitkit.models.runs import PlainRunner
from iitkit.models.sites import Placement
from iitkit.models.stages import StagedRunner

SIDES: tuple[PadSide, ...] = ("left", "right")
FAMILIES = ("gpt2", "llama")
LAYERS, WIDTH = 4, 32


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(tiny_model(family, LAYERS), dtype)


def placed(model: nn.Module, **placements: dict[str, Any]) -> tuple[list[Any], list[Intervention]]:
    alignment = {name: Placement.from_plain(name, plain) for name, plain in placements.items()}
    locations, interventions = place(model, alignment, torch.Generator().manual_seed(0))
    return list(locations.values()), list(interventions.values())


def five(at: list[list[list[int]]], from_: list[list[list[int]]]) -> Pairs:
    return Pairs(prompts([7, 4, 9, 5, 6], seed=1), prompts([5, 8, 4, 9, 6], seed=2), at, from_)


def free_of(edit: Intervention) -> Tensor:
    return gram_schmidt(dict(edit.named_parameters())["space.free"])


@pytest.mark.parametrize("family", FAMILIES)
def test_placements_that_share_use_one_object(family: str) -> None:
    """Each reads its own site's source: a stale activation of the first site would show."""
    pairs = five(
        [[[3], [2]], [[0], [3]], [[8], [8]], [[2], [4]], [[4], [0]]], [[[4], [2]], [[7], [1]]] + [[[0], [3]]] * 3
    )
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        locations, edits = placed(
            model, early={"layer": 1, "intervention": {"rank": 3}}, late={"layer": 3, "shared_with": "early"}
        )
        assert edits[0] is edits[1]
        edits[0].to(dtype)
        modules = [module_of(model, family, layer, "block_output") for layer in (1, 3)]
        with torch.no_grad():
            expected = pairs.logits(model, modules, [free_of(edits[0])] * 2)
            one = pairs.logits(model, modules[:1], [free_of(edits[0])])
        assert relative(expected, one) > 1e-3
        for side in SIDES:
            batch = pairs.batch(side, (range(5), range(5, 10)))
            for runner in (PlainRunner(model, locations), make_runner(model, locations, "auto")):
                assert relative(runner.prepare(batch).logits(edits, batch.labels[:, :0])[:, 0], expected) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_positions_are_one_vector(family: str) -> None:
    at, from_ = [[[0, 3]], [[1, 0]], [[8, 2]], [[2, 3]], [[4, 5]]], [[[1, 3]], [[7, 0]], [[0, 2]], [[2, 3]], [[4, 5]]]
    pairs = five(at, from_)
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        plain = {"layer": 2, "position": [0, -1], "joint": True, "intervention": {"rank": 5}}
        locations, edits = placed(model, both=plain)
        assert site_info(locations[0]) == SiteInfo(
            2 * WIDTH, input_width=site_info(locations[0]).input_width, positions=2
        )
        edit, rotation = edits[0].to(dtype), free_of(edits[0].to(dtype))
        assert rotation.shape == (2 * WIDTH, 5)
        module = module_of(model, family, 2, "block_output")
        expected = []
        for i, base in enumerate(pairs.bases):
            columns, theirs = at[i][0], from_[i][0]
            source = activation(model, pairs.sources[i], module)[theirs].flatten()
            before = activation(model, base, module)[columns].flatten()
            with torch.no_grad():
                after = (before + rotation @ (rotation.T @ (source - before))).reshape(2, WIDTH)
                # each position in turn takes its half
                ours = [(module, [c], lambda _, half=half: half) for c, half in zip(columns, after, strict=True)]
                expected.append(logits_of(model, base, ours)[-1])
        for side in SIDES:
            batch = pairs.batch(side, (range(5), range(5, 10)))
            for runner in (PlainRunner(model, locations), make_runner(model, locations, "auto")):
                found = runner.prepare(batch).logits([edit], batch.labels[:, :0])[:, 0]
                assert relative(found, torch.stack(expected)) <= tolerance


def test_a_joint_intervention_refuses_another_number_of_positions() -> None:
    model = model_of("gpt2")
    locations, edits = placed(model, both={"layer": 2, "position": [0, -1], "joint": True, "intervention": {"rank": 5}})
    pairs = five([[[0, 3, 1]]] + [[[0, 1]]] * 4, [[[0, 3, 1]]] + [[[0, 1]]] * 4)
    batch = pairs.batch("right")
    with pytest.raises(IITKitError, match="the joint intervention was built for 2 positions, a row has 3"):
        PlainRunner(model, locations).prepare(batch).logits(edits, batch.labels[:, :0])


@pytest.mark.parametrize("family", FAMILIES)
def test_variables_share_one_rotation_and_swap_their_own_blocks(family: str) -> None:
    """Different rows swap different blocks: no row gets the union of all."""
    pairs = five(
        [[[3]] * 2, [[0]] * 2, [[8]] * 2, [[2]] * 2, [[4]] * 2], [[[4]] * 2, [[7]] * 2, [[0]] * 2, [[3]] * 2, [[4]] * 2]
    )
    pairs.active = [[True, False], [False, True], [True, True], [False, True], [True, False]]
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        alignment = {
            "left": Placement(
                2, intervention=lambda site: RotatedSubspace(site, coordinates={"left": 6, "right": [9, 30]})
            ),
            "right": Placement(2, shared_with="left", variable="right"),
        }
        alignment = {name: Placement.from_plain(name, placement) for name, placement in alignment.items()}
        locations, interventions = place(model, alignment, torch.Generator().manual_seed(0))
        edit = interventions["left"].to(dtype)
        assert interventions["right"] is edit
        whole = free_of(edit)
        assert whole.shape == (WIDTH, WIDTH)
        rotations = [whole[:, :6], whole[:, [9, 30]]]
        module = module_of(model, family, 2, "block_output")
        with torch.no_grad():
            expected = pairs.logits(model, [module, module], rotations)
            union = replace(pairs, active=[[True, True]] * 5).logits(model, [module, module], rotations)
        assert relative(union, expected) > 1e-3
        batch = pairs.batch("right", (range(5), range(5, 10)))
        for runner in (
            PlainRunner(model, list(locations.values())),
            make_runner(model, list(locations.values()), "auto"),
        ):
            found = runner.prepare(batch).logits([edit, edit], batch.labels[:, :0])[:, 0]
            assert relative(found, expected) <= tolerance


# --- several sources ---


def two_sources(side: PadSide) -> tuple[Batch, list[list[int]], list[list[int]], list[list[int]]]:
    """Five pairs with two sources: placement 0 takes from the first, 1 from the second; positions 1 and 2."""
    at = [[[1], [2]]] * 5
    first = five(at, at)
    other = prompts([6, 3, 9, 4, 8], seed=5)
    batch = first.batch(side)
    second = Pairs(first.bases, other, at, at).batch(side)
    positions = torch.stack([batch.source_positions[:, 0], second.source_positions[:, 1]], 1)
    both = replace(
        batch,
        sources=(batch.sources[0], second.sources[0]),
        source_of=torch.tensor([[0, 1]] * 5),
        source_positions=positions,
    )
    return both, first.bases, first.sources, other


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_placement_takes_from_its_own_source(family: str, side: PadSide) -> None:
    batch, bases, first, other = two_sources(side)
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        locations, edits = placed(
            model, a={"layer": 1, "intervention": {"rank": 3}}, b={"layer": 2, "intervention": {"rank": 4}}
        )
        modules = [module_of(model, family, layer, "block_output") for layer in (1, 2)]
        expected = []
        with torch.no_grad():
            for base, one, two in zip(bases, first, other, strict=True):
                pair = Pairs([base], [one], [[[1]]], [[[1]]]), Pairs([base], [two], [[[2]]], [[[2]]])
                edited = [
                    edit
                    for which, p in enumerate(pair)
                    for edit in p.edits(model, 0, [modules[which]], [free_of(edits[which].to(dtype))])
                ]
                expected.append(logits_of(model, base, edited)[-1])
        found = PlainRunner(model, locations).prepare(batch).logits(edits, batch.labels[:, :0])[:, 0]
        assert relative(found, torch.stack(expected)) <= tolerance


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_may_itself_be_the_result_of_an_interchange(family: str, side: PadSide) -> None:
    """Source 0 → (position 1, layer 1) → source 1 → (position 2, layer 2) → base."""
    batch, bases, first, other = two_sources(side)
    # the first placement edits the second source: its columns there
    into = batch.source_positions[:, 1] - 1
    batch = replace(batch, stage=(0, 1), base_positions=torch.stack([into, batch.base_positions[:, 1]], 1))
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        locations, edits = placed(
            model, a={"layer": 1, "intervention": {"rank": 3}}, b={"layer": 2, "intervention": {"rank": 4}}
        )
        early, late = (module_of(model, family, layer, "block_output") for layer in (1, 2))
        a, b = (edit.to(dtype) for edit in edits)
        expected, unstaged = [], []
        with torch.no_grad():
            for base, one, two in zip(bases, first, other, strict=True):
                zero = activation(model, one, early)[1]
                seen: list[Tensor] = []
                handle = late.register_forward_hook(
                    lambda _, __, output, seen=seen: seen.append(
                        (output[0] if isinstance(output, tuple) else output)[0]
                    )
                )
                swapped = [(early, [1], swap(zero, free_of(a)))]
                logits_of(model, two, swapped)
                handle.remove()
                for source, kept in ((seen[-1][2], expected), (activation(model, two, late)[2], unstaged)):
                    kept.append(logits_of(model, base, [(late, [2], swap(source, free_of(b)))])[-1])
        assert relative(torch.stack(unstaged), torch.stack(expected)) > 1e-4  # leaving the first stage out would show
        prepared = StagedRunner(model, locations).prepare(batch)
        assert relative(prepared.logits(edits, batch.labels[:, :0])[:, 0], torch.stack(expected)) <= tolerance
        copies = prepared.logits(edits, batch.labels[:, :0].repeat_interleave(2, 0), copies=2)[:, 0]
        assert relative(copies[::2], torch.stack(expected)) <= tolerance
        assert relative(copies[1::2], torch.stack(expected)) <= tolerance
        # both stages are trained through
        prepared.logits(edits, batch.labels[:, :0]).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 0 for edit in edits for p in edit.parameters() if p.grad is not None)
        assert all(p.grad is not None for edit in edits for p in edit.parameters())


def test_staged_features_are_the_unedited_sources() -> None:
    batch, _, first, other = two_sources("right")
    batch = replace(batch, stage=(0, 1))
    model = model_of("gpt2")
    locations, _ = placed(model, a={"layer": 1}, b={"layer": 2})
    features = StagedRunner(model, locations).prepare(batch).features
    for p, (rows, layer) in enumerate(((first, 1), (other, 2))):
        module = module_of(model, "gpt2", layer, "block_output")
        expected = torch.stack([activation(model, row, module)[p + 1] for row in rows])
        assert relative(features[p], expected) <= 1e-5


# --- errors ---


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        ({"a": {"layer": 1, "shared_with": "b"}}, "alignment.a: shared_with 'b' is no placement with an intervention"),
        (
            {"left": {"layer": 1}, "right": {"layer": 1, "shared_with": "lefft"}},
            r"alignment.right: shared_with 'lefft' .* Did you mean 'left'\? Expected one of left",
        ),
        (
            {"a": {"layer": 1}, "b": {"layer": 1, "component": "mlp_hidden", "shared_with": "a"}},
            "alignment.b: it shares the intervention of 'a', whose site has width 32 .*: share between sites of equal",
        ),
        ({"a": {"component": "logits"}}, r"alignment\.a: a variable cannot be placed in the logits"),
        (
            {"a": {"layer": 1, "component": "attention_weight"}},
            r"alignment\.a: the width of .* is not known or not fixed",
        ),
        ({"a": {"layer": 1, "head": 2}}, r"alignment\.a: .*block_output.* no heads"),
        (
            {"a": {"layer": 1, "joint": True, "position": "all"}},
            "alignment.a: joint needs a position with a fixed number",
        ),
        (
            {"a": {"layer": 1, "joint": True, "position": "name.all"}},
            "alignment.a: joint needs a position with a fixed",
        ),
        ({"a": {"layer": 1, "intervention": {"rank": 33}}}, "alignment.a.intervention: rank 33: expected 1 to"),
    ],
)
def test_errors(placements: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        placed(model_of("gpt2"), **placements)


def test_an_own_intervention_beside_a_shared_one_is_an_error() -> None:
    with pytest.raises(IITKitError, match=r"alignment\.b: it takes the intervention of 'a'"):
        Placement.from_plain("b", {"layer": 1, "shared_with": "a", "intervention": {"rank": 2}})
    with pytest.raises(IITKitError, match=r"alignment\.b: it takes the intervention of 'a'"):
        Placement.from_plain("b", Placement(1, shared_with="a", intervention=lambda site: Vanilla(site)))


def test_a_variable_without_a_block_is_an_error() -> None:
    alignment = {
        "a": Placement.from_plain(
            "a",
            {"layer": 1, "variable": "c", "intervention": lambda s: RotatedSubspace(s, coordinates={"a": 4, "b": 4})},
        )
    }
    with pytest.raises(
        IITKitError, match=r"alignment\.a: variable 'c' has no block of its own in the rotation: it has a, b"
    ):
        place(model_of("gpt2"), alignment)
