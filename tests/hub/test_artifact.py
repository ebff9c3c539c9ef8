"""The artifact: bit-identical after a round trip; damaged and hostile folders are refused, each by name."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

import iitkit
from iitkit.errors import IITKitError
from iitkit.hub import Artifact
from iitkit.hub import save as save_artifact
from iitkit.interventions import Intervention, LowRankSubspace, RotatedSubspace, SiteInfo
from iitkit.models.placing import place, site_info
from iitkit.models.sites import Placement

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "id": "user/model",
    "revision": "sha256:0123456789abcdef",
    "architecture": "GPT2LMHeadModel",
    "width": 32,
    "layers": 4,
    "dtype": "float32",
}
WHERE: dict[str, dict[str, Any]] = {
    "gender": {"layer": 2, "component": "block_output", "position": "name", "variable": "gender"},
    "number": {"module": "transformer.h.1.mlp", "side": "output", "position": -1, "variable": "number"},
}


SITES = {"gender": SiteInfo(32), "number": SiteInfo(32)}


def trained(width: int = 32, rank: int = 1) -> dict[str, Intervention]:
    generator = torch.Generator().manual_seed(3)
    made = {
        "gender": LowRankSubspace(SiteInfo(width=width, generator=generator), rank=rank),
        "number": LowRankSubspace(SiteInfo(width=width, generator=generator), rank=3),
    }
    for intervention in made.values():  # as after some steps: no column has unit length
        with torch.no_grad():
            intervention.space.free.mul_(1.7).add_(0.1)  # type: ignore[union-attr]
    return dict(made)


def write(folder: Path, **more: Any) -> Path:
    return save_artifact(folder, trained(), WHERE, BASE, SITES, **more)


def logits(alignment: Any) -> Tensor:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    base = tokenizer(["Yesterday, Anna walked home because"], return_tensors="pt")
    source = tokenizer(["Today, Paul walked home because"], return_tensors="pt")
    with torch.no_grad():
        out: Tensor = iitkit.interchange(model, base, source, alignment).logits
    return out


def test_round_trip_is_bit_identical(tmp_path: Path) -> None:
    ours = trained()
    sites = {
        "gender": iitkit.Site(layer=2, position=2),
        "number": iitkit.Site(module="transformer.h.1.mlp", position=-1),
    }
    folder = save_artifact(tmp_path / "a", ours, WHERE, BASE, SITES, metrics={"test/iia": 0.5})
    loaded = iitkit.load(folder)
    assert isinstance(loaded, Artifact)
    assert (loaded.base, loaded.metrics) == (BASE, {"test/iia": 0.5})
    before = logits({name: (sites[name], ours[name]) for name in ours})
    after = logits(loaded.alignment(positions={"gender": 2}))
    assert torch.equal(before, after)
    assert not torch.equal(before, logits({"gender": (sites["gender"], ours["gender"])}))
    assert not torch.equal(before, logits({}))
    again = iitkit.load(save_artifact(tmp_path / "b", loaded.interventions, WHERE, BASE, SITES))
    assert torch.equal(before, logits(again.alignment(positions={"gender": 2})))
    for intervention in loaded.interventions.values():
        assert not any(parameter.requires_grad for parameter in intervention.parameters())


def test_what_is_stored(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", task="PronounGender")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "interventions.safetensors"]
    tensors = load_file(folder / "interventions.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {"gender.space.basis": (32, 1), "number.space.basis": (32, 3)}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["placements"]["number"] == {
        **WHERE["number"],
        "width": 32,
        "intervention": {"name": "LowRankSubspace", "rank": 3},
    }
    digest = hashlib.sha256((folder / "interventions.safetensors").read_bytes()).hexdigest()
    assert (config["sha256"], config["schema"], config["library"], config["task"]) == (
        *(digest, 1, "iitkit"),
        "PronounGender",
    )
    assert "gender: gender at layer 2 block_output, position name, LowRankSubspace" in str(iitkit.load(folder))
    assert "number: number at transformer.h.1.mlp, position -1" in str(iitkit.load(folder))


def test_saving_replaces_the_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "stale.txt").write_text("left by an earlier one")
    one = {"gender": trained()["gender"]}
    save_artifact(folder, one, {"gender": WHERE["gender"]}, BASE, {"gender": SiteInfo(32)})
    assert list(iitkit.load(folder).interventions) == ["gender"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not (folder / "stale.txt").exists()


def test_a_failed_save_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(IITKitError, match=r"cannot write the artifact .*: No space left on device"):
        save_artifact(folder, trained(rank=2), WHERE, BASE, SITES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_it_is_small(tmp_path: Path) -> None:
    """At width 768 and rank 1, with all that a report measures, 8 kB."""
    one = {"gender": trained(width=768)["gender"]}
    rates = ("iia", "iia_flipped", "iia_kept", "top1", "n", "n_flipped", "n_kept")
    groups = [f"{a}{b}" for a in ("", "full_vector/", "random_subspace/") for b in ("test", "train", "validation", "x")]
    metrics: dict[str, Any] = {f"{group}/{rate}": 0.123456789 for group in groups for rate in rates}
    folder = save_artifact(
        tmp_path / "a", one, {"gender": WHERE["gender"]}, BASE, {"gender": SiteInfo(768)}, metrics=metrics
    )
    assert (folder / "interventions.safetensors").stat().st_size < 768 * 4 + 300
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 1024
    assert iitkit.load(folder).metrics == metrics


def test_alignment_and_check(tmp_path: Path) -> None:
    loaded = iitkit.load(write(tmp_path / "a"))
    placed = loaded.alignment()
    assert (placed["gender"][0].layer, placed["gender"][0].position) == (2, "name")
    assert (placed["number"][0].module, placed["number"][0].side) == ("transformer.h.1.mlp", "output")
    positions = torch.tensor([[3]])
    assert loaded.alignment({"gender": positions})["gender"][0].position is positions
    with pytest.raises(IITKitError, match="no placement 'gendr': it has gender, number"):
        loaded.alignment({"gendr": 1})
    with pytest.raises(IITKitError, match="name"):  # a span means nothing in free text
        logits(placed)
    loaded.check(tiny_model("gpt2"))
    with pytest.raises(IITKitError, match="trained on user/model with layers 4, the model has 3: load that base"):
        loaded.check(tiny_model("gpt2", layers=3))
    config = {**loaded.config, "base": {**BASE, "width": 64}}
    with pytest.raises(IITKitError, match="with width 64, the model has 32"):
        Artifact(config, loaded.interventions).check(tiny_model("gpt2"))


# --- damage ---


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def weigh(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other tensors, with a digest that fits them."""
    data = save(tensors)
    (folder / "interventions.safetensors").write_bytes(data)
    rewrite(folder, lambda config: config.update(sha256=hashlib.sha256(data).hexdigest()))


