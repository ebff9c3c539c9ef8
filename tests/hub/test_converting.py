"""Vectors in safetensors folders, LoRA adapters of PEFT and control vectors of llama.cpp, against hooks by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from byhand import relative
from families import WIDTH, build, ids
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import iitkit
from iitkit import Addition, Site
from iitkit.hub.gguf import read_gguf, to_gguf

TOKENS = ids(2, 6, seed=11)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def edited(model: Any, alignment: Any, **options: Any) -> Tensor:
    with iitkit.intervening(model, alignment, where="all", **options):
        return logits(model)


def hooked(model: Any, *hooks: tuple[str, Callable[..., Any], bool]) -> Tensor:
    """Logits with hooks at modules by path; the flag says whether before."""
    handles = [
        (
            model.get_submodule(path).register_forward_pre_hook
            if before
            else model.get_submodule(path).register_forward_hook
        )(hook)
        for path, hook, before in hooks
    ]
    found = logits(model)
    for handle in handles:
        handle.remove()
    return found


# --- vectors ---


def test_vectors_are_named_for_their_sites(tmp_path: Path) -> None:
    model = build("llama")
    stream, heads, one = numbers(WIDTH), numbers(4, 4, seed=2), numbers(4, seed=3)
    save_file({"block_output.1": stream, "attention_value_output.0": heads}, tmp_path / "a.safetensors")
    save_file({"head_value_output.2.1": one}, tmp_path / "b.safetensors")
    found = iitkit.convert(tmp_path, model)
    assert list(found) == ["attention_value_output_0", "block_output_1", "head_value_output_2_1"]
    assert {site.position for site, _ in found.values()} == {"all"}
    into = lambda _, args: (args[0] + heads.flatten(),)  # noqa: E731 - head after head, each its own
    values = torch.cat([torch.zeros(4), one])  # the second of two key-value heads of 4
    expected = hooked(
        model,
        ("model.layers.0.self_attn.o_proj", into, True),
        ("model.layers.1", lambda _, __, out: out + stream, False),
        ("model.layers.2.self_attn.v_proj", lambda _, __, out: out + values, False),
    )
    assert relative(edited(model, found), expected) <= 1e-5
    assert relative(logits(model), expected) > 1e-2


def test_a_vector_for_each_head_under_either_name(tmp_path: Path) -> None:
    model, heads = build("qwen3"), numbers(4, 6)  # 4 heads of 6 are 24, the residual stream has 16
    save_file({"head_attention_value_output.1": heads}, tmp_path / "a.safetensors")
    found = iitkit.convert(tmp_path / "a.safetensors", model)
    into = lambda _, args: (args[0] + heads.flatten(),)  # noqa: E731
    assert relative(edited(model, found), hooked(model, ("model.layers.1.self_attn.o_proj", into, True))) <= 1e-5
    assert relative(edited(iitkit.merge(model, found), {}), edited(build("qwen3"), found)) <= 1e-5


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"block_outptu.1": numbers(16)}, "Did you mean 'block_output'"),
        ({"x": numbers(16)}, "expected component.layer, e.g. block_output.16"),
        ({"block_output.9": numbers(16)}, "9"),
        ({"block_output.1": numbers(17)}, "block_output.1 has 17 numbers, layer 1 block_output has 16"),
        ({"attention_value_output.1": numbers(3, 4)}, r"has 12 numbers \(3, 4\)"),
        ({"head_value_output.1.2": numbers(4)}, "head 2 is out of range"),
        ({"block_output.1.0": numbers(4)}, "block_output has no heads"),
        ({"block_output.1": torch.full((16,), torch.inf)}, "finite"),
        ({"block_output.1": torch.ones(16, dtype=torch.long)}, "finite real numbers"),
        ({"attention_weight.1": numbers(4)}, "has 4 numbers"),
        ({}, "holds no tensor: expected some that are named for their sites"),
        (
            {"value_output.1": numbers(8), "head_value_output.1": numbers(8)},
            r"is there twice: .*value_output_1 of .* at layer 1 value_output too",
        ),
        ({"block_output.1": numbers(16), "block_output.01": numbers(16)}, "is there twice"),
    ],
)
def test_vectors_that_do_not_fit(tensors: dict[str, Tensor], match: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.convert(tmp_path, build("llama"))


@pytest.mark.parametrize("content", ["nothing", "text", "cut"])
def test_folders_that_hold_nothing(content: str, tmp_path: Path) -> None:
    if content != "nothing":
        (tmp_path / "a.safetensors").write_bytes(b"text" if content == "text" else b"\xff" * 8 + b"{}")
    with pytest.raises(iitkit.IITKitError, match=r"holds no \.safetensors|cannot be read"):
        iitkit.convert(tmp_path, build("llama"))


def test_what_is_nothing_that_is_known(tmp_path: Path) -> None:
    model = build("llama")
    with pytest.raises(iitkit.IITKitError, match="no such folder or file"):
        iitkit.convert(tmp_path / "nowhere", model)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(iitkit.IITKitError, match="expected a folder of pyvene, a LoRA adapter"):
        iitkit.convert(tmp_path / "x.txt", model)
    (tmp_path / "config.json").write_text('{"library": "iitkit"}')
    with pytest.raises(iitkit.IITKitError, match="an artifact of iitkit already"):
        iitkit.convert(tmp_path, model)


# --- LoRA ---

PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "use_dora": False, "use_rslora": False}


def adapter(folder: Path, modules: dict[str, tuple[int, int, int]], **changes: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Write an adapter as PEFT does: path → (rank, entering, leaving)."""
    folder.mkdir(exist_ok=True)
    pairs = {
        path: (numbers(rank, entering, seed=i), numbers(leaving, rank, seed=50 + i))
        for i, (path, (rank, entering, leaving)) in enumerate(modules.items())
    }
    tensors = {f"base_model.model.{path}.lora_A.weight": a for path, (a, _) in pairs.items()}
    tensors |= {f"base_model.model.{path}.lora_B.weight": b for path, (_, b) in pairs.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **changes}))
    return pairs


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, 6 / 2), ({"use_rslora": True}, 6 / math.sqrt(2)), ({"alpha_pattern": {"q_proj": 1}}, None)],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_by_hand(family: str, changes: dict[str, Any], scale: float | None, tmp_path: Path) -> None:
    model = build(family)
    llama = {"model.layers.0.self_attn.q_proj": (2, 16, 16), "model.layers.2.mlp.down_proj": (2, 24, 16)}
    gpt2 = {"transformer.h.0.attn.c_attn": (2, 16, 48), "transformer.h.2.mlp.c_proj": (2, 24, 16)}
    pairs = adapter(tmp_path, llama if family == "llama" else gpt2, **changes)
    found = iitkit.convert(tmp_path, model)

    def hook(a: Tensor, b: Tensor, by: float) -> Callable[..., Tensor]:
        return lambda _, args, out: out + by * (args[0] @ a.T) @ b.T

    by = {path: scale or (0.5 if path.endswith("q_proj") else 3.0) for path in pairs}
    expected = hooked(model, *((path, hook(*pair, by[path]), False) for path, pair in pairs.items()))
    assert relative(edited(model, found), expected) <= 1e-5
    assert relative(logits(iitkit.merge(model, found)), expected) <= 1e-5


