"""Every component of every family against hooks placed by hand from the family's own module code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import Edit, cast, gram_schmidt, relative
from families import DECODERS, TITLES, WIDTH, build, decoder, gru, ids, mlp
from taps import HEADS, TAPS, Tap, hooked, route, swapped, values
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.errors import IITKitError
from iitkit.interventions import Addition, Intervention, LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.anatomy import COMPONENTS, components, locate
from iitkit.models.interchange import collect, interchange
from iitkit.models.sites import OUTSIDE, Site

ROWS, COLUMNS, MIDDLE, LAST = 3, 7, 1, 2
BASE, SOURCE = ids(ROWS, COLUMNS, seed=1), ids(ROWS, COLUMNS, seed=2)
POSITIONS = [0, 3, -1]  # first, middle, last
COLUMN = torch.tensor([[0], [3], [6]])  # one for each row
AT = (torch.arange(ROWS), COLUMN[:, 0])
HEAD_OF = {
    "head_query_output": ("query_output", 0),
    "head_key_output": ("key_output", 1),
    "head_value_output": ("value_output", 1),
    "head_attention_value_output": ("attention_value_output", 0),
}
"""Component of heads → what it is parted from, and which of :data:`taps.HEADS` counts it."""

EXPERTS = ("mixtral", "gpt_oss")
PLAIN = {
    "mlp": {"block_input", "block_output", "mlp_activation", "logits"},
    "gru": {"block_input", "block_output", "logits"},
}
PRESENT = {
    family: {*taps, *HEAD_OF, "attention_weight", "logits", *(["router_output"] if family in EXPERTS else [])}
    for family, taps in TAPS.items()
} | PLAIN
"""Family → the components that it has, by hand."""

IDLE = ("attention_weight", "query_output", "head_query_output")
"""Components that do nothing at the first token, which attends to itself alone."""

CELLS = [(family, component) for family in DECODERS for component in COMPONENTS if component in PRESENT[family]]


@cache
def by_hand(family: str, layer: int, which: str) -> dict[str, Tensor]:
    return values(decoder(family), TAPS[family], layer, BASE if which == "base" else SOURCE)


@cache
def plain(family: str, which: str = "base") -> Tensor:
    with torch.no_grad():
        logits: Tensor = decoder(family)(BASE if which == "base" else SOURCE).logits
    return logits


def site(component: str, layer: int, position: Any = COLUMN, head: int | list[int] | None = None) -> Site:
    return Site(None if component in OUTSIDE else layer, component, position, head=head)


def swap(family: str, where: Site) -> Tensor:
    found: Tensor = interchange(
        decoder(family), {"input_ids": BASE}, {"input_ids": SOURCE}, {"x": (where, Vanilla())}
    ).logits
    return found


def taking(source: Tensor, heads: tuple[int, list[int]] | None = None) -> Callable[[Tensor], Tensor]:
    """By hand: at each row's column the source's vector, or only some of its ``heads`` (count, chosen)."""

    def change(whole: Tensor) -> Tensor:
        new = whole.clone()
        if heads is None:
            new[AT] = source[AT]
            return new
        count, chosen = heads
        parted, taken = (x.view(*x.shape[:2], count, x.shape[2] // count) for x in (new, source.contiguous()))
        for row, column in zip(*AT, strict=True):
            for head in chosen:
                parted[row, column, head] = taken[row, column, head]
        return new

    return change


def probabilities(family: str, layer: int, which: str) -> Tensor:
    """Attention probabilities [B, heads, queries, keys] as transformers itself returns them from an eager network."""
    model = build(family, attn_implementation="eager")
    with torch.no_grad():
        found: Tensor = model(BASE if which == "base" else SOURCE, output_attentions=True).attentions[layer]
    return found


@pytest.mark.parametrize(("family", "component"), CELLS)
def test_collect_is_the_hook_by_hand(family: str, component: str) -> None:
    model, (heads, kept, size) = decoder(family), HEADS[family]
    for layer in (MIDDLE, LAST):
        found = collect(model, {"input_ids": BASE}, {"x": site(component, layer, POSITIONS)})["x"]
        own = by_hand(family, layer, "base")
        if component in own:
            expected = own[component]
        elif component in HEAD_OF:
            of, which = HEAD_OF[component]
            expected = own[of].reshape(ROWS, COLUMNS, kept if which else heads, size)
        elif component == "attention_weight":
            expected = probabilities(family, layer, "base").transpose(1, 2)
        elif component == "router_output":
            router: Any = model.get_submodule(TAPS[family]["router_input"].paths[0].format(i=layer))
            expected = own["router_input"] @ router.weight.T + getattr(router, "bias", 0)
        else:
            expected = plain(family)
        assert relative(found, expected[:, [0, 3, 6]]) <= 1e-5


@pytest.mark.parametrize(("family", "component"), CELLS)
def test_a_swap_is_the_hook_by_hand(family: str, component: str) -> None:
    model = decoder(family)
    for layer in (MIDDLE, LAST):
        own, other = by_hand(family, layer, "base"), by_hand(family, layer, "source")
        if component in own:
            expected = swapped(model, TAPS[family][component], layer, BASE, taking(other[component]))
        elif component in HEAD_OF:
            of = HEAD_OF[component][0]
            expected = swapped(model, TAPS[family][of], layer, BASE, taking(other[of]))
        elif component == "attention_weight":
            expected = by_weights(family, layer, list(range(HEADS[family][0])))
        elif component == "router_output":
            expected = by_router(family, layer)
        else:
            expected = taking(plain(family, "source"))(plain(family))
        found = swap(family, site(component, layer))
        assert relative(found, expected) <= 1e-5
        moved = [relative(*rows) for rows in zip(expected, plain(family), strict=True)]
        idle = int(component in IDLE)
        assert min(moved[idle:]) > 1e-4  # at each position the swap does something, so the check can fail


@cache
def exact(family: str) -> PreTrainedModel:
    more = {"experts_implementation": "eager"} if family in EXPERTS else {}  # torch has no grouped product in fp64
    return cast(build(family, **more), torch.float64)


@pytest.mark.parametrize("family", DECODERS)
def test_in_fp64_what_differs_is_only_rounding(family: str) -> None:
    model = exact(family)
    with torch.no_grad():
        own_logits = model(BASE).logits
    assert own_logits.dtype == torch.float64
    for layer in (MIDDLE, LAST):
        own, other = (values(model, TAPS[family], layer, tokens) for tokens in (BASE, SOURCE))
        for component, tap in TAPS[family].items():
            where = site(component, layer)
            taken = collect(model, {"input_ids": BASE}, {"x": where})["x"]
            assert relative(taken, own[component][AT][:, None]) <= 1e-10
            expected = swapped(model, tap, layer, BASE, taking(other[component]))
            alignment = {"x": (where, Vanilla())}
            found = interchange(model, {"input_ids": BASE}, {"input_ids": SOURCE}, alignment).logits
            assert relative(found, expected) <= 1e-10
            assert relative(expected, own_logits) > 1e-4


@pytest.mark.parametrize("component", HEAD_OF)
@pytest.mark.parametrize("layer", [MIDDLE, LAST])
@pytest.mark.parametrize("family", DECODERS)
def test_a_swap_of_heads_is_the_manual_reshape(family: str, layer: int, component: str) -> None:
    model, (of, which) = decoder(family), HEAD_OF[component]
    count, size = HEADS[family][which], HEADS[family][2]
    for head in (count - 1, [count - 1, 0] if count > 1 else [0]):
        chosen = [head] if isinstance(head, int) else head
        where = site(component, layer, head=head)
        expected = swapped(
            model, TAPS[family][of], layer, BASE, taking(by_hand(family, layer, "source")[of], (count, chosen))
        )
        assert relative(swap(family, where), expected) <= 1e-5
        assert relative(expected, plain(family)) > 1e-4
        parted = by_hand(family, layer, "base")[of].reshape(ROWS, COLUMNS, count, size)[AT][:, None]
        taken = collect(model, {"input_ids": BASE}, {"x": where})["x"]
        assert relative(taken, parted[:, :, head] if isinstance(head, int) else parted[:, :, chosen]) <= 1e-5
        location = locate(model, where)
        assert (location.width, location.heads) == (size, len(chosen))


def by_weights(family: str, layer: int, chosen: list[int]) -> Tensor:
    """By hand: the source's probabilities of a query, times the base's values, are what the projection is given."""
    heads, kept, size = HEADS[family]
    own, theirs = probabilities(family, layer, "base"), probabilities(family, layer, "source")
    value = by_hand(family, layer, "base")["value_output"]
    if family == "olmo":
        value = value.clamp(-0.5, 0.5)
    value = value.reshape(ROWS, COLUMNS, kept, size).repeat_interleave(heads // kept, 2)

    def change(results: Tensor) -> Tensor:
        new = results.clone().view(ROWS, COLUMNS, heads, size)
        for row, column in zip(*AT, strict=True):
            for head in range(heads):
                weights = (theirs if head in chosen else own)[row, head, column]
                new[row, column, head] = weights @ value[row, :, head]
        return new.view_as(results)

    return swapped(decoder(family), TAPS[family]["attention_value_output"], layer, BASE, change)


@pytest.mark.parametrize("family", DECODERS)
def test_a_swap_of_some_heads_attention_is_computed_by_hand(family: str) -> None:
    found = {head: swap(family, site("attention_weight", MIDDLE, head=head)) for head in (2, 3)}
    for head, logits in found.items():
        assert relative(logits, by_weights(family, MIDDLE, [head])) <= 1e-5
    both = swap(family, site("attention_weight", MIDDLE, head=[3, 2]))
    assert relative(both, by_weights(family, MIDDLE, [2, 3])) <= 1e-5
    assert relative(found[2], found[3]) > 1e-4
    taken = collect(decoder(family), {"input_ids": BASE}, {"x": site("attention_weight", MIDDLE, POSITIONS, [3, 1])})
    by_query = probabilities(family, MIDDLE, "base").transpose(1, 2)
    assert relative(taken["x"], by_query[:, [0, 3, 6]][:, :, [3, 1]]) <= 1e-5


def by_router(family: str, layer: int) -> Tensor:
    """By hand: the router's answer for the source's logits at each row's column."""
    model, tap = decoder(family), TAPS[family]["router_input"]
    router: Any = model.get_submodule(tap.paths[0].format(i=layer))
    weight, bias = router.weight, getattr(router, "bias", 0)
    own, theirs = (by_hand(family, layer, which)["router_input"] @ weight.T + bias for which in ("base", "source"))
    answer = route(family, taking(theirs)(own).flatten(0, 1))
    handle = router.register_forward_hook(lambda *_: answer)
    try:
        with torch.no_grad():
            logits: Tensor = model(BASE).logits
    finally:
        handle.remove()
    return logits


