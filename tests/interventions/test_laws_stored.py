"""The law of what is kept: checkpoints, specs, releases, and what is refused; every row has all of it."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interventions.tables import (
    EDITS,
    FILES,
    GROUPS,
    MASKS,
    NAMED,
    SPACES,
    D,
    build,
    draw,
    far,
    make,
    run,
    same,
    spec_of,
)
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, SiteInfo
from iitkit.interventions.edits import Edit
from iitkit.interventions.masks import Mask
from iitkit.interventions.spaces import Space

# --- law 6: checkpoints, specs, releases ---


def test_a_checkpoint_holds_everything_bit_for_bit(rows: list[str]) -> None:
    for row in rows:
        made, other, given = make(row), build(row, seed=6), draw(4, 3)
        for _ in range(3):  # the counters of draws move
            run(made, given)
        if not other.unfitted:
            run(other, given)
        other.load_state_dict(made.state_dict(), strict=True)
        assert same(run(other, given), run(made, given)), row
        with torch.no_grad():
            assert same(run(other, given), run(made, given)), row
        assert same(run(other.eval(), given), run(made.eval(), given)), row


def test_the_spec_rebuilds_it(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        if made.temperature is not None:
            made.temperature = 0.3  # what a schedule does is no option
        spec = made.spec()
        assert spec["name"] == type(made).__name__, row
        assert json.loads(json.dumps(spec)) == spec, row
        again = Intervention.from_spec(spec, SiteInfo(D, input_width=D))
        assert type(again) is type(made), row
        assert again.spec() == spec, row
        assert {name: x.shape for name, x in again.state_dict().items()} == {
            name: x.shape for name, x in made.state_dict().items()
        }, row
        assert made.title.startswith(f"{spec['name']}("), row


def test_release_and_rebuild_are_bit_identical(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        state = copy.deepcopy(made.state_dict())
        expected = run(made.eval(), given).detach()
        half = run(made, given, 0.5).detach()
        made.train()
        released = made.released()
        tensors = load_tensors(save_tensors({key: x.contiguous() for key, x in released.state_dict().items()}))
        rebuilt = Intervention.from_spec(made.spec(), SiteInfo(D), tensors)
        for one in (released, rebuilt):
            assert not one.training, row
            assert not one.unfitted, row
            assert one.temperature is None, row
            assert one.penalty() == 0, row
            assert same(run(one, given), expected), row
            assert same(run(one, given, 0.5), half), row
            assert same(run(one.train(), given), expected), row  # a released mask stays hard
            assert not any(parameter.requires_grad for parameter in one.parameters()), row
            assert one.effective_size() == made.effective_size(), row
        again = rebuilt.released()  # what was loaded may be shared anew
        assert same(run(again, given), expected), row
        assert set(again.state_dict()) == set(rebuilt.state_dict()) == set(tensors), row
        assert all(torch.equal(value, tensors[key]) for key, value in rebuilt.state_dict().items()), row
        # what trained is gone where there is a result in its place
        assert not {"space.free", "mask.gates", "mask.share", "mask.heat", "mask.draws"} & set(tensors), row
        # the original trains on
        assert set(made.state_dict()) == set(state), row
        assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items()), row


def test_a_release_needs_no_file(tmp_path: Path) -> None:
    for row in ("SAEFeatures", "SAEFeatures gated", "SAE topk | Sigmoid | Mean"):
        made, given = make(row), draw(4, 3)
        spec, tensors = made.spec(), made.released().state_dict()
        text = json.dumps(spec)
        for file in FILES.values():
            text = text.replace(file, str(tmp_path / "gone.safetensors"))
        rebuilt = Intervention.from_spec(json.loads(text), SiteInfo(D), tensors)
        assert same(run(rebuilt, given), run(made.eval(), given))


def test_a_release_in_inference_mode_serves_outside_it(named: str) -> None:
    made, given = make(named).eval(), draw(4, 3)
    expected = run(made, given).detach()
    with torch.inference_mode():
        assert same(run(made, given), expected)
        released = made.released()
    made.requires_grad_(False)
    for one in (released, made):
        base = given[0].clone().requires_grad_()
        assert same(run(one, (base, *given[1:])), expected)
        run(one, (base, *given[1:]), 0.5).sum().backward()  # type: ignore[no-untyped-call]  # gradients flow through it to what lies below
        assert base.grad is not None


def test_training_mode_softens_masks_and_drops_out_and_nothing_else(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        soft = made.temperature is not None or "dropout" in row
        trained, evaluated = run(made.train(), given), run(made.eval(), given)
        if soft and "Collect" not in row:
            assert far(trained, evaluated) > 1e-3, row
        else:
            assert same(trained, evaluated), row
        assert same(run(made, given), evaluated), row


# --- errors ---


def test_what_is_missing_is_said(rows: list[str]) -> None:
    for row in rows:
        made, (base, source, inputs) = make(row), draw(4, 3)
        name = type(made).__name__
        block = made.blocks[0] if made.blocks else None
        if made.needs_source:
            with pytest.raises(IITKitError, match=rf"^{name} needs a source .* shape \(4, 3, 11\), given none$"):
                made(base, inputs=inputs, block=block)
            with pytest.raises(IITKitError, match=r"needs a source .* \(4, 3, 11\), given shape \(4, 11\)"):
                made(base, source[:, 0], inputs=inputs, block=block)
        if made.needs_input:
            with pytest.raises(
                IITKitError, match=rf"^{name} needs the module's input of shape \(4, 3, 11\), given none$"
            ):
                made(base, source, block=block)
            with pytest.raises(IITKitError, match=r"needs the module's input .* given shape \(4, 3, 9\)"):
                made(base, source, inputs=inputs[..., :9], block=block)
        if made.blocks is None:
            with pytest.raises(IITKitError, match=r"block 'a': it has no blocks\."):
                made(base, source, inputs=inputs, block="a")
        else:
            with pytest.raises(IITKitError, match=r"which block\? The mask has a, b: give block=…"):
                made(base, source, inputs=inputs)
            with pytest.raises(IITKitError, match=r"block 'c': it has a, b\."):
                made(base, source, inputs=inputs, block="c")
        if row != "Vanilla":
            with pytest.raises(IITKitError, match=f"{name} was built for width 11, given 9"):
                made(base[..., :9], source[..., :9], inputs=inputs, block=block)


def test_unfitted_ones_say_so(rows: list[str]) -> None:
    for row in rows:
        made = build(row)
        said = json.dumps(spec_of(row))
        assert made.unfitted == any(
            word in said for word in ('"PCA', '"Mean"', '"mean"', '"Resample"', '"resample"', "times_std")
        ), row
        if made.unfitted:
            with pytest.raises(IITKitError, match="must see data first: let `iitkit fit` do it, or call observe"):
                run(made, draw(4, 3))
            with pytest.raises(IITKitError, match="must see data before there is a result to release"):
                made.released()
            with pytest.raises(IITKitError, match="were observed"):
                made.finish()


def test_foreign_tensors_are_refused(rows: list[str]) -> None:
    for row in rows[::3]:
        made = make(row)
        tensors: dict[str, Any] = {**made.released().state_dict(), "space.other": torch.zeros(2)}
        with pytest.raises(IITKitError, match=rf"{type(made).__name__}: stored tensors .* do not fit"):
            Intervention.from_spec(made.spec(), SiteInfo(D), tensors)
        for missing in list(tensors):
            fewer = {key: value for key, value in tensors.items() if key not in (missing, "space.other")}
            if missing != "space.other":
                with pytest.raises(IITKitError, match="do not fit"):
                    Intervention.from_spec(made.spec(), SiteInfo(D), fewer)
        del tensors["space.other"]
        Intervention.from_spec(made.spec(), SiteInfo(D), tensors)
        for key, value in tensors.items():
            others = [value[None], value.flatten()[0], torch.cat([value, value])] if value.dim() else [value.repeat(2)]
            for other in others:
                with pytest.raises(IITKitError):
                    Intervention.from_spec(made.spec(), SiteInfo(D, input_width=D), {**tensors, key: other})


def test_unknown_names_and_options_are_refused(named: str) -> None:
    spec = make(named).spec()
    name = spec["name"]
    with pytest.raises(IITKitError, match=rf"intervention '{name}x' is not registered. Did you mean '{name}'\? Known:"):
        Intervention.from_spec({**spec, "name": f"{name}x"}, SiteInfo(D))
    with pytest.raises(IITKitError, match=f"{name} has no option 'ranq'"):
        Intervention.from_spec({**spec, "ranq": 2}, SiteInfo(D))
    with pytest.raises(IITKitError, match="intervention None is not registered"):
        Intervention.from_spec({}, SiteInfo(D))


# --- completeness ---


def ours(registry: dict[str, type[Any]]) -> set[str]:
    return {name for name, kind in registry.items() if kind.__module__.startswith("iitkit.")}


def test_everything_registered_has_a_row() -> None:
    assert {row.split(" ")[0] for row in NAMED} == ours(Intervention.registry)
    for table, kind in ((SPACES, Space), (MASKS, Mask), (EDITS, Edit)):
        assert {spec["name"] for spec, _ in table.values()} == ours(kind.registry)
    assert all(isinstance(build(row), nn.Module) for row in NAMED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    for row in itertools.chain(*GROUPS.values()):
        made, given = make(row), draw(4, 3)
        expected = run(made.eval(), given).detach()
        there = given[0].to(gpu), given[1].to(gpu), given[2].to(gpu)
        moved = made.to(gpu)
        found = run(moved, there)
        assert far(found.cpu(), expected) <= 1e-4, row
        moved.train()
        run(moved, there)
        released = moved.released()
        assert all(x.device.type == "cpu" for x in released.state_dict().values()), row
        assert same(run(released.to(gpu), there), found), row
        tensors = {key: x.to(gpu) for key, x in released.state_dict().items()}
        rebuilt = Intervention.from_spec(moved.spec(), SiteInfo(D), tensors).to(gpu)
        assert same(run(rebuilt, there), found), row