def test_ranks_of_their_own(tmp_path: Path) -> None:
    model = build("llama")
    modules = {"model.layers.0.self_attn.q_proj": (3, 16, 16), "model.layers.0.self_attn.k_proj": (2, 16, 8)}
    adapter(tmp_path, modules, rank_pattern={"layers.0.self_attn.q_proj": 3})
    found = iitkit.convert(tmp_path, model)
    ranks = {name.split("_")[-2]: edit.options["rank"] for name, (_, edit) in found.items()}
    assert ranks == {"q": 3, "k": 2}
    adapter(tmp_path, modules)
    with pytest.raises(iitkit.IITKitError, match="q_proj has rank 3, the config says 2"):
        iitkit.convert(tmp_path, model)


@pytest.mark.parametrize(
    ("changes", "modules", "match"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type 'IA3': only LORA"),
        ({"use_dora": True}, {}, "use_dora True has no counterpart"),
        ({"bias": "all"}, {}, "bias 'all' has no counterpart: expected 'none'"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"lora_alpha": "x"}, {}, "lora_alpha 'x': expected a number"),
        ({"lora_alpha": float("nan")}, {}, "lora_alpha nan: expected a number"),
        ({"r": True}, {"model.layers.0.self_attn.q_proj": (1, 16, 16)}, "q_proj has rank 1, the config says True"),
        ({"use_rslora": "no"}, {}, "use_rslora 'no': expected true or false"),
        ({"use_nola": True}, {}, "use_nola 'True' is no setting of LoRA that is known here"),
        ({"hira_config": {"x": 1}}, {}, "hira_config .* is no setting of LoRA that is known here"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights 'pissa' may have changed the base's own weights too"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights 'pissa_niter_4' may have changed"),
        ({"init_lora_weights": "olora"}, {}, "init_lora_weights 'olora' .*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": 1}, {}, "init_lora_weights '1' may have"),
        ({}, {"model.layers.9.self_attn.q_proj": (2, 16, 16)}, r"has no module 'model.layers.9.self_attn.q_proj'"),
        ({}, {"model.layers.0.input_layernorm": (2, 16, 16)}, "is no linear module"),
        ({}, {"model.layers.0.self_attn.q_proj": (2, 15, 16)}, r"A has shape \(2, 15\): expected \(2, 16\)"),
    ],
)
def test_adapters_without_counterpart(changes: Any, modules: Any, match: str, tmp_path: Path) -> None:
    adapter(tmp_path, modules or {"model.layers.0.self_attn.q_proj": (2, 16, 16)}, **changes)
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.convert(tmp_path, build("llama"))


