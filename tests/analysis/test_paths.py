"""Path patching against three runs hooked by hand for each sender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import logits_of, module_of, padded, prompts
from replaying import SIDES, model_of
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn

from iitkit import Site
from iitkit.analysis.paths import patch_paths
from iitkit.errors import IITKitError
from iitkit.models.grids import Engine, Paths

LENGTHS = (5, 7)
WRONG, RIGHT = 7, 5


def projection(model: Any, family: str, layer: int) -> nn.Module:
    """The attention's output projection, whose input is all heads' results."""
    found: nn.Module = (
        model.model.layers[layer].self_attn.o_proj if family == "llama" else model.transformer.h[layer].attn.c_proj
    )
    return found


def run(
    model: Any,
    ids: list[int],
    inputs: dict[nn.Module, Any] | None = None,
    outputs: dict[nn.Module, Any] | None = None,
    seen: dict[nn.Module, Tensor] | None = None,
) -> Tensor:
    """Last-token logits with modules' inputs and outputs changed by functions of the whole tensor; outputs are seen."""
    handles = []
    for module, change in (inputs or {}).items():
        handles.append(module.register_forward_pre_hook(lambda _, args, change=change: (change(args[0].clone()),)))

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        assert seen is not None
        seen[module] = output.clone()

    handles += [module.register_forward_hook(note) for module in seen or {}]
    for module, change in (outputs or {}).items():
        handles.append(module.register_forward_hook(lambda _, __, output, change=change: change(output.clone())))
    try:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([ids])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits


def kept(model: Any, family: str, ids: list[int]) -> dict[Any, Tensor]:
    """Every layer's heads (the projection's input), attention and MLP output of an unedited run."""
    found: dict[Any, Tensor] = {}
    handles = []
    for layer in range(4):
        for name in ("attention_output", "mlp_output"):
            module = module_of(model, family, layer, name)

            def after(_: Any, __: Any, output: Tensor, key: Any = (layer, name)) -> None:
                found[key] = output.clone()

            handles.append(module.register_forward_hook(after))

        def before(_: Any, args: Any, key: Any = (layer, "heads")) -> None:
            found[key] = args[0].clone()

        handles.append(projection(model, family, layer).register_forward_pre_hook(before))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def held(model: Any, family: str, base: dict[Any, Tensor], layer: int, mlps: bool = True) -> dict[nn.Module, Any]:
    """What comes after a head of a layer, held as it is in the base."""
    items = [(at, "attention_output") for at in range(layer + 1, 4)]
    items += [(at, "mlp_output") for at in range(layer, 4)] if mlps else []
    return {module_of(model, family, *item): lambda _, value=base[item]: value for item in items}


