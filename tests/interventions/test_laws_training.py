"""The law of what trains: gradients, parameters, rotations that stay orthonormal."""

from __future__ import annotations

import torch
from interventions.tables import D, build, draw, make, normal, run, same, trains
from torch import Tensor

from iitkit.interventions import Intervention
from iitkit.interventions.rotations import rotation_of

# --- gradients, and what trains ---


def test_gradients_are_finite_differences(rows: list[str]) -> None:
    for row in rows:
        made = make(row).double()
        base, source, inputs = (x.requires_grad_() for x in draw(2, dtype=torch.float64))
        names = [name for name, _ in made.named_parameters()]
        buffers = {name: buffer.clone() for name, buffer in made.named_buffers()}  # of draws: the same in every call

        def call(
            base: Tensor,
            source: Tensor,
            inputs: Tensor,
            *values: Tensor,
            made: Intervention = made,
            names: list[str] = names,
            buffers: dict[str, Tensor] = buffers,
        ) -> Tensor:
            given = {**dict(zip(names, values, strict=True)), **{key: value.clone() for key, value in buffers.items()}}
            keywords = {
                "strength": 0.7,
                "inputs": inputs if made.needs_input else None,
                "block": made.blocks[0] if made.blocks else None,
            }
            found: Tensor = torch.func.functional_call(
                made, given, (base, source if made.needs_source else None), keywords
            )
            return found + 0 * (source.sum() + inputs.sum())

        values = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]
        assert torch.autograd.gradcheck(call, (base, source, inputs, *values), fast_mode=True), row


def test_what_trains_is_what_is_said(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        expected = trains(row)
        assert {name for name, _ in made.named_parameters()} == expected, row
        assert all(parameter.requires_grad for parameter in made.parameters()), row
        assert len({id(parameter) for parameter in made.parameters()}) == len(list(made.parameters())), row
        state = made.state_dict()
        assert set(state) >= expected, row
        assert {key.split(".")[0] for key in state} <= {"space", "mask", "edit"}, row


def test_everything_that_trains_gets_a_gradient(named: str) -> None:
    made, given = make(named), draw(4, 3)
    if made.parameters() and trains(named):
        run(made, given).square().sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, p in made.named_parameters() if p.grad is not None} == trains(named)
    assert all(float(p.grad.abs().max()) > 1e-4 for p in made.parameters() if p.grad is not None)


def test_nothing_changes_at_the_start() -> None:
    for row in ("LoRA", "LoRA dropout", "Addition", "Subtraction vector", "LoBiReFT"):
        given = draw(4, 3)
        assert same(run(build(row), given), given[0]), row


# --- law 5: rotations ---


def test_rotations_stay_orthonormal_in_training(rows: list[str]) -> None:
    for row in rows:
        if "space.free" not in trains(row):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            made = make(row)
            optimizer = torch.optim.Adam(made.parameters(), lr=1e-1)
            start = rotation_of(made.space).detach().clone()
            goal = normal(12, D, seed=8)
            for _ in range(10):
                optimizer.zero_grad()
                found = run(made, draw(12, dtype=dtype))
                (found.float() - goal).square().mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            basis = made.released().state_dict()["space.basis"]
            assert basis.dtype == torch.float32, row
            assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() <= 1e-5, row
            # where nothing is changed, or as many coordinates as the width are, the rotation does not matter
            if not any(word in row for word in ("Collect", "= width", "Rotation | All")):
                assert (basis - start).abs().max() > 0.05, row