def test_adapters_hold_nothing_else(tmp_path: Path) -> None:
    adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (2, 16, 16)})
    with pytest.raises(iitkit.IITKitError, match=r"position: .* a LoRA adapter, which does not read it"):
        iitkit.convert(tmp_path, build("llama"), position="last")
    save_file({"base_model.model.lm_head.weight": numbers(2, 2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(iitkit.IITKitError, match="is no LoRA of a linear module"):
        iitkit.convert(tmp_path, build("llama"))
    torch.save({}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(iitkit.IITKitError, match="is a pickle"):
        iitkit.convert(tmp_path, build("llama"))
    with pytest.raises(iitkit.IITKitError, match="holds no tensor"):
        iitkit.convert(tmp_path, build("llama"), trust=True)


def test_settings_that_change_nothing_are_passed_over(tmp_path: Path) -> None:
    """PEFT's own of training and making, one for each of its kinds; and a number that is not known."""
    adapter(
        *(tmp_path, {"model.layers.0.self_attn.q_proj": (2, 16, 16)}),
        target_modules=".*q_proj",
        layers_to_transform=[0],
        inference_mode=True,
        task_type="CAUSAL_LM",
        init_lora_weights="gaussian",
        megatron_core="megatron.core",
        lora_dropout=0.1,
        later_size=8,
    )
    assert list(iitkit.convert(tmp_path, build("llama"))) == ["model_layers_0_self_attn_q_proj"]


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({"proj": 9}, 6),  # PEFT: (.*\\.)?(proj)$, so the last part of a path, not its end
        ({"q_proj": 9}, 9),
        ({"self_attn.q_proj": 9, "q_proj": 2}, 9),  # the first that fits
        ({"k_proj": 2, "q_proj": 9}, 9),
        ({"^q_proj": 9}, 6),
        ({"^model.layers.0.self_attn.q_proj": 9}, 9),
    ],
)
def test_patterns_name_whole_parts_of_a_path(patterns: dict[str, int], alpha: int, tmp_path: Path) -> None:
    adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (2, 16, 16)}, alpha_pattern=patterns)
    ((_, edit),) = iitkit.convert(tmp_path, build("llama")).values()
    assert edit.options["alpha"] == alpha


