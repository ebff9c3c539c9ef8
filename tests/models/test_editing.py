"""What visits leave alone: checkpointing, the user's hooks, other models, memory, attention, quantised weights."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, dispatch_model  # type: ignore[import-untyped]
from byhand import hooks_of, relative
from families import build, checkpointed, decoder, gru, ids
from taps import TAPS, swapped, values
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.editing import visiting
from iitkit.models.interchange import collect, interchange
from iitkit.models.sites import OUTSIDE, Site

BASE, SOURCE = ids(3, 7, seed=1), ids(3, 7, seed=2)
INSIDE = ("attention_weight", "router_output")


def given(x: Tensor) -> dict[str, Tensor]:
    return {"input_ids": x}


def subspace(width: int, rank: int = 2, seed: int = 0) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(width, generator=torch.Generator().manual_seed(seed)), rank=rank)


def attention_of(model: PreTrainedModel) -> str:
    found: str = model.config._attn_implementation
    return found


# --- gradient checkpointing ---


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a reentrant run without gradients
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("family", "component", "head"),
    [
        ("gpt2", "block_output", None),
        ("gpt2", "head_value_output", 1),
        ("llama", "block_input", None),
        ("llama", "mlp_hidden", None),
        ("llama", "attention_weight", 2),
        ("opt", "mlp_activation", None),
        ("gptj", "attention_value_output", None),
        ("mixtral", "router_output", None),
    ],
)
def test_gradient_checkpointing_on_is_off(family: str, component: str, head: int | None, reentrant: bool) -> None:
    gradients, logits, recomputed = [], [], []
    for on in (False, True):
        model = build(family, **_DROPOUT[family]).train().requires_grad_(True)
        if on:
            checkpointed(model, reentrant)
        where = Site(1, component, [2, -1], head=head)
        width = locate(model, where).width
        edit = subspace(width, seed=1) if width is not None else Vanilla()
        calls = dict.fromkeys(range(3), 0)
        handles = []
        for layer in calls:
            tapped = model.get_submodule(TAPS[family]["query_output"].paths[0].format(i=layer))

            def count(*_: object, layer: int = layer, calls: dict[int, int] = calls) -> None:
                calls[layer] += 1

            handles.append(tapped.register_forward_hook(count))
        found = interchange(model, {**given(BASE), "use_cache": False}, given(SOURCE), {"x": (where, edit)}).logits
        before = dict(calls)
        (found * torch.linspace(-1, 1, found.shape[-1])).sum().backward()
        recomputed.append({layer: calls[layer] - before[layer] for layer in calls})
        for handle in handles:
            handle.remove()
        logits.append(found.detach())
        gradients.append([p.grad for p in (*edit.parameters(), *model.parameters())])
        switched = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(switched) == on  # as before the call
    others = int(component != "attention_weight")  # there all of the network's attention is computed in another way
    # the edited block is kept, the others recomputed
    assert recomputed == [{0: 0, 1: 0, 2: 0}, {0: others, 1: 0, 2: others}]
    assert relative(logits[1], logits[0]) <= 1e-6
    plain = build(family)(BASE).logits
    assert relative(logits[0], plain) > 1e-4
    for off, on_ in zip(*gradients, strict=True):
        assert (off is None) == (on_ is None)
        assert off is None or relative(on_, off) <= 1e-5 or float(off.abs().max()) < 1e-5


_DROPOUT: dict[str, dict[str, Any]] = {
    "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "gptj": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {},
    "mixtral": {},
    "opt": {"dropout": 0.0},
}


# --- nothing is left behind ---


def states_of(model: PreTrainedModel) -> tuple[Any, str]:
    return hooks_of(model), attention_of(model)


SITES = [
    Site(1),
    Site(2, "block_input"),
    Site(1, "head_value_output", head=[1, 0]),
    Site(1, "attention_weight", head=1),
    Site(2, "attention_weight"),
    Site(1, "router_output"),
    Site(1, "router_input"),
    Site(component="embeddings"),
    Site(component="logits"),
]


def test_nothing_is_left_after_an_exception_anywhere() -> None:
    model = decoder("mixtral")
    before, plain = states_of(model), model(BASE).logits
    assert before[1] == "sdpa"

    def boom(*_: object, **__: object) -> None:
        raise RuntimeError("inside")

    for where in SITES:
        with pytest.raises(RuntimeError, match="inside"), visiting([(locate(model, where), boom)]):
            model(BASE)
        assert states_of(model) == before
        collect(model, given(BASE), {"x": where})
        interchange(model, given(BASE), given(SOURCE), {"x": (where, Vanilla())})
        assert states_of(model) == before
    stumbling = model.get_submodule("model.layers.2.mlp.experts").register_forward_hook(boom)
    during = states_of(model)
    try:
        for where in SITES:  # behind most of the sites the network itself fails
            with pytest.raises(RuntimeError, match="inside"):
                interchange(model, given(BASE), given(SOURCE), {"x": (where, Vanilla())})
            assert states_of(model) == during
    finally:
        stumbling.remove()
    assert states_of(model) == before
    assert torch.equal(model(BASE).logits, plain)


def test_nested_contexts_and_two_models() -> None:
    model, other = decoder("llama"), build("gpt2")
    before = states_of(model), states_of(other)
    plain = other(BASE).logits
    tap = TAPS["llama"]["block_output"]
    steer = torch.linspace(-1, 1, 16)

    def adding(amount: float) -> Any:
        return lambda hidden, inputs: hidden + amount * steer

    def halving(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        return hidden / 2

    at = locate(model, Site(1))
    both = swapped(model, tap, 1, BASE, lambda x: (x + steer) / 2)
    one = swapped(model, tap, 1, BASE, lambda x: x + steer)
    others = swapped(other, TAPS["gpt2"]["block_output"], 1, BASE, lambda x: x + steer)
    with visiting([(at, adding(1.0))]):
        with visiting([(at, halving)]):
            assert relative(model(BASE).logits, both) <= 1e-6  # the outer edit first
            assert torch.equal(other(BASE).logits, plain)  # another network feels nothing
            with visiting([(locate(other, Site(1)), adding(1.0))]):
                assert relative(model(BASE).logits, both) <= 1e-6
                assert relative(other(BASE).logits, others) <= 1e-6
        assert relative(model(BASE).logits, one) <= 1e-6
        collect(model, given(SOURCE), {"x": Site(2)})  # a call inside a context
    assert (states_of(model), states_of(other)) == before


@pytest.mark.parametrize("first_out", [0, 1])
def test_contexts_inside_modules_end_in_any_order(first_out: int) -> None:
    model = build("llama", attn_implementation="eager")
    before = states_of(model)
    where = locate(model, Site(1, "attention_weight"))

    tap = TAPS["llama"]["attention_value_output"]  # it is linear in the probabilities
    expected = {
        scale: swapped(model, tap, 1, BASE, partial(torch.mul, torch.tensor(scale))) for scale in (0.5, 1.0, 1.5, 3.0)
    }
    stacks = [ExitStack(), ExitStack()]
    for stack, scale in zip(stacks, (0.5, 3.0), strict=True):

        def scaled(hidden: Tensor, inputs: Tensor | None, scale: float = scale) -> Tensor:
            return hidden * scale

        stack.enter_context(visiting([(where, scaled)]))
    assert relative(model(BASE).logits, expected[1.5]) <= 1e-5
    stacks[first_out].close()
    assert relative(model(BASE).logits, expected[(3.0, 0.5)[first_out]]) <= 1e-5
    stacks[1 - first_out].close()
    assert relative(model(BASE).logits, expected[1.0]) <= 1e-5
    assert states_of(model) == before


@pytest.mark.slow
def test_many_calls_do_not_grow_memory() -> None:
    model, net = decoder("mixtral"), gru()
    base, source = given(BASE[:1, :3]), given(SOURCE[:1, :3])
    x = torch.randn(1, 3, 5)
    alignment = {f"x{i}": (where, Vanilla()) for i, where in enumerate(SITES[:7])}

    def call() -> None:
        interchange(model, base, source, alignment)
        interchange(net, x, -x, {"x": (Site(1, position=1), Vanilla())})

    def held() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        tensors = [o for o in objects if issubclass(type(o), Tensor)]
        return len(objects), len(tensors)

    for _ in range(5):
        call()
    before = held()
    for _ in range(500):
        call()
    after = held()
    assert after[1] == before[1]
    assert abs(after[0] - before[0]) < 100  # a fifth of an object a call would show


# --- the user's own hooks, and transformers' ---


def test_hidden_states_that_transformers_reports_are_the_edited_ones() -> None:
    model = build("llama")
    model(BASE, output_hidden_states=True)  # transformers installs its hooks, for good
    fired: list[Tensor] = []
    block = model.get_submodule("model.layers.1")
    handle = block.register_forward_hook(lambda _, __, output: fired.append(output.clone()))
    before = states_of(model)
    where = Site(1, position=2)
    found = interchange(model, {**given(BASE), "output_hidden_states": True}, given(SOURCE), {"x": (where, Vanilla())})
    source = values(model, {"x": TAPS["llama"]["block_output"]}, 1, SOURCE)["x"]
    assert torch.equal(found.hidden_states[2][:, 2], source[:, 2])
    assert not torch.equal(found.hidden_states[2][:, 1], source[:, 1])
    assert states_of(model) == before  # in their order too
    assert torch.equal(fired[1][:, 2], values(model, {"x": TAPS["llama"]["block_output"]}, 1, BASE)["x"][:, 2])
    handle.remove()


def test_a_users_hook_that_changes_the_activation_is_part_of_the_network() -> None:
    model = build("llama")
    handle = model.get_submodule("model.layers.1").register_forward_hook(lambda _, __, output: output * 2)
    try:
        found = collect(model, given(BASE), {"x": Site(1, position="all"), "y": Site(2, "block_input", "all")})
    finally:
        handle.remove()
    assert torch.equal(found["x"], found["y"])
    assert torch.equal(found["x"], 2 * values(model, {"x": TAPS["llama"]["block_output"]}, 1, BASE)["x"])


# --- attention, outputs, weights, devices ---


def test_eager_and_sdpa_agree() -> None:
    names = ("head_value_output", "attention_weight", "mlp_hidden")
    sites = {f"{name}{i}": Site(i, name, "all") for name in names for i in (0, 2)}
    sites["final"] = Site(component="final_norm", position="all")
    for family in ("gpt2", "gemma3_text", "mistral", "opt"):
        found = [collect(build(family, attn_implementation=how), given(BASE), sites) for how in ("eager", "sdpa")]
        for name in sites:
            assert relative(found[0][name], found[1][name]) <= 1e-5


def test_attention_that_shows_no_probabilities_is_an_error() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head_dim = 4
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.o_proj = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
            found: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return found

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.attn(x)
            return found

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block()])

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layers[0](x)
            return found

    net = Net()
    x = torch.randn(2, 3, 8)
    assert collect(net, x, {"x": Site(0, "head_query_output")})["x"].shape == (2, 1, 2, 4)
    for run in (
        lambda: collect(net, x, {"x": Site(0, "attention_weight")}),
        lambda: interchange(net, x, x, {"x": (Site(0, "attention_weight"), Vanilla())}),
    ):
        with pytest.raises(
            IITKitError, match="layer 0 attention_weight: the module ran and made no attention probabilities that could"
        ):
            run()


def test_logits_are_what_the_network_returns() -> None:
    for family in ("gemma2", "gpt2"):  # Gemma2 caps them softly after its head
        model = build(family)
        plain, other = model(BASE).logits, model(SOURCE).logits
        everywhere = Site(component="logits", position="all")
        assert torch.equal(collect(model, given(BASE), {"x": everywhere})["x"], plain)
        where = Site(component="logits", position=[1, -1])
        expected = plain.clone()
        expected[:, [1, 6]] = other[:, [1, 6]]
        alignment = {"x": (where, Vanilla())}
        found = interchange(model, given(BASE), given(SOURCE), alignment)
        assert type(found) is type(model(BASE))
        assert torch.equal(found.logits, expected)
        assert torch.equal(found["logits"], expected)
        as_tuple = interchange(model, {**given(BASE), "return_dict": False}, given(SOURCE), alignment)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], expected)
        with pytest.raises(IITKitError, match="logits: the model's own loss is of the logits before the edit: run"):
            interchange(model, {**given(BASE), "labels": BASE}, given(SOURCE), alignment)


def test_an_output_as_a_tuple() -> None:
    model = build("llama")
    alignment = {"x": (Site(1, "head_query_output", [2, 3], head=1), Vanilla())}
    expected = interchange(model, given(BASE), given(SOURCE), alignment).logits
    found = interchange(model, {**given(BASE), "return_dict": False}, given(SOURCE), alignment)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], expected)


class Int8Linear(nn.Module):
    """A quantised linear map as libraries write them: no ``nn.Linear``, weights in int8 with a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.scale = nn.Buffer(scale)
        self.weight_int8 = nn.Buffer((linear.weight / scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_int8.to(x.dtype) * self.scale)


def test_quantised_projections() -> None:
    model, plain = build("llama"), decoder("llama")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Int8Linear(module))
    for component in ("head_key_output", "mlp_hidden", "attention_value_output", "attention_weight", "query_output"):
        where = Site(1, component, [0, -1])
        one, other = locate(model, where), locate(plain, where)
        assert (one.width, one.heads, one.input_width) == (other.width, other.heads, other.input_width)
        assert type(one.module) is (Int8Linear if component != "attention_weight" else type(other.module))
    found = interchange(model, given(BASE), given(SOURCE), {"x": (Site(1, "head_key_output", 2, head=1), Vanilla())})
    source = values(model, TAPS["llama"], 1, SOURCE)["key_output"]

    def change(keys: Tensor) -> Tensor:
        new = keys.clone()
        new[:, 2, 4:] = source[:, 2, 4:]
        return new

    assert relative(found.logits, swapped(model, TAPS["llama"]["key_output"], 1, BASE, change)) <= 1e-6