def cut(folder: Path) -> None:
    data = (folder / "interventions.safetensors").read_bytes()[:-40]
    (folder / "interventions.safetensors").write_bytes(data)
    rewrite(folder, lambda config: config.update(sha256=hashlib.sha256(data).hexdigest()))


def flip(folder: Path) -> None:
    data = bytearray((folder / "interventions.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "interventions.safetensors").write_bytes(bytes(data))


def huge(name: str) -> Callable[[Path], None]:
    def grow(folder: Path) -> None:
        with (folder / name).open("r+b") as stream:
            stream.truncate(4 * 2**30 + 1)  # sparse: it takes no room

    return grow


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "interventions.safetensors")


def placement(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda config: config["placements"]["gender"].update(values))


def renamed(name: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        rewrite(folder, lambda config: config["placements"].update({name: config["placements"].pop("gender")}))

    return rename


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda config: config.update(values))


def without(key: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda config: config.pop(key))


def with_tensor(name: str, tensor: Tensor) -> Callable[[Path], None]:
    return lambda folder: weigh(folder, {**tensors(folder), name: tensor})


def text(value: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(value, encoding="utf-8")


BASIS = "gender.space.basis"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no artifact: it has no config.json"),
    "no weights": (
        lambda folder: (folder / "interventions.safetensors").unlink(),
        "is no artifact: it has no interventions.safetensors",
    ),
    "truncated weights": (cut, "interventions.safetensors cannot be read"),
    "changed bytes": (flip, "is not the file that config.json describes: fetch the artifact again"),
    "huge weights": (huge("interventions.safetensors"), "more than any artifact: it is not read"),
    "huge config": (huge("config.json"), "more than any artifact: it is not read"),
    "not JSON": (text("{'library': 'iitkit'}"), "config.json is not valid JSON"),
    "not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00{"), "is not valid JSON"),
    "deep JSON": (text("[" * 100_000), "is not valid JSON"),
    "a list": (text("[]"), "is not the config of an iitkit artifact"),
    "foreign": (changed(library="other"), "is not the config of an iitkit artifact"),
    "future schema": (changed(schema=2), "has schema 2, this iitkit reads 1: install a newer iitkit"),
    "no base": (without("base"), "lacks parts of an artifact's config"),
    "no placements": (changed(placements={}), "lacks parts of an artifact's config"),
    "no digest": (without("sha256"), "lacks parts of an artifact's config"),
    "width as text": (placement(width="32"), "lacks parts of an artifact's config"),
    "vast width": (placement(width=2**40), "lacks parts of an artifact's config"),
    "unknown intervention": (
        placement(intervention={"name": "LowRankSubspac", "rank": 1}),
        "placement 'gender': intervention 'LowRankSubspac' is not registered. Did you mean 'LowRankSubspace'?",
    ),
    "code for a name": (placement(intervention={"name": "os.system"}), "intervention 'os.system' is not registered"),
    "a list for a name": (placement(intervention={"name": ["LowRankSubspace"]}), "placement 'gender'"),
    "unknown option": (
        placement(intervention={"name": "LowRankSubspace", "rnk": 1}),
        "LowRankSubspace has no option 'rnk'. Did you mean 'rank'?",
    ),
    "rank as text": (placement(intervention={"name": "LowRankSubspace", "rank": "1"}), "placement 'gender'"),
    "another rank": (placement(intervention={"name": "LowRankSubspace", "rank": 2}), "basis of shape (32, 1)"),
    "another width": (placement(width=33), "basis of shape (32, 1): expected (33, 1)"),
    "a wrong shape": (with_tensor(BASIS, torch.ones(31, 1)), "basis of shape (31, 1): expected (32, 1)"),
    "not orthonormal": (with_tensor(BASIS, torch.ones(32, 1)), "basis is not orthonormal"),
    "not finite": (with_tensor(BASIS, torch.full((32, 1), torch.nan)), "basis is not orthonormal"),
    "an extra tensor": (with_tensor("other.x", torch.ones(1)), "holds tensors of no placement: other.x"),
    "an extra tensor of a placement": (with_tensor("gender.space.x", torch.ones(1)), "placement 'gender'"),
    "a missing tensor": (
        lambda folder: weigh(folder, {"number.space.basis": tensors(folder)["number.space.basis"]}),
        "placement 'gender'",
    ),
    "a path for a name": (renamed("../../gender"), "placement '../../gender'"),
    "a dotted name": (renamed("number.space"), "placement 'number.space'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "a")
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(IITKitError, match=re.escape(message)) as raised:
        iitkit.load(folder)
    assert len(str(raised.value).splitlines()) <= 2
    assert str(raised.value).count(str(folder)) == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"is no artifact: it has no config\.json\. Give the folder"):
        iitkit.load(tmp_path / "nowhere")