@pytest.mark.parametrize("position", ["last", [0, -1]])
def test_vectors_are_placed_where_it_is_said(position: Any, tmp_path: Path) -> None:
    model = build("llama")
    save_file({"block_output.1": numbers(WIDTH)}, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", to_gguf(tmp_path / "v.gguf", vectors(1))):
        ((site, _),) = iitkit.convert(source, model, position=position).values()
        assert site.position == position


def test_files_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"block_output.1": numbers(WIDTH)}, tmp_path / "a.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    monkeypatch.setattr("iitkit.hub.foreign.LARGEST", size)
    assert len(iitkit.convert(tmp_path, build("llama"))) == 1
    monkeypatch.setattr("iitkit.hub.foreign.LARGEST", size - 1)
    with pytest.raises(iitkit.IITKitError, match=f"has {size} bytes, more than any of its kind"):
        iitkit.convert(tmp_path, build("llama"))


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (2, 16, 16)})
    file = tmp_path / "adapter_model.safetensors"
    twin = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": numbers(2, 16)}
    save_file({**load_file(file), **twin}, file)
    with pytest.raises(iitkit.IITKitError, match=r"q_proj has lora_A twice, also as"):
        iitkit.convert(tmp_path, build("llama"))


# --- control vectors ---


def vectors(*layers: int) -> dict[str, Any]:
    return {f"v{i}": (Site(i, "block_output", "all"), Addition.of(numbers(16, seed=i))) for i in layers}