# --- plain networks ---


def stack_by_hand(layer: int, component: str) -> tuple[int, bool]:
    """Index of a module of the stack, and whether the component is its input."""
    starts, activations, stops = (0, 2, 5, 7), (1, 4, 6), (1, 4, 6, 7)
    if component == "block_input":
        return starts[layer], True
    return (activations if component == "mlp_activation" else stops)[layer], False


@pytest.mark.parametrize("component", ["block_input", "block_output", "mlp_activation"])
@torch.no_grad()
def test_a_stack_of_modules(component: str) -> None:
    net, (base, source) = mlp(), torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3)).unbind(0)
    for layer in range(3 if component == "mlp_activation" else 4):
        index, entering = stack_by_hand(layer, component)
        cut = index if entering else index + 1
        own, other = net[:cut](base), net[:cut](source)
        where = Site(layer, component)
        assert relative(collect(net, base, {"x": where})["x"], own[:, None]) <= 1e-6
        assert locate(net, where).width == own.shape[1]
        mixed = own.clone()
        mixed[:, :2] = other[:, :2]
        handle = (
            net[index].register_forward_pre_hook(lambda *_, mixed=mixed: (mixed,))
            if entering
            else net[index].register_forward_hook(lambda *_, mixed=mixed: mixed)
        )
        expected = net(base)
        handle.remove()
        assert relative(net[cut:](mixed), expected) <= 1e-6
        found = interchange(net, base, source, {"x": (where, Vanilla())})
        assert relative(found, net(source)) <= 1e-6
    with pytest.raises(IITKitError, match=r"x: layer 3 of Sequential has no mlp_activation: the modules of its layer"):
        collect(net, base, {"x": Site(3, "mlp_activation")})
    assert torch.equal(collect(net, base, {"x": Site(component="logits")})["x"], net(base)[:, None])