def test_a_runs_folder_stands_for_its_artifact(tmp_path: Path) -> None:
    write(tmp_path / "run" / "artifact")
    assert list(iitkit.load(tmp_path / "run").interventions) == ["gender", "number"]


def test_loading_needs_no_lightning(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    code = (
        f"import sys, iitkit\niitkit.load({str(folder)!r}).alignment()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.strip("[]\n").replace("'", "").split(", "))
    assert "torch" in loaded
    assert loaded.isdisjoint({"lightning", "pytorch_lightning", "jsonargparse", "transformers", "torchmetrics"})


# --- alignments whose placements share, join and divide ---


def test_shared_joint_and_head_sites_come_back_bit_identical(tmp_path: Path) -> None:
    plain = {
        "pair": {"layer": 1, "position": [1, -1], "joint": True, "intervention": {"rank": 3}},
        "early": {"layer": 1, "component": "head_attention_value_output", "head": 2, "intervention": {"rank": 2}},
        "late": {"layer": 3, "component": "head_attention_value_output", "head": 0, "shared_with": "early"},
        "left": {"layer": 2, "intervention": lambda site: RotatedSubspace(site, coordinates={"left": 4, "right": [9]})},
        "other": {"layer": 2, "shared_with": "left", "variable": "right"},
    }
    alignment = {name: Placement.from_plain(name, placement) for name, placement in plain.items()}
    locations, made = place(tiny_model("gpt2"), alignment, torch.Generator().manual_seed(5))
    folder = save_artifact(
        tmp_path / "a",
        made,
        {name: placement.where() for name, placement in alignment.items()},
        BASE,
        {name: site_info(location) for name, location in locations.items()},
    )
    loaded = iitkit.load(folder)
    assert list(load_file(folder / "interventions.safetensors")) == [
        f"{name}.space.basis" for name in ("early", "left", "pair")
    ]  # what is shared is stored once
    assert loaded.interventions["late"] is loaded.interventions["early"]
    before = logits({name: (placement.site, made[name]) for name, placement in alignment.items()})
    assert torch.equal(logits(loaded.alignment()), before)
    for name in alignment:  # each of them does something
        rest = {other: (alignment[other].site, made[other]) for other in alignment if other != name}
        assert not torch.equal(logits(rest), before)


def test_an_artifact_that_shares_with_nothing_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["placements"]["again"] = {**WHERE["gender"], "width": 32, "shared_with": "gendr"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IITKitError, match="placement 'again' shares with 'gendr', which is not there"):
        iitkit.load(folder)
