"""Every formula worked by hand, on numbers small enough to follow, or written out anew from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from byhand import gram_schmidt
from torch import Tensor

from iitkit.interventions import (
    Addition,
    BoundlessSubspace,
    Composed,
    Constant,
    Intervention,
    LoRA,
    MaskedNeurons,
    MaskedSubspace,
    RotatedSubspace,
    Scale,
    SiteInfo,
    Skip,
    Subtraction,
    Vanilla,
    Zero,
)

BASE = torch.tensor([1.0, 2.0, 3.0])
SOURCE = torch.tensor([10.0, 20.0, 30.0])
SITE = SiteInfo(3, input_width=3)
Kind = TypeVar("Kind", bound=Intervention)


def fill(made: Kind, **tensors: Any) -> Kind:
    """Set parameters by the end of their names."""
    state = made.state_dict()
    for name, value in tensors.items():
        (key,) = [key for key in state if key.endswith(f".{name}")]
        state[key] = torch.as_tensor(value, dtype=state[key].dtype).reshape(state[key].shape)
    made.load_state_dict(state)
    return made


def close(found: Tensor, expected: list[float]) -> bool:
    return found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params(made: Intervention) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in made.named_parameters()}


# --- without parameters ---


def test_vanilla_takes_the_first_k_or_an_index_set() -> None:
    assert Vanilla(SITE, features=2)(BASE, SOURCE).tolist() == [10.0, 20.0, 3.0]
    assert Vanilla(SITE, features=[2, 0])(BASE, SOURCE).tolist() == [10.0, 2.0, 30.0]
    # exactly the source's and exactly the base's, where b + (s − b) would round
    base, source = torch.tensor([1e8, 0.1, 5.0]), torch.tensor([0.1, 1e8, 7.0])
    assert torch.equal(Vanilla(SITE, features=[0])(base, source), torch.tensor([0.1, 0.1, 5.0]))
    assert Vanilla(SITE, features=1)(BASE, SOURCE, 0.5).tolist() == [5.5, 2.0, 3.0]


def test_two_exact_indices_are_two_indices() -> None:
    # a peer reads a list of exactly two integers as something else
    assert Vanilla(SITE, features=[0, 1])(BASE, SOURCE).tolist() == [10.0, 20.0, 3.0]


def test_arithmetic_and_constants() -> None:
    assert Addition(SITE, take="source")(BASE, SOURCE).tolist() == [11.0, 22.0, 33.0]
    assert Subtraction(SITE)(BASE, SOURCE).tolist() == [-9.0, -18.0, -27.0]
    assert fill(Addition(SITE), vector=[0.5, 0.0, -4.0])(BASE).tolist() == [1.5, 2.0, -1.0]
    assert fill(Subtraction(SITE, take="vector"), vector=[0.5, 0.0, -4.0])(BASE).tolist() == [0.5, 2.0, 7.0]
    assert fill(Addition(SITE, features=[1]), vector=[9.0, 7.0, 9.0])(BASE).tolist() == [1.0, 9.0, 3.0]
    assert Scale(SITE, factor=-2.0)(BASE).tolist() == [-2.0, -4.0, -6.0]
    assert Scale(SITE, factor=0.5, features=1)(BASE, strength=2).tolist() == [0.0, 2.0, 3.0]
    assert Zero(SITE)(BASE).tolist() == [0.0, 0.0, 0.0]
    assert Zero(SITE, features=[1])(BASE).tolist() == [1.0, 0.0, 3.0]
    assert Zero(SITE)(BASE, strength=0.25).tolist() == [0.75, 1.5, 2.25]
    assert Constant(SITE, value=7.5)(BASE).tolist() == [7.5, 7.5, 7.5]
    assert Constant(SITE, value=[4.0, 5.0, 6.0], features=2)(BASE).tolist() == [4.0, 5.0, 3.0]
    exact = Constant(SITE, value=0.1)(torch.zeros(3, dtype=torch.float64))
    assert exact.tolist() == [0.1, 0.1, 0.1]  # not fp32's 0.1


def test_skip_puts_the_input_in_the_output_s_place() -> None:
    inputs = torch.tensor([-5.0, -6.0, -7.0])
    assert Skip(SITE)(BASE, inputs=inputs).tolist() == [-5.0, -6.0, -7.0]
    assert Skip(SITE, features=[1])(BASE, inputs=inputs).tolist() == [1.0, -6.0, 3.0]


def test_collect_keeps_what_it_saw_and_changes_nothing() -> None:
    made = Intervention.from_spec({"name": "Collect", "features": [2, 0]}, SITE)
    base = torch.stack([BASE, SOURCE]).requires_grad_()
    assert torch.equal(made(base), base)
    seen = made.collected
    assert isinstance(seen, Tensor)
    assert seen.tolist() == [[1.0, 3.0], [10.0, 30.0]]
    seen.sum().backward()  # type: ignore[no-untyped-call]
    assert base.grad is not None
    assert base.grad.tolist() == [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    assert made.released().collected is None
    turned = Composed(SITE, space={"name": "LowRankRotation", "rank": 1}, edit={"name": "Collect"})
    fill(turned, free=[[0.0], [3.0], [4.0]])
    turned(BASE)
    assert turned.edit.collected.tolist() == pytest.approx([0.6 * 2 + 0.8 * 3])  # type: ignore[operator]


# --- rotations and masks ---


def test_rotated_subspace_swaps_the_chosen_coordinates() -> None:
    # columns (3, 4, 0)/5, (−4, 3, 0)/5, (0, 0, 1); s − b = (9, 18, 27) has coordinates 19.8, 3.6, 27
    free = [[3.0, 0.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    first = fill(RotatedSubspace(SITE, coordinates=1), free=free)
    assert first.rotation.T.tolist()[1] == pytest.approx([-0.8, 0.6, 0.0], abs=1e-6)
    assert close(first(BASE, SOURCE), [1 + 0.6 * 19.8, 2 + 0.8 * 19.8, 3.0])
    second = fill(RotatedSubspace(SITE, coordinates=[1]), free=free)
    assert close(second(BASE, SOURCE), [1 - 0.8 * 3.6, 2 + 0.6 * 3.6, 3.0])
    assert close(fill(RotatedSubspace(SITE, coordinates=[0, 1]), free=free)(BASE, SOURCE), [10.0, 20.0, 3.0])
    # blocks of one rotation: each variable its own coordinates, and all together the full swap
    blocks = fill(RotatedSubspace(SITE, coordinates={"a": 1, "b": [2], "c": 1}), free=free)
    assert blocks.blocks == ("a", "b", "c")
    assert torch.equal(blocks(BASE, SOURCE, block="a"), first(BASE, SOURCE))
    assert close(blocks(BASE, SOURCE, block="b"), [1.0, 2.0, 30.0])
    assert torch.equal(blocks(BASE, SOURCE, block="c"), second(BASE, SOURCE))
    all_three = blocks(blocks(blocks(BASE, SOURCE, block="a"), SOURCE, block="b"), SOURCE, block="c")
    assert close(all_three, [10.0, 20.0, 30.0])


def test_boundless_weights_by_index() -> None:
    # β = .5 of 4 coordinates, T = .5: m = σ(4), σ(2), σ(0), σ(−2)
    made = BoundlessSubspace(SiteInfo(4), temperature=0.5)
    fill(made, free=torch.eye(4))
    base, source = torch.zeros(4), torch.ones(4)
    sigma = [1 / (1 + math.exp(-x)) for x in (4, 2, 0, -2)]
    assert close(made(base, source), sigma)
    assert made.penalty().item() == 0.5
    assert made.eval()(base, source).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert made.effective_size() == 2
    # a mask whose first weight is .5 at every temperature never closes or opens: not here
    made.train()
    firsts = []
    for temperature in (50.0, 1.0, 0.1):
        made.temperature = temperature
        firsts.append(made(base, source)[0].item())
    assert firsts == pytest.approx([1 / (1 + math.exp(-2 / t)) for t in (50.0, 1.0, 0.1)], rel=1e-6)
    rotation = normal(4, 4, seed=3).float()
    fill(made, free=rotation, share=0.8)
    w, x, y = gram_schmidt(rotation.double()), normal(4, seed=4), normal(4, seed=5)
    made.temperature = 2.0
    m = torch.sigmoid((0.8 * 4 - torch.arange(4.0)) / 2).double()
    expected = x + (m * ((y - x) @ w)) @ w.T
    assert (made.double()(x, y) - expected).abs().max() < 1e-6


def test_sigmoid_mask() -> None:
    made = MaskedNeurons(SITE, temperature=2.0)
    fill(made, gates=[4.0, 0.0, -2.0])
    sigma = [1 / (1 + math.exp(-x)) for x in (2.0, 0.0, -1.0)]
    expected = [(1 - m) * b + m * s for m, b, s in zip(sigma, BASE.tolist(), SOURCE.tolist(), strict=True)]
    assert close(made(BASE, SOURCE), expected)
    assert made.penalty().item() == pytest.approx(sum(sigma))
    assert made.eval()(BASE, SOURCE).tolist() == [10.0, 2.0, 3.0]  # θ > 0, and 0 is not
    assert made.effective_size() == 1
    zero = fill(MaskedNeurons(SITE, edit="zero"), gates=[4.0, 0.0, -2.0]).eval()
    assert not zero.needs_source
    assert zero(BASE).tolist() == [0.0, 2.0, 3.0]
    turned = MaskedSubspace(SiteInfo(4), rank=2)
    free, gates = normal(4, 2, seed=6).float(), [0.7, -1.3]
    fill(turned, free=free, gates=gates)
    r, x, y = gram_schmidt(free.double()), normal(4, seed=7), normal(4, seed=8)
    m = torch.sigmoid(torch.tensor(gates, dtype=torch.float64))
    assert (turned.double()(x, y) - (x + (m * ((y - x) @ r)) @ r.T)).abs().max() < 1e-6


def test_hard_concrete_mask() -> None:
    made = MaskedNeurons(SiteInfo(5), gate="hard_concrete")
    theta = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    fill(made, gates=theta)
    # Σ P(m > 0) = Σ σ(θ − 2/3 · log(0.1/1.1))
    closed = sum(1 / (1 + math.exp(-(t - 2 / 3 * math.log(0.1 / 1.1)))) for t in theta.tolist())
    assert made.penalty().item() == pytest.approx(closed, rel=1e-6)
    base, source = torch.zeros(5), torch.ones(5)
    drawn = torch.stack([made(base, source).detach() for _ in range(4000)])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert (drawn > 0).float().mean(0).sum().item() == pytest.approx(closed, abs=0.05)
    # P(m = 1) = P(s ≥ 1/1.2 + 0.1/1.2): σ(θ − 2/3 · log(1.1/0.1)), and every gate is drawn by itself
    ones = [1 / (1 + math.exp(-(t - 2 / 3 * math.log(1.1 / 0.1)))) for t in theta.tolist()]
    assert (drawn == 1).float().mean(0).tolist() == pytest.approx(ones, abs=0.03)
    assert torch.corrcoef(drawn.T)[0, 2].abs() < 0.1
    assert (drawn > 0.5).float().mean(0).tolist() == pytest.approx(torch.sigmoid(theta).tolist(), abs=0.03)
    assert made.eval()(base, source).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


# --- learned edits ---


def test_lora() -> None:
    # x A = (1·1 + 2·0, …): A [2, 1] = (1, 3), x = (2, −1): x A = −1; α/r = 8; B = (1, 0, −2)
    made = LoRA(SiteInfo(3, input_width=2), rank=1, alpha=8.0)
    assert torch.equal(made(BASE, inputs=torch.tensor([2.0, -1.0])), BASE)  # nothing at the start
    fill(made, A=[1.0, 3.0], B=[1.0, 0.0, -2.0])
    assert made(BASE, inputs=torch.tensor([2.0, -1.0])).tolist() == [1 - 8.0, 2.0, 3 + 16.0]
    wide = LoRA(SiteInfo(4, input_width=6), rank=2, alpha=3.0)
    a, b = normal(6, 2, seed=1), normal(2, 4, seed=2)
    fill(wide, A=a, B=b)
    h, x = normal(5, 4, seed=3), normal(5, 6, seed=4)
    weight = (a.float() @ b.float()).double() * 1.5  # as it would be merged into a linear module's weight
    assert (wide.double()(h, inputs=x) - (h + x @ weight)).abs().max() < 1e-5


def test_lora_starts_as_linear_layers_do() -> None:
    made = LoRA(SiteInfo(4, input_width=400, generator=torch.Generator().manual_seed(0)), rank=50)
    a = params(made)["edit.A"]
    assert a.abs().max() <= 0.05  # U(−1/√in, 1/√in)
    assert a.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.02)
    assert params(made)["edit.B"].abs().max() == 0


def test_lora_dropout_leaves_out_a_share_and_scales_the_rest() -> None:
    made = LoRA(SiteInfo(3, input_width=4000), rank=1, alpha=1.0, dropout=0.5)
    fill(made, A=torch.ones(4000), B=[1.0, 2.0, 0.0])
    x = torch.ones(4000)
    first, second = (made(torch.zeros(3), inputs=x).detach() for _ in range(2))
    for found in (first, second):
        assert found[0].item() == pytest.approx(4000, rel=0.05)
        assert found[0] % 2 == 0  # each that is kept counts 1/(1 − 0.5)
        assert found[1] == 2 * found[0]
    assert first[0] != second[0]  # drawn anew
    assert made.eval()(torch.zeros(3), inputs=x).tolist() == [4000.0, 8000.0, 0.0]
    # the counter is in the state: a resumed run draws what the uninterrupted one would
    again = LoRA(SiteInfo(3, input_width=4000), rank=1, alpha=1.0, dropout=0.5)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(torch.zeros(3), inputs=x), made.train()(torch.zeros(3), inputs=x))


def test_lora_at_several_sites_leaves_out_different_inputs() -> None:
    site = SiteInfo(1, input_width=200, generator=torch.Generator().manual_seed(0))
    kept = []
    for _ in range(2):
        made = fill(LoRA(site, rank=1, alpha=1.0, dropout=0.5), A=torch.ones(200), B=[1.0])
        kept.append(torch.stack([made(torch.zeros(200, 1), inputs=torch.eye(200))[:, 0] for _ in range(20)]).flatten())
    assert torch.corrcoef(torch.stack(kept))[0, 1].abs() < 0.1


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["LoReFT", "NoReFT", "ConsReFT", "LoBiReFT", "DiReFT", "NoDiReFT"])
def test_reft(name: str, activation: str) -> None:
    d, r = 6, 2
    constant = name in ("ConsReFT", "LoBiReFT")
    options = {"rank": r} if constant else {"rank": r, "activation": activation}
    made = Intervention.from_spec({"name": name, **options}, SiteInfo(d)).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i + 1))
    values, h = params(made), normal(7, d, seed=9)
    c = values["edit.bias"]
    act = c if constant else ACTIVATIONS[activation](h @ values["edit.weight"].T + c)
    if name.startswith("No"):
        w2 = values["space.weight"]  # [r, d]
        expected = h + (act - (h @ w2.T if name == "NoReFT" else 0)) @ w2
    else:
        rotation = gram_schmidt(values["space.free"])  # [d, r]
        expected = h + (act - (h @ rotation if name in ("LoReFT", "ConsReFT") else 0)) @ rotation.T
    assert (made(h) - expected).abs().max() < 1e-12


def test_loreft_by_hand() -> None:
    # R = (3, 4, 0)/5, W h + c = 2·1 + 0·2 + 1·3 − 4 = 1, h R = 2.2: the coordinate becomes 1
    made = Intervention.from_spec({"name": "LoReFT", "rank": 1}, SITE)
    fill(made, free=[[3.0], [4.0], [0.0]], weight=[[2.0, 0.0, 1.0]], bias=[-4.0])
    found = made(BASE)
    assert close(found, [1 - 1.2 * 0.6, 2 - 1.2 * 0.8, 3.0])
    assert (found @ torch.tensor([0.6, 0.8, 0.0])).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "tensors", "expected"),
    [
        # R = (3, 4, 0)/5 and h R = 2.2: the coordinate becomes c = 0.2, so h moves by −2 along R
        ("ConsReFT", {"free": [[3.0], [4.0], [0.0]], "bias": [0.2]}, [1 - 1.2, 2 - 1.6, 3.0]),
        # whatever h is, h moves by c = 0.5 along R
        ("LoBiReFT", {"free": [[3.0], [4.0], [0.0]], "bias": [0.5]}, [1 + 0.3, 2 + 0.4, 3.0]),
        # W h + c = 2·1 + 0·2 + 1·3 − 4 = 1: h moves by 1 along R
        (
            "DiReFT",
            {"free": [[3.0], [4.0], [0.0]], "weight": [[2.0, 0.0, 1.0]], "bias": [-4.0]},
            [1 + 0.6, 2 + 0.8, 3.0],
        ),
        # W₂ = (1, 0, 2), not of length 1: W₂ h = 7; W₁ h + c = 1, so h moves by 1 − 7 = −6 times W₂
        (
            "NoReFT",
            {"space.weight": [[1.0, 0.0, 2.0]], "edit.weight": [[2.0, 0.0, 1.0]], "bias": [-4.0]},
            [1 - 6.0, 2.0, 3 - 12.0],
        ),
        # by 1 times W₂
        (
            "NoDiReFT",
            {"space.weight": [[1.0, 0.0, 2.0]], "edit.weight": [[2.0, 0.0, 1.0]], "bias": [-4.0]},
            [1 + 1.0, 2.0, 3 + 2.0],
        ),
    ],
)
def test_the_family_by_hand(name: str, tensors: dict[str, Any], expected: list[float]) -> None:
    made = Intervention.from_spec({"name": name, "rank": 1}, SITE)
    state = made.state_dict()
    for end, value in tensors.items():
        (key,) = [key for key in state if f".{key}".endswith(f".{end}")]
        state[key] = torch.tensor(value)
    made.load_state_dict(state)
    assert close(made(BASE), expected)
    assert close(made(BASE, strength=0.5), [(h + e) / 2 for h, e in zip(BASE.tolist(), expected, strict=True)])
    assert torch.equal(made(BASE, strength=0.0), BASE)