@torch.no_grad()
def test_a_module_that_stands_twice_in_a_stack() -> None:
    act = nn.ReLU()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 6), act)
    base, source = torch.randn(2, 5, 4).unbind(0)
    expected = torch.relu(net[0](base))
    assert torch.equal(collect(net, base, {"x": Site(0)})["x"], expected[:, None])
    assert torch.equal(interchange(net, base, source, {"x": (Site(0), Vanilla())}), net(source))
    with pytest.raises(IITKitError, match="one ReLU stands at several places of the stack: give each its own"):
        collect(net, base, {"x": Site(1)})


def gru_by_hand(
    net: nn.Module, x: Tensor, edits: Mapping[tuple[int, int], Tensor | Edit], entering: bool = False
) -> list[Tensor]:
    """States [B, S, 8] of every layer, cell by cell (Cho et al.'s equations as torch documents them), with edits.

    ``edits[layer, position]`` replaces or changes the state there, or the layer's input.
    """

    def edited(layer: int, t: int, state: Tensor) -> Tensor:
        edit = edits.get((layer, t), state)
        return edit if isinstance(edit, Tensor) else edit(state)

    recurrent = net.get_submodule("gru")
    found = []
    for layer in range(3):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_i, w_h, b_i, b_h = (getattr(recurrent, f"{kind}_l{layer}") for kind in kinds)
        state, states = torch.zeros(x.shape[0], 8, dtype=x.dtype), []
        for t in range(x.shape[1]):
            now = edited(layer, t, x[:, t]) if entering else x[:, t]
            gates_x, gates_h = (now @ w_i.T + b_i).chunk(3, 1), (state @ w_h.T + b_h).chunk(3, 1)
            reset, update = torch.sigmoid(gates_x[0] + gates_h[0]), torch.sigmoid(gates_x[1] + gates_h[1])
            candidate = torch.tanh(gates_x[2] + reset * gates_h[2])
            state = (1 - update) * candidate + update * state
            if not entering:
                state = edited(layer, t, state)
            states.append(state)
        x = torch.stack(states, 1)
        found.append(x)
    return found


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_the_state_of_a_gru_is_carried_on(layer: int, batch_first: bool) -> None:
    net = gru(batch_first=batch_first)
    base, source = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(3)).unbind(0)

    def given(x: Tensor) -> Tensor:
        return x if batch_first else x.transpose(0, 1)

    own, theirs = gru_by_hand(net, base, {}), gru_by_hand(net, source, {})
    entering = [base, *own]
    sites = {"x": Site(layer, position="all"), "y": Site(layer, "block_input", "all")}
    found = collect(net, given(base), sites)
    assert relative(found["x"], own[layer]) <= 1e-6
    assert relative(found["y"], entering[layer]) <= 1e-6
    for positions in ([0], [3], [5], [1, 4]):
        edits = {(layer, t): theirs[layer][:, t] for t in positions}
        expected = net.head(gru_by_hand(net, base, edits)[-1])
        where = Site(layer, position=torch.tensor([positions] * 4))
        logits = interchange(net, given(base), given(source), {"x": (where, Vanilla())})
        assert relative(given(logits), expected) <= 1e-6
        untouched = net.head(own[-1])
        assert relative(expected[:, -1], untouched[:, -1]) > 1e-4  # what comes after feels it
        inputs = {(layer, t): [source, *theirs][layer][:, t] for t in positions}
        expected = net.head(gru_by_hand(net, base, inputs, entering=True)[-1])
        where = Site(layer, "block_input", torch.tensor([positions] * 4))
        logits = interchange(net, given(base), given(source), {"x": (where, Vanilla())})
        assert relative(given(logits), expected) <= 1e-6
    both = {"a": (Site(0, position=[2]), Vanilla()), "b": (Site(2, position=[4]), Vanilla())}
    expected = net.head(gru_by_hand(net, base, {(0, 2): theirs[0][:, 2], (2, 4): theirs[2][:, 4]})[-1])
    assert relative(given(interchange(net, given(base), given(source), both)), expected) <= 1e-6
    same = interchange(net, given(base), given(base), {"x": (Site(layer, position=[1, 3]), Vanilla())})
    assert torch.equal(same, net(given(base)))
    assert "forward" not in net.gru.__dict__