def sent(source: Tensor, head: int, position: int) -> Any:
    def change(tensor: Tensor) -> Tensor:
        tensor[0, position, 8 * head : 8 * head + 8] = source[0, position, 8 * head : 8 * head + 8]
        return tensor

    return change


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mlps", [True, False], ids=["mlps held", "mlps free"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_direct_effects_on_the_logits(family: str, mlps: bool, side: Any) -> None:
    model = model_of(family)
    bases, sources = prompts(LENGTHS, 1), prompts(LENGTHS, 2)
    both = [dict(zip(("input_ids", "attention_mask"), padded(x, side), strict=True)) for x in (bases, sources)]
    hold = ("attention_output", "mlp_output") if mlps else ("attention_output",)
    grid = patch_paths(
        model, *both, answers=RIGHT, wrong=WRONG, metrics="logit_difference", positions=[-1, 2], hold=hold
    )
    assert grid.dims == ("layer", "head", "position", "example")
    assert grid.about["receiver"] == "logits"
    for row, (base, source) in enumerate(zip(bases, sources, strict=True)):
        ours, theirs = kept(model, family, base), kept(model, family, source)
        for layer in (0, 2, 3):
            for head in (0, 3):
                for label, position in (("-1", len(base) - 1), ("2", 2)):
                    put = {projection(model, family, layer): sent(theirs[layer, "heads"], head, position)}
                    logits = run(model, base, put, held(model, family, ours, layer, mlps))
                    found = grid.sel(layer=layer, head=head, position=label).values[row]
                    assert found == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=2e-5)
        plain = logits_of(model, base)[-1]
        assert grid.references["nothing"][row] == pytest.approx(float(plain[RIGHT] - plain[WRONG]), abs=1e-5)

        def all_heads(layer: int, ours: Any = ours, theirs: Any = theirs, n: int = len(base)) -> Any:
            sent_on = ours[layer, "heads"].clone()
            sent_on[0, [2, n - 1]] = theirs[layer, "heads"][0, [2, n - 1]]
            return lambda _: sent_on

        put = {projection(model, family, layer): all_heads(layer) for layer in range(4)}
        mlps_held = {module_of(model, family, at, "mlp_output"): ours[at, "mlp_output"] for at in range(4) if mlps}
        logits = run(model, base, put, {module: lambda _, v=value: v for module, value in mlps_held.items()})
        assert grid.references["everything"][row] == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=2e-5)
    # with all held, what is not at the last position reaches nothing
    untouched = grid.sel(position="2").values if mlps else grid.sel(position="2").values[3]
    assert np.allclose(untouched, grid.references["nothing"], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_paths_into_a_heads_queries(family: str) -> None:
    model: Any = model_of(family)
    (base,), (source,) = prompts((6,), 3), prompts((6,), 4)
    ours, theirs = kept(model, family, base), kept(model, family, source)
    both = {"input_ids": torch.tensor([base])}, {"input_ids": torch.tensor([source])}
    grid = patch_paths(
        model,
        *both,
        receivers={"q2": Site(2, "head_query_output", head=1), "q0": [Site(0, "head_query_output", head=1)]},
        answers=RIGHT,
        wrong=WRONG,
        metrics="logit_difference",
        positions=[4, 5],
        layers=[0, 1, 2],
    )
    assert grid.dims == ("receiver", "layer", "head", "position")
    attention = model.transformer.h[2].attn.c_attn if family == "gpt2" else model.model.layers[2].self_attn.q_proj
    nothing = float(grid.references["nothing"])
    for layer in (0, 1):
        for head in (1, 2):
            for position in (4, 5):
                put = {projection(model, family, layer): sent(theirs[layer, "heads"], head, position)}
                seen: dict[nn.Module, Tensor] = {attention: torch.empty(0)}
                run(model, base, put, held(model, family, ours, layer), seen)

                def receive(tensor: Tensor, value: Tensor = seen[attention]) -> Tensor:
                    tensor[..., 8:16] = value[..., 8:16]  # queries of head 1, in GPT-2's fused tensor as well
                    return tensor

                logits = run(model, base, outputs={attention: receive})
                found = grid.sel(receiver="q2", layer=layer, head=head, position=position)
                assert found == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=2e-5)
    # neither its own layer nor a later one sends anything
    assert np.allclose(grid.sel(receiver="q2", layer=2).values, nothing, atol=1e-5)
    assert np.allclose(grid.sel(receiver="q0").values, nothing, atol=1e-5)
    assert np.abs(grid.sel(receiver="q2", layer=0).values - nothing).max() > 1e-3
    assert abs(float(grid.references["everything"]) - nothing) > 1e-3
    queries = patch_paths(model, *both, senders="head_query_output", layers=[0, 1], answers=RIGHT)
    assert "everything" not in queries.references  # layer 1's attention is held


def test_a_receivers_group_may_be_the_logits() -> None:
    model: Any = model_of("llama")
    (base,), (source,) = prompts((6,), 3), prompts((6,), 4)
    both = {"input_ids": torch.tensor([base])}, {"input_ids": torch.tensor([source])}
    options: dict[str, Any] = {"answers": RIGHT, "wrong": WRONG, "metrics": "logit_difference", "layers": [0, 1]}
    grid = patch_paths(model, *both, receivers={"out": "logits", "q": Site(2, "head_query_output")}, **options)
    assert grid.coords["receiver"] == ["out", "q"]
    for name, end in (("out", "logits"), ("q", Site(2, "head_query_output"))):
        alone = patch_paths(model, *both, receivers=end, **options)  # type: ignore[arg-type]
        assert np.allclose(grid.sel(receiver=name).values, alone.values, atol=1e-6)