def test_a_model_that_accelerate_dispatched() -> None:
    model, plain = build("gpt2"), decoder("gpt2")
    dispatched: PreTrainedModel = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    before = hooks_of(dispatched)
    assert any(forward is not None for _, _, forward in before.values())  # accelerate replaces forwards
    for component in ("block_output", "head_key_output", "attention_weight", "mlp_hidden", "logits"):
        where = Site(None if component in OUTSIDE else 1, component, [1, -1])
        alignment = {"x": (where, Vanilla())}
        one, other = (interchange(net, given(BASE), given(SOURCE), alignment).logits for net in (dispatched, plain))
        assert torch.equal(one, other)
    assert hooks_of(dispatched) == before


def test_weights_that_are_loaded_as_they_are_needed() -> None:
    cpu = torch.device("cpu")
    for family in ("llama", "mixtral"):
        plain, offloaded = decoder(family), cpu_offload(build(family), execution_device=cpu)
        assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
        before = hooks_of(offloaded)
        for component in ("head_key_output", "attention_weight", "mlp_input", "router_output", "block_output"):
            if component == "router_output" and family == "llama":
                continue
            where = Site(1, component, [1, -1])
            found, expected = (collect(net, given(BASE), {"x": where})["x"] for net in (offloaded, plain))
            assert torch.equal(found, expected)
            alignment = {"x": (where, Vanilla())}
            found, expected = (
                interchange(net, given(BASE), given(SOURCE), alignment).logits for net in (offloaded, plain)
            )
            assert torch.equal(found, expected)
        assert hooks_of(offloaded) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own quantisation moves to another package
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_torch_quantised() -> None:
    model: Any = torch.ao.quantization.quantize_dynamic(build("llama"), {nn.Linear}, dtype=torch.qint8)
    keys = model.get_submodule("model.layers.1.self_attn.k_proj")
    assert not isinstance(keys, nn.Linear)
    location = locate(model, Site(1, "head_key_output"))
    assert (location.module, location.width, location.heads) == (keys, 4, 2)
    own = values(model, TAPS["llama"], 1, BASE)
    theirs = values(model, TAPS["llama"], 1, SOURCE)
    for component in ("key_output", "mlp_hidden", "attention_value_output", "block_output"):
        assert torch.equal(collect(model, given(BASE), {"x": Site(1, component, "all")})["x"], own[component])
        found = interchange(model, given(BASE), given(SOURCE), {"x": (Site(1, component, [2]), Vanilla())}).logits

        def change(whole: Tensor, source: Tensor = theirs[component]) -> Tensor:
            new = whole.clone()
            new[:, 2] = source[:, 2]
            return new

        expected = swapped(model, TAPS["llama"][component], 1, BASE, change)
        assert relative(found, expected) <= 1e-5
        assert relative(expected, model(BASE).logits) > 1e-4


def test_modules_by_path_that_see_rows_and_positions_in_one_dimension() -> None:
    opt, mixtral = decoder("opt"), decoder("mixtral")
    taken = collect(opt, given(BASE), {"x": Site(module="model.decoder.layers.1.fc2", side="input", position=[0, -1])})
    assert torch.equal(taken["x"], values(opt, TAPS["opt"], 1, BASE)["mlp_hidden"][:, [0, -1]])
    where = Site(module="model.decoder.layers.1.fc1", position=3)
    found = interchange(opt, given(BASE), given(SOURCE), {"x": (where, Vanilla())}).logits
    same = interchange(opt, given(BASE), given(SOURCE), {"x": (Site(1, "mlp_input", 3), Vanilla())}).logits
    assert relative(found, same) <= 1e-6
    gate = Site(module="model.layers.1.mlp.gate", side="input", position="all")
    entering = values(mixtral, TAPS["mixtral"], 1, BASE)["router_input"]
    assert torch.equal(collect(mixtral, given(BASE), {"x": gate})["x"], entering)