@pytest.mark.parametrize("layer", [0, 2])
def test_an_edit_that_depends_on_the_state_of_a_gru_and_its_gradient(layer: int) -> None:
    net = gru().double()
    generator = torch.Generator().manual_seed(3)
    base, source = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64).unbind(0)
    theirs = gru_by_hand(net, source, {})[layer]
    where = Site(layer, position=[1, 4])
    swapping = LowRankSubspace(SiteInfo(8, generator=generator), rank=3).double()
    adding = Addition(SiteInfo(8, generator=generator)).double()  # of a vector that starts at nought
    for edit in (swapping, adding):
        trained = next(edit.parameters())

        def by_hand(t: int, edit: Intervention = edit, trained: Tensor = trained) -> Edit:
            rotation = gram_schmidt(trained) if edit is swapping else None
            return lambda b: b + trained if rotation is None else b + (theirs[:, t] - b) @ rotation @ rotation.T

        expected = net.head(gru_by_hand(net, base, {(layer, t): by_hand(t) for t in (1, 4)})[-1])
        found = interchange(net, base, source if edit is swapping else None, {"x": (where, edit)})
        assert relative(found, expected) <= 1e-10
        weights = torch.linspace(-1, 1, 4, dtype=torch.float64)
        gradients = [torch.autograd.grad((logits * weights).sum(), trained)[0] for logits in (found, expected)]
        assert relative(*gradients) <= 1e-9  # through all that follows, though an addition of nought changes nothing
        with torch.no_grad():
            again = interchange(net, base, source if edit is swapping else None, {"x": (where, edit)})
        assert relative(again, expected) <= 1e-10
    twice = dict.fromkeys(("a", "b"), (where, swapping))  # the second edit sees what the first left
    assert relative(interchange(net, base, source, twice), interchange(net, base, source, {"a": twice["a"]})) <= 1e-10


