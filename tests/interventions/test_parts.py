"""Names, parts in plain values, one object in several places, what is computed once a step, and frozen rotations."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions import (
    BoundlessSubspace,
    Composed,
    Intervention,
    LoRA,
    LowRankSubspace,
    MaskedNeurons,
    MaskedSubspace,
    SiteInfo,
)
from iitkit.interventions.edits import Collect, Swap, Zero
from iitkit.interventions.gates import HardConcrete, Sigmoid
from iitkit.interventions.masks import All, Indices
from iitkit.interventions.orthonormal import orthonormal
from iitkit.interventions.rotations import Rotation
from iitkit.interventions.spaces import Identity

SITE = SiteInfo(6)


def pairs(n: int = 5, width: int = 6) -> tuple[Tensor, Tensor]:
    base, source = torch.randn(2, n, width, generator=torch.Generator().manual_seed(3)).unbind(0)
    return base, source


@pytest.fixture
def qr_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = torch.linalg.qr

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    return calls


# --- what is computed once ---


def test_one_qr_a_step_however_many_sites(qr_calls: list[int]) -> None:
    for made in (LowRankSubspace(SITE, 2), BoundlessSubspace(SITE), MaskedSubspace(SITE, gate="hard_concrete")):
        base, source = pairs()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        qr_calls.clear()
        for step in range(3):
            before = {name: p.detach().clone() for name, p in made.named_parameters()}
            with made.held():
                loss = made(base, source).square().sum() + made(source, base).square().sum() + made.penalty()
                with made.held():  # may be nested
                    made(base, source)
                loss.backward()
            assert len(qr_calls) == step + 1
            optimizer.step()
            optimizer.zero_grad()
            assert all(not torch.equal(p, before[name]) for name, p in made.named_parameters())
    # after the context the new matrix counts
    assert torch.equal(made.rotation, orthonormal(made.space.free))  # type: ignore[arg-type]


def test_held_gives_the_same_gradients() -> None:
    base, source = pairs()
    for make in (lambda: LowRankSubspace(SITE, 2), lambda: BoundlessSubspace(SITE, temperature=1.0)):
        made = make()
        loss = made(base, source).square().sum() + made(source, base, 0.5).square().sum()
        expected = torch.autograd.grad(loss, list(made.parameters()))
        with made.held():
            with torch.no_grad():
                made(base, source)  # what is computed without gradients must not serve where they are wanted
            loss = made(base, source).square().sum() + made(source, base, 0.5).square().sum()
            found = torch.autograd.grad(loss, list(made.parameters()))
        for x, y in zip(found, expected, strict=True):
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)


def test_held_ends_with_an_exception_and_is_never_copied() -> None:
    made = MaskedSubspace(SITE, gate="hard_concrete")
    base, source = pairs()
    kept = []

    def fail() -> None:
        with made.held():
            kept.extend([made(base, source), copy.deepcopy(made), made.released()])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    first, clone, released = kept
    assert not torch.equal(made(base, source), first)  # a new draw
    assert not torch.equal(clone(base, source), clone(base, source))  # the copy is not held
    assert torch.equal(released(base, source), made.eval()(base, source))


def test_modules_go_through_pickle() -> None:
    for made in (Composed(SITE, edit={"name": "Noise", "sigma": 1.0}), BoundlessSubspace(SITE), MaskedNeurons(SITE)):
        made.eval()
        given = pairs() if made.needs_source else pairs()[:1]
        expected = made(*given)
        assert torch.equal(pickle.loads(pickle.dumps(made))(*given), expected)
    collect = Intervention(Identity(SITE), All(6), Collect())
    base = pairs()[0].requires_grad_()
    collect(base * 2)
    assert copy.deepcopy(collect).edit.collected is None


# --- sharing ---


def test_one_space_in_two_interventions_trains_once(qr_calls: list[int]) -> None:
    space = Rotation(SITE)
    first = Intervention(space, Indices(6, [0, 1]), Swap())
    second = Intervention(space, Indices(6, [2, 3]), Swap())
    both = nn.ModuleDict({"first": first, "second": second})
    assert len(list(both.parameters())) == 1  # listed once, updated once
    base, source = pairs()
    qr_calls.clear()
    with first.held(), second.held():
        loss = first(base, source).square().sum() + second(base, source).square().sum()
        gradient = torch.autograd.grad(loss, list(both.parameters()))[0]
    assert len(qr_calls) == 1
    assert space.free is not None
    start = space.free.detach().clone()
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    (first(base, source).square().sum() + second(base, source).square().sum()).backward()
    optimizer.step()
    assert torch.allclose(space.free, start - 0.1 * gradient, atol=1e-5)


def test_a_shared_intervention_uses_each_site_s_own_source() -> None:
    made = LowRankSubspace(SITE, 2)
    r = made.rotation.detach()
    with made.held():
        for seed in (1, 2):
            base, source = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed)).unbind(0)
            expected = base + (source - base) @ r @ r.T
            assert (made(base, source) - expected).abs().max() < 1e-5


def test_a_trained_space_may_be_frozen_and_shared() -> None:
    trained = LowRankSubspace(SITE, 3)
    space = trained.space
    before = trained.rotation.detach().clone()
    space.freeze()
    mask = Intervention(space, Sigmoid(3), Swap())
    ablation = Intervention(space, All(3), Zero())
    assert [name for name, _ in mask.named_parameters()] == ["mask.gates"]
    assert list(ablation.parameters()) == []
    base, source = pairs()
    mask(base, source).square().sum().backward()
    torch.optim.Adam(mask.parameters(), lr=1.0).step()
    assert torch.equal(trained.rotation, before)
    assert (ablation(base) @ before).abs().max() < 1e-5


# --- law 5 ---


@pytest.mark.parametrize("kind", ["RotatedSubspace", "BoundlessSubspace", "MaskedSubspace", "LoReFT", "ConsReFT"])
def test_orthonormal_after_fifty_fierce_steps(kind: str) -> None:
    options: dict[str, Any] = {"coordinates": 5} if kind == "RotatedSubspace" else {}
    for dtype in (torch.float32, torch.bfloat16):
        made = Intervention.from_spec({"name": kind, **options}, SiteInfo(24))
        optimizer = torch.optim.Adam(made.parameters(), lr=1e-1)
        start = made.rotation.detach().clone()  # type: ignore[operator]
        generator = torch.Generator().manual_seed(2)
        for _ in range(50):
            base, source, goal = torch.randn(3, 32, 24, generator=generator).to(dtype).unbind(0)
            optimizer.zero_grad()
            found = made(base, source if made.needs_source else None)
            (found - goal).float().square().mean().backward()
            optimizer.step()
        rotation = made.released().state_dict()["space.basis"]
        assert rotation.dtype == torch.float32
        assert (rotation.T @ rotation - torch.eye(rotation.shape[1])).abs().max() <= 1e-5
        assert (rotation - start).abs().max() > 0.1


# --- frozen rotations and files to start from ---


def basis(rank: int, width: int = 6) -> Tensor:
    return orthonormal(torch.randn(width, rank, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("kind", ["LowRankSubspace", "MaskedSubspace", "RotatedSubspace", "BoundlessSubspace"])
def test_a_rotation_may_start_from_a_file_and_stay(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "LowRankSubspace": {"rank": 2},
        "MaskedSubspace": {"rank": 2},
        "RotatedSubspace": {"coordinates": 1},
        "BoundlessSubspace": {},
    }[kind]
    given = basis(options.get("rank", 6))
    file = tmp_path / "interventions.safetensors"
    save_file({"x.space.basis": given, "y.space.basis": basis(1), "z": torch.zeros(3)}, file)
    start = f"{file}#x.space.basis"
    trained = Intervention.from_spec({"name": kind, **options, "start": start}, SITE)
    frozen = Intervention.from_spec({"name": kind, **options, "start": start, "frozen": True}, SITE)
    assert (trained.rotation - given).abs().max() < 1e-6  # type: ignore[operator]
    assert torch.equal(frozen.rotation, given)  # type: ignore[arg-type]
    assert "space.free" in dict(trained.named_parameters())
    assert not any(name.startswith("space") for name, _ in frozen.named_parameters())
    assert torch.equal(frozen.state_dict()["space.basis"], given)
    file.unlink()  # a release holds its own
    for made in (trained, frozen):
        released = made.released()
        rebuilt = Intervention.from_spec(made.spec(), SITE, released.state_dict())
        assert torch.equal(rebuilt(*pairs()), released(*pairs()))


def test_a_file_with_one_matrix_needs_no_name(tmp_path: Path) -> None:
    save_file({"only": basis(2), "note": torch.zeros(2)}, tmp_path / "one.safetensors")
    made = LowRankSubspace(SITE, 2, start=str(tmp_path / "one.safetensors"), frozen=True)
    assert torch.equal(made.rotation, basis(2))


@pytest.mark.parametrize(
    ("tensors", "name", "message"),
    [
        ({"a": basis(2), "b": basis(2)}, "", "has 2 matrices: name one"),
        ({"a": basis(2)}, "#c", "has no tensor 'c'. It holds a"),
        ({"a": torch.zeros(3)}, "", "has 0 matrices: name one"),
        ({"a": basis(3)}, "", "basis of shape (6, 3): expected (6, 2)"),
        ({"a": basis(2) * 1.1}, "", "basis is not orthonormal"),
    ],
)
def test_files_without_a_basis_are_refused(tensors: dict[str, Tensor], name: str, message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(IITKitError, match=re.escape(message)):
        LowRankSubspace(SITE, 2, start=f"{tmp_path / 'a.safetensors'}{name}")
    with pytest.raises(IITKitError, match="there is no file"):
        LowRankSubspace(SITE, 2, start=str(tmp_path / "b.safetensors"))


# --- sizes ---


def test_a_rank_1_artifact_at_width_768_is_at_most_8_kb() -> None:
    made = LowRankSubspace(SiteInfo(768), rank=1)
    tensors = {key: value.contiguous() for key, value in made.released().state_dict().items()}
    assert len(save(tensors)) + len(json.dumps(made.spec())) <= 8000
    masked = MaskedNeurons(SiteInfo(768)).released().state_dict()
    assert len(save(masked)) <= 1000  # a bit more than a byte for each neuron


def test_dropout_and_gates_are_off_in_evaluation() -> None:
    made = LoRA(SiteInfo(6, input_width=6), dropout=0.5)
    with torch.no_grad():
        made.edit.B.add_(1.0)  # type: ignore[operator]
    base, inputs = pairs()
    assert not torch.equal(made(base, inputs=inputs), made(base, inputs=inputs))
    made.eval()
    expected = made(base, inputs=inputs)
    assert torch.equal(made(base, inputs=inputs), expected)
    gates = Intervention(Identity(SITE), HardConcrete(6), Swap())
    assert torch.equal(gates.eval()(base, inputs), base)
