"""Folders that pyvene 0.1.8 saved: the same logits as its own forward on the same weights, and nothing on trust."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import relative
from foreign import FOLDER, REFERENCE, network
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import iitkit
from iitkit.hub.pyvene_types import TYPES

HERE = FOLDER / "pyvene"
PLACES: dict[str, Any] = {  # where pyvene was told to intervene, by make_pyvene.py
    "gpt2_low_rank": 4,
    "gpt2_rotated": 2,
    "gpt2_boundless": "last",
    "gpt2_addition": None,
    "gpt2_addition_source": 3,
    "gpt2_vanilla": None,
    "gpt2_linked": 4,
    "gpt2_sigmoid": 4,
    "gpt2_joint": [1, 3],
    "gpt2_heads": None,
    "llama_low_rank": None,
    "llama_boundless": None,
    "llama_addition": "all",
}
KINDS = {
    "gpt2_low_rank": "LowRankSubspace(rank=3)",
    "gpt2_rotated": "RotatedSubspace(coordinates=5)",
    "gpt2_addition": "Addition(take='vector')",
    "gpt2_addition_source": "Addition(take='source')",
    "gpt2_vanilla": "Vanilla()",
}


def inputs(name: str) -> dict[str, Tensor]:
    return {"input_ids": REFERENCE[name]}


def run(model: Any, alignment: Any) -> Tensor:
    source = inputs("source") if any(edit.needs_source for _, edit in alignment.values()) else None
    with torch.no_grad():
        found: Tensor = iitkit.interchange(model, inputs("base"), source, alignment).logits
    return found


def test_every_folder_is_tried() -> None:
    assert {folder.name for folder in HERE.iterdir() if folder.is_dir()} == set(PLACES)
    assert sum(file.stat().st_size for file in HERE.rglob("*")) < 200_000 + 40 * 4096
    for family in ("gpt2", "llama"):
        with torch.no_grad():
            plain = network(family)(REFERENCE["base"]).logits
        assert relative(plain, REFERENCE[f"{family}/plain"]) <= 1e-5  # the network is theirs


@pytest.mark.parametrize("name", [name for name in PLACES if name != "gpt2_linked"])
def test_logits_are_pyvenes_own(name: str, tmp_path: Path) -> None:
    family, _, kind = name.partition("_")
    model = network(family)
    head = 1 if name == "gpt2_heads" else None
    alignment = iitkit.convert(HERE / name, model, trust=True, position=PLACES[name], head=head)
    assert relative(run(model, alignment), REFERENCE[f"{family}/{kind}"]) <= 1e-5
    assert relative(REFERENCE[f"{family}/plain"], REFERENCE[f"{family}/{kind}"]) > 1e-3
    if name in KINDS:
        assert {edit.title for _, edit in alignment.values()} == {KINDS[name]}
    # as an artifact they are the same
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    iitkit.save(tmp_path / "artifact", model, alignment)
    again = iitkit.load(tmp_path / "artifact").alignment()
    assert torch.equal(run(model, again), run(model, alignment))


def test_linked_sites_each_keep_their_own_activation() -> None:
    """At the second site of a link pyvene edits a copy of the first site's activation; here it edits the second's."""
    model = network("gpt2")
    alignment = iitkit.convert(HERE / "gpt2_linked", model, trust=True, position=4)
    (first, edit), (second, again) = alignment.values()
    assert edit is again
    sites = {"a": first, "b": second}
    base, source = iitkit.collect(model, inputs("base"), sites), iitkit.collect(model, inputs("source"), sites)
    r = edit.rotation  # type: ignore[attr-defined]
    swapped = base["a"] + (source["a"] - base["a"]) @ r @ r.T
    copied = swapped + (source["b"] - swapped) @ r @ r.T

    def run_with(at_second: Any) -> Tensor:
        features = {"a": source["a"], "b": copied if at_second is not edit else source["b"]}
        placed = {"a": (first, edit), "b": (second, at_second)}
        with iitkit.intervening(model, placed, features=features), torch.no_grad():
            found: Tensor = model(**inputs("base")).logits
        return found

    assert relative(run_with(iitkit.Vanilla()), REFERENCE["gpt2/linked"]) <= 1e-5  # theirs
    assert relative(run(model, alignment), run_with(edit)) <= 1e-5
    assert relative(run_with(edit), REFERENCE["gpt2/linked"]) > 0.1


@pytest.mark.parametrize("name", ["gpt2_low_rank", "gpt2_boundless", "llama_addition"])
def test_safetensors_need_no_trust(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / name, tmp_path / name)
    for file in folder.glob("*.bin"):
        tensors = torch.load(file, weights_only=True)
        save_file(
            {key: value.detach().contiguous() for key, value in tensors.items()}, file.with_suffix(".safetensors")
        )
        file.unlink()
    family, _, kind = name.partition("_")
    model = network(family)
    found = run(model, iitkit.convert(folder, model))
    assert relative(found, REFERENCE[f"{family}/{kind}"]) <= 1e-5


def test_a_hard_boundary_swaps_whole_coordinates() -> None:
    model = network("gpt2")
    ((site, edit),) = iitkit.convert(HERE / "gpt2_boundless", model, trust=True, boundary="hard").values()
    assert isinstance(edit, iitkit.BoundlessSubspace)
    assert edit.mask.weights().tolist() == [True] * 4 + [False] * 4  # type: ignore[union-attr] # i < .4 · 8
    both = (
        iitkit.collect(model, inputs("base"), {"x": site})["x"],
        iitkit.collect(model, inputs("source"), {"x": site})["x"],
    )
    w = edit.rotation
    expected = both[0] + ((both[1] - both[0]) @ w[:, :4]) @ w[:, :4].T
    assert relative(edit(*both), expected) <= 1e-5


def test_paths_name_modules(tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gpt2_addition", tmp_path / "paths")
    config = json.loads((folder / "config.json").read_text())
    for i, row in enumerate(config["representations"]):
        row[1] = f"transformer.h[{i}].attn.c_proj.input"
        key = f"intkey_layer_{i}_comp_attention_value_output_unit_pos_nunit_1#0.bin"
        (folder / key).rename(folder / f"intkey_comp_transformer_h[{i}]_attn_c_proj_input_unit_pos_nunit_1#0.bin")
    (folder / "config.json").write_text(json.dumps(config))
    model = network("gpt2")
    alignment = iitkit.convert(folder, model, trust=True)
    assert [site.module for site, _ in alignment.values()] == [f"transformer.h.{i}.attn.c_proj" for i in (0, 1)]
    assert relative(run(model, alignment), REFERENCE["gpt2/addition"]) <= 1e-5


def test_constants_at_heads_steer_while_it_writes() -> None:
    """One vector per head at attention_value_output, on every generated token: what the peers publish."""
    model = network("llama")
    alignment = iitkit.convert(HERE / "llama_addition", model, trust=True)
    vectors = [edit.state_dict()["edit.vector"] for _, edit in alignment.values()]
    assert [tuple(vector.shape) for vector in vectors] == [(8,), (8,)]  # 2 heads of 4, side by side
    ids, steps = REFERENCE["base"][:1], 4
    model.generation_config.eos_token_id = None
    with iitkit.intervening(model, alignment, strength=3.0, where="generated"):
        found = model.generate(ids, max_new_tokens=steps, do_sample=False, pad_token_id=0)
    length = ids.shape[1]
    written = ids
    for _ in range(steps):
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, v=vector: (torch.cat([args[0][:, :length], args[0][:, length:] + 3 * v], 1),)
            )
            for layer, vector in zip(model.model.layers, vectors, strict=True)
        ]
        with torch.no_grad():
            token = model(written, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        for handle in handles:
            handle.remove()
        written = torch.cat([written, token], 1)
    assert torch.equal(found, written)


# --- nothing on trust ---


def test_a_pickle_needs_trust() -> None:
    with pytest.raises(iitkit.IITKitError, match=r"is a pickle, which may come from anyone: .*--trust"):
        iitkit.convert(HERE / "gpt2_low_rank", network("gpt2"))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("content", ["code", "other", "cut"])
def test_a_trusted_pickle_builds_tensors_and_nothing_else(content: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gpt2_low_rank", tmp_path / "x")
    (file,) = folder.glob("*.bin")
    marker = tmp_path / "marker"
    if content == "code":
        file.write_bytes(pickle.dumps({"rotate_layer.weight": Evil(marker)}))
    elif content == "other":
        torch.save([1, 2], file)
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(iitkit.IITKitError, match=r"tensors and nothing else|expected names with tensors"):
        iitkit.convert(folder, network("gpt2"), trust=True)
    assert not marker.exists()
    if content == "code":
        pickle.loads(file.read_bytes())  # what would have happened
        assert marker.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"intervention_types": ["<class 'os.system'>"]},
            "intervention type \"<class 'os.system'>\" has no counterpart",
        ),
        ({"intervention_types": ["<class 'pyvene.models.interventions.NoiseIntervention'>"]}, "no counterpart"),
        ({"intervention_types": []}, "as many intervention_types"),
        ({"intervention_types": "pyvene"}, "as many intervention_types"),
        ({"mode": "serial"}, "mode 'serial'"),
        ({"unit": "t"}, "unit 't'"),
        ({"component": "../../etc"}, "component '../../etc'"),
        ({"component": "block_outptu"}, r"neither intkey_layer_1_comp_block_outptu"),
        ({"layer": 7}, "neither intkey_layer_7"),
        ({"max_number_of_units": 2}, "edits 2 positions as one vector, and position 'last' is not as many"),
        ({"subspace_partition": [[0, 1], [1, 3]]}, r"subspace_partition .* says at each call"),
        ({"moe_key": 0}, "moe_key 0 says"),
        ({"intervention_dimensions": ["5"]}, r"intervention_dimensions \['5'\]: expected whole numbers, one for each"),
        (
            {"intervention_dimensions": [8, 8]},
            r"intervention_dimensions \[8, 8\]: expected whole numbers, one for each",
        ),
        ({"intervention_dimensions": [5]}, r"interchange_dim \[8\]: expected 5"),
        ({"intervention_constant_sources": "yes"}, "intervention_constant_sources yes: expected true or false"),
    ],
)
def test_configs_that_are_not_understood(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gpt2_low_rank", tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    fields = ["layer", "component", "unit", "max_number_of_units", "", "", "", "subspace_partition", "", "", "moe_key"]
    for key, value in change.items():
        if key in fields:
            config["representations"][0][fields.index(key)] = value
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.convert(folder, network("gpt2"), trust=True)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("rotate_layer.parametrizations.weight.original", torch.zeros(6, 3), "is none of width 8"),
        ("rotate_layer.parametrizations.weight.original", torch.zeros(8, 9), "has shape"),
        ("rotate_layer.parametrizations.weight.original", torch.full((8, 3), torch.nan), "finite|none of width"),
        ("surplus", torch.zeros(2), "tensors that nothing reads: surplus"),
    ],
)
def test_tensors_that_do_not_fit(key: str, value: Tensor, match: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gpt2_low_rank", tmp_path / "x")
    (file,) = folder.glob("*.bin")
    torch.save({**torch.load(file, weights_only=True), key: value}, file)
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.convert(folder, network("gpt2"), trust=True)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 4), (0.51, 5), (0.0, 1), (-2.0, 1), (7.0, 8)])
def test_a_hard_boundary_is_pyvenes_clamped_share(share: float, kept: int, tmp_path: Path) -> None:
    """It clamps the share to 1e-3 … 1; coordinate i is in where i < share · width."""
    folder = shutil.copytree(HERE / "gpt2_boundless", tmp_path / "x")
    (file,) = folder.glob("*.bin")
    torch.save({**torch.load(file, weights_only=True), "intervention_boundaries": torch.tensor([share])}, file)
    ((_, edit),) = iitkit.convert(folder, network("gpt2"), trust=True, boundary="hard").values()
    assert edit.mask.weights().tolist() == [i < kept for i in range(8)]  # type: ignore[operator,union-attr]


def test_a_hard_sigmoid_mask_has_the_gates_above_nought(tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gpt2_sigmoid", tmp_path / "x")
    (file,) = folder.glob("*.bin")
    gates = torch.tensor([0.3, -0.2, 0.0, 4.0, -9.0, 1e-3, -1e-3, 2.0])
    torch.save({**torch.load(file, weights_only=True), "mask": gates}, file)
    model = network("gpt2")
    ((site, edit),) = iitkit.convert(folder, model, trust=True, position=4, boundary="hard").values()
    base, source = (iitkit.collect(model, inputs(name), {"x": site})["x"] for name in ("base", "source"))
    assert relative(edit(base, source), torch.where(gates > 0, source, base)) <= 1e-6


def test_a_hard_sigmoid_mask_of_a_rotation(tmp_path: Path) -> None:
    folder = turned(HERE / "gpt2_rotated", "SigmoidMaskRotatedSpaceIntervention", tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intervention_dimensions": [8]}))
    (file,) = folder.glob("*.bin")
    gates = torch.tensor([0.3, -0.2, 0.0, 4.0, -9.0, 1e-3, -1e-3, 2.0])
    more = {"masks": gates, "temperature": torch.tensor(0.5), "interchange_dim": torch.tensor(8)}
    torch.save({**torch.load(file, weights_only=True), **more}, file)
    model = network("gpt2")
    ((site, edit),) = iitkit.convert(folder, model, trust=True, position=4, boundary="hard").values()
    ((_, soft),) = iitkit.convert(folder, model, trust=True, position=4).values()
    ((_, whole),) = iitkit.convert(HERE / "gpt2_rotated", model, trust=True, position=4).values()
    w = whole.rotation  # type: ignore[attr-defined]
    base, source = (iitkit.collect(model, inputs(name), {"x": site})["x"] for name in ("base", "source"))
    for found, mask in ((edit, (gates > 0).float()), (soft, torch.sigmoid(gates / 0.5))):
        assert relative(found(base, source), base + ((source - base) @ w * mask) @ w.T) <= 1e-5


def turned(folder: Path, kind: str, to: Path) -> Path:
    """A folder with every representation of another class, at layer 0's mlp_output where it was at mlp_input."""
    made = shutil.copytree(folder, to)
    config = json.loads((made / "config.json").read_text())
    name = f"<class 'pyvene.models.interventions.{kind}'>"
    config["intervention_types"] = [name] * len(config["intervention_types"])
    for row in config["representations"]:
        if row[1] == "mlp_input":
            row[:2] = [0, "mlp_output"]
    (made / "config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize("kind", ["ZeroIntervention", "SkipIntervention", "SubtractionIntervention"])
def test_classes_without_state_by_hand(kind: str, tmp_path: Path) -> None:
    """At mlp_output of layer 0 and the last token: 0, what enters the MLP, or b − s."""
    model = network("gpt2")
    alignment = iitkit.convert(turned(HERE / "gpt2_vanilla", kind, tmp_path / "x"), model, position=4)
    ((site, _),) = alignment.values()
    assert (site.component, site.layer) == ("mlp_output", 0)
    source = iitkit.collect(model, inputs("source"), {"x": site})["x"][:, 0]

    def edit(_: Any, args: tuple[Tensor], out: Tensor) -> Tensor:
        new = {
            "ZeroIntervention": torch.zeros_like(out[:, 4]),
            "SkipIntervention": args[0][:, 4],
            "SubtractionIntervention": out[:, 4] - source,
        }[kind]
        return torch.cat([out[:, :4], new[:, None], out[:, 5:]], 1)

    handle = model.transformer.h[0].mlp.register_forward_hook(edit)
    with torch.no_grad():
        expected = model(**inputs("base")).logits
    handle.remove()
    assert relative(run(model, alignment), expected) <= 1e-5
    assert relative(REFERENCE["gpt2/plain"], expected) > 1e-3


def test_constants_are_subtracted(tmp_path: Path) -> None:
    model = network("gpt2")
    folder = turned(HERE / "gpt2_addition", "SubtractionIntervention", tmp_path / "x")
    away = run(model, iitkit.convert(folder, model, trust=True))
    added = iitkit.convert(HERE / "gpt2_addition", model, trust=True)
    with iitkit.intervening(model, added, strength=-1.0), torch.no_grad():
        assert relative(away, model(**inputs("base")).logits) <= 1e-5


def test_one_site_twice_has_a_file_each(tmp_path: Path) -> None:
    """pyvene numbers them, #0 and #1; a number of units that is not said is one."""
    folder = shutil.copytree(HERE / "gpt2_low_rank", tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    for key in ("representations", "intervention_types", "intervention_dimensions", "intervention_constant_sources"):
        config[key] *= 2
    config["representations"] = [[*row[:3], None, *row[4:]] for row in config["representations"]]
    (folder / "config.json").write_text(json.dumps(config))
    (file,) = folder.glob("*.bin")
    state = torch.load(file, weights_only=True)
    key = "rotate_layer.parametrizations.weight.original"
    turned_on = state[key] + 0.5 * torch.ones(8, 3).tril(-1)
    torch.save({**state, key: turned_on}, file.with_name(file.name.replace("#0", "#1")))
    first, second = iitkit.convert(folder, network("gpt2"), trust=True).values()
    ((_, alone),) = iitkit.convert(HERE / "gpt2_low_rank", network("gpt2"), trust=True).values()
    assert torch.equal(first[1].rotation, alone.rotation)  # type: ignore[attr-defined]
    assert relative(second[1].rotation, alone.rotation) > 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("name", ["gpt2_boundless", "gpt2_sigmoid"])
def test_a_soft_mask_has_a_temperature(name: str, value: float, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / name, tmp_path / "x")
    (file,) = folder.glob("*.bin")
    torch.save({**torch.load(file, weights_only=True), "temperature": torch.tensor(value)}, file)
    with pytest.raises(iitkit.IITKitError, match=r"temperature -?[01]: expected a number above 0"):
        iitkit.convert(folder, network("gpt2"), trust=True)


@pytest.mark.parametrize("position", [1.5, [], [None], True])
def test_positions_that_are_none(position: Any) -> None:
    with pytest.raises(iitkit.IITKitError, match=r"position .*: expected the name of a span, 'last'"):
        iitkit.convert(HERE / "gpt2_low_rank", network("gpt2"), trust=True, position=position)


def test_another_base_is_refused() -> None:
    model: Any = AutoModelForCausalLM
    other = model.from_config(CONFIG_MAPPING["gpt2"](vocab_size=17, n_embd=12, n_layer=2, n_head=2, n_positions=16))
    with pytest.raises(iitkit.IITKitError, match="expected 12 numbers"):
        iitkit.convert(HERE / "gpt2_addition", other, trust=True)


def test_options_that_nothing_reads(tmp_path: Path) -> None:
    model = network("gpt2")
    save_file({"block_output.1": torch.ones(8)}, tmp_path / "a.safetensors")
    with pytest.raises(iitkit.IITKitError, match=r"boundary: .* which does not read it"):
        iitkit.convert(tmp_path, model, boundary="hard")
    with pytest.raises(iitkit.IITKitError, match=r"boundary .hard.: .* has no soft mask"):
        iitkit.convert(HERE / "gpt2_low_rank", model, trust=True, boundary="hard")
    with pytest.raises(iitkit.IITKitError, match=r"head 1: .* has no component parted into heads"):
        iitkit.convert(HERE / "gpt2_low_rank", model, trust=True, head=1)
    with pytest.raises(iitkit.IITKitError, match="Did you mean 'hard'"):
        iitkit.convert(tmp_path, model, boundary="hrad")  # type: ignore[arg-type]
    assert len(TYPES) == 11