def test_a_control_vector_reads_back_with_the_gguf_package(tmp_path: Path) -> None:
    file = to_gguf(tmp_path / "out" / "v.gguf", vectors(2, 1), strength=-2.0, model_hint="llama")
    reader = gguf.GGUFReader(file)
    fields = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF")}  # type: ignore[union-attr]
    assert fields == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.2"]
    for layer in (1, 2):
        tensor = tensors[f"direction.{layer}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [16]  # one dimension, as llama.cpp demands
        assert np.array_equal(tensor.data, (-2 * numbers(16, seed=layer)).numpy())
    assert [path.name for path in file.parent.iterdir()] == ["v.gguf"]


def test_a_control_vector_is_added_behind_its_block(tmp_path: Path) -> None:
    """llama.cpp: ``cur = add(cur, direction[il])`` after block il's residual, il from 0, none for il = 0."""
    model = build("llama")
    file = to_gguf(tmp_path / "v.gguf", vectors(1, 2))
    directions = {layer: torch.from_numpy(t.data.copy()) for layer, t in enumerate(gguf.GGUFReader(file).tensors, 1)}
    expected = hooked(
        model,
        *((f"model.layers.{il}", lambda _, __, out, il=il: out + directions[il], False) for il in (1, 2)),
    )
    found = iitkit.convert(file, model)
    assert list(found) == ["layer_1", "layer_2"]
    assert relative(edited(model, found), expected) <= 1e-5
    assert torch.equal(edited(model, found), edited(model, vectors(1, 2)))


def test_artifacts_are_exported_and_several_at_a_layer_summed(tmp_path: Path, shallow_gpt2: str) -> None:
    model, tokenizer = iitkit.load_base(shallow_gpt2)
    made = iitkit.vector(model, tokenizer, ["Today she is"], ["The"], layers=[2])
    ((site, edit),) = made.alignment().values()
    iitkit.save(tmp_path / "a", model, {"x": (site, edit), "y": (site, made.random().alignment()["layer_2"][1])})
    file = iitkit.to_gguf(tmp_path / "v.gguf", iitkit.load(tmp_path / "a"))
    assert torch.allclose(read_gguf(file)[2], made.vectors["layer_2"] + made.random().vectors["layer_2"], atol=1e-6)
    assert gguf.GGUFReader(file).get_field("controlvector.layer_count").contents() == 1  # type: ignore[union-attr]
    assert gguf.GGUFReader(file).get_field("controlvector.model_hint").contents() == "GPT2LMHeadModel"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("site", "name", "options", "match"),
    [
        (Site(0, "block_output", "all"), "Addition", {}, "no direction for block 0"),
        (Site(1, "block_output", "last"), "Addition", {}, "position 'last': a control vector is added at all tokens"),
        (
            Site(1, "mlp_output", "all"),
            "Addition",
            {},
            "layer 1 mlp_output: .* block_output of a layer and nowhere else",
        ),
        (Site(module="model.layers.1", position="all"), "Addition", {}, "nowhere else"),
        (Site(1, "block_output", "all"), "LoReFT", {}, "LoReFT is more than the addition of a constant vector"),
        (Site(1, "block_output", "all"), "LowRankSubspace", {}, "LowRankSubspace is more than the addition"),
        (Site(1, "block_output", "all"), "Zero", {}, "Zero is more than the addition"),
        (Site(1, "block_output", "all"), "Addition", {"take": "source"}, "Addition is more than the addition"),
    ],
)
def test_what_is_no_control_vector(site: Site, name: str, options: Any, match: str, tmp_path: Path) -> None:
    edit = iitkit.Intervention.from_spec({"name": name, **options}, iitkit.SiteInfo(16, input_width=16))
    with pytest.raises(iitkit.IITKitError, match=match):
        to_gguf(tmp_path / "v.gguf", {"x": (site, edit.released())})
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_control_vectors(tmp_path: Path) -> None:
    model, file = build("llama"), tmp_path / "v.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(iitkit.IITKitError, match=r"cannot be read as GGUF|has architecture None"):
        iitkit.convert(file, model)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("direction.1", np.zeros(16, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(iitkit.IITKitError, match="has architecture 'llama': expected 'controlvector'"):
        iitkit.convert(file, model)
    to_gguf(
        file, {"x": (Site(1, "block_output", "all"), iitkit.convert(_wide(tmp_path), _network(8))["block_output_1"][1])}
    )
    with pytest.raises(iitkit.IITKitError, match=r"direction\.1 has 8 numbers"):
        iitkit.convert(file, model)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"direction.1": [np.nan] * 16}, r"direction\.1 holds other things than finite numbers"),
        ({"direction.1": [1.0] * 16, "direction.01": [2.0] * 16}, r"direction\.1 is there twice"),
        ({"direction.0": [1.0] * 16}, r"no direction\.N with N ≥ 1"),
        ({"direction.3": [1.0] * 16}, "layer 3 is out of range"),
    ],
)
def test_directions_that_are_none(tensors: dict[str, list[float]], match: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.convert(tmp_path / "v.gguf", build("llama"))


@pytest.mark.parametrize(
    ("strength", "match"),
    [
        (float("nan"), "strength nan: expected a number"),
        ("2", "strength '2': expected a number"),
        (1e39, "more than fp32 holds"),
    ],
)
def test_strengths_that_no_file_holds(strength: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(iitkit.IITKitError, match=match):
        to_gguf(tmp_path / "v.gguf", vectors(1), strength=strength)
    assert list(tmp_path.iterdir()) == []


def _network(width: int) -> nn.Module:
    return build("llama", hidden_size=width)


def _wide(folder: Path) -> Path:
    save_file({"block_output.1": numbers(8)}, folder / "w.safetensors")
    return folder / "w.safetensors"