def test_ctrl_c_and_failures_along_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = model_of("gpt2")
    (base,), (source,) = prompts((6,), 3), prompts((6,), 4)
    both = {"input_ids": torch.tensor([base])}, {"input_ids": torch.tensor([source])}
    ends: Any = {"q": Site(2, "head_query_output"), "k": Site(2, "head_key_output")}
    options: dict[str, Any] = {"receivers": ends, "answers": RIGHT, "layers": [0, 1]}
    whole, run = patch_paths(model, *both, **options), Paths.table
    calls: list[int] = []

    def interrupted(self: Paths, senders: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(senders))
        found = run(self, senders, *args, **kwargs)
        if len(calls) == 2:
            found.values[3:] = torch.nan
            found.interrupted = True
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Paths, "table", interrupted)
        part = patch_paths(model, *both, **options)
    assert len(calls) == 2
    assert part.about["interrupted"] is part.about["unfinished"] is True
    assert np.allclose(part.sel(receiver="q").values, whole.sel(receiver="q").values, atol=1e-6)
    assert (~np.isnan(part.sel(receiver="k").values)).sum() == 3
    calls.clear()
    with monkeypatch.context() as patched:  # the first receiver's are done, of the second's three
        patched.setattr(Paths, "table", interrupted)
        assert "unfinished" not in patch_paths(model, *both, **options, folder=tmp_path).about
        calls.append(0)
        again = patch_paths(model, *both, **options, folder=tmp_path)
    assert calls == [48, 48, 0, 0, 45, 1]
    assert np.allclose(again.values, whole.values, atol=1e-6)
    assert again.references.keys() == whole.references.keys()
    assert not [file for file in tmp_path.iterdir() if "part" in file.name]

    def failing(self: Paths, senders: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, senders, *args, **kwargs)
        if len(senders) == 1:
            found.failed[0], found.values[0] = "no memory", torch.nan
        return found

    monkeypatch.setattr(Paths, "table", failing)
    failed = patch_paths(model, *both, **options)
    assert not failed.failed
    assert failed.about["failed_references"] == {"everything": "no memory"}


def test_an_mlp_sends_to_a_later_mlp() -> None:
    model = tiny_model("gpt2")
    (base,), (source,) = prompts((6,), 5), prompts((6,), 6)
    ours, theirs = kept(model, "gpt2", base), kept(model, "gpt2", source)
    both = {"input_ids": torch.tensor([base])}, {"input_ids": torch.tensor([source])}
    grid = patch_paths(
        model,
        *both,
        receivers=Site(3, "mlp_input"),
        senders="mlp_output",
        heads=None,
        answers=RIGHT,
        metrics="log_probability",
        layers=[1],
    )
    assert grid.dims == ("layer", "position")
    sender, receiver = module_of(model, "gpt2", 1, "mlp_output"), module_of(model, "gpt2", 3, "mlp_input")
    for position in (1, 5):

        def send(tensor: Tensor, position: int = position) -> Tensor:
            tensor[0, position] = theirs[1, "mlp_output"][0, position]
            return tensor

        after = {
            module_of(model, "gpt2", at, name): lambda _, value=ours[at, name]: value
            for at in (2, 3)
            for name in ("attention_output", "mlp_output")
        }
        seen: dict[nn.Module, Tensor] = {receiver: torch.empty(0)}
        run(model, base, outputs={sender: send, **after}, seen=seen)
        logits = run(model, base, outputs={receiver: lambda _, value=seen[receiver]: value})
        expected = float(logits.log_softmax(-1)[RIGHT])
        assert grid.sel(layer=1, position=str(position)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"receivers": "logit"}, "receivers: 'logit': expected 'logits', a Site"),
        ({"receivers": []}, "receivers: []: expected 'logits'"),
        ({"receivers": {}}, "receivers: expected 'logits'"),
        ({"receivers": {1: Site(1, "mlp_input")}}, "receivers: 1 is no name: expected text"),
        ({"receivers": {"q": []}}, "receivers of 'q': []: expected 'logits'"),
        ({"receivers": {"q": [Site(1, "mlp_input"), 3]}}, "receivers of 'q': [Site("),
        ({"receivers": Site(module="transformer.h.1.mlp")}, "receiver transformer.h.1.mlp (output): expected a comp"),
        ({"direction": "noisy"}, "direction 'noisy': Did you mean 'noising'?"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"senders": []}, "components: expected one or several"),
        ({"engine": Engine(tiny_model("gpt2", seed=1))}, "engine: it runs another network"),
        ({"receivers": Site(9, "mlp_input")}, "receiver: layer 9 is out of range"),
        ({"receivers": Site(component="embeddings")}, "receiver embeddings: expected a component of a layer"),
        ({"hold": ["block_output"]}, "hold 'block_output': expected some of attention_output, mlp_output"),
        ({"senders": "mlp_output"}, "heads: mlp_output has none"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(IITKitError) as raised:
        patch_paths(tiny_model("gpt2"), "Mary walked home", "Mary walked stayed", tokenizer=tiny_tokenizer(), **given)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)