def test_grus_that_cannot_be_edited() -> None:
    net = gru()
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 3, 5), torch.tensor([3, 2]), batch_first=True)
    with pytest.raises(IITKitError, match="the GRU was given a packed sequence: give a tensor"):
        collect(net.gru, {"input": packed}, {"x": Site(0)})
    both_ways = nn.GRU(5, 8, bidirectional=True)
    with pytest.raises(IITKitError, match="layer 0 of GRU has no block_output: a GRU of two directions has no state"):
        locate(both_ways, Site(0))


# --- what a family has ---


@pytest.mark.parametrize("family", PRESENT)
def test_every_family_has_what_is_written_here(family: str) -> None:
    net = mlp() if family == "mlp" else gru() if family == "gru" else decoder(family)
    for layer in range(3):
        assert {*components(net, layer), *components(net, None)} == PRESENT[family]
    for component in set(COMPONENTS) - PRESENT[family]:
        outside = component in OUTSIDE
        has = [name for name in COMPONENTS if name in PRESENT[family] and (name in OUTSIDE) == outside]
        with pytest.raises(IITKitError, match=rf"no {component}: .* It has {', '.join(has)}$"):
            locate(net, site(component, 1))


def matrix() -> str:
    """The table of README.md: what the tests above check."""
    families = list(TITLES)
    lines = ["| component | " + " | ".join(TITLES[family] for family in families) + " |"]
    lines.append("|---|" + ":-:|" * len(families))
    for component in COMPONENTS:
        marks = ["✓" if component in PRESENT[family] else "–" for family in families]
        lines.append(f"| `{component}` | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_readme_has_the_matrix() -> None:
    """``IITKIT_WRITE_README=1`` rewrites it."""
    path = Path(__file__).resolve().parents[2] / "README.md"
    text, start, end = path.read_text(encoding="utf-8"), "<!-- matrix -->\n", "\n<!-- end of matrix -->"
    head, rest = text.split(start)
    tail = rest.split(end)[1]
    wanted = head + start + matrix() + end + tail
    if os.environ.get("IITKIT_WRITE_README"):
        path.write_text(wanted, encoding="utf-8")
    assert text == wanted or os.environ.get("IITKIT_WRITE_README"), "run this test with IITKIT_WRITE_README=1"
    assert set(PRESENT) == set(TITLES)
    assert WIDTH == 16


def test_the_taps_are_of_different_activations() -> None:
    """A tap that read another component's tensor would be seen: no two components agree but those that must."""
    for family, taps in TAPS.items():
        own = by_hand(family, MIDDLE, "base")
        for name, tap in taps.items():
            assert isinstance(tap, Tap)
            assert float(own[name].std()) > 1e-2
    alike = {("attention_input", "mlp_input")}  # GPT-J's attention and MLP share their input
    own = by_hand("gptj", MIDDLE, "base")
    names = [name for name in own if own[name].shape[-1] == WIDTH]
    same = {(a, b) for a in names for b in names if a < b and torch.equal(own[a], own[b])}
    assert same == alike
    with hooked(decoder("gptj"), TAPS["gptj"]["block_output"], MIDDLE, (ROWS, COLUMNS), lambda x: x.cumsum(-1)):
        moved = decoder("gptj")(BASE).logits
    assert relative(moved, plain("gptj")) > 1e-4


def test_a_model_of_the_family_can_be_of_any_dtype() -> None:
    model = cast(build("phi3"), torch.bfloat16)
    found = collect(model, {"input_ids": BASE}, {"x": Site(1, "head_key_output", "all")})["x"]
    assert found.dtype == torch.bfloat16
    assert found.shape == (ROWS, COLUMNS, 2, 4)
