"""The artifact: bit-identical after a round trip; damaged and hostile folders are refused, each by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts import BASE, SITES, WHERE, trained, values
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

import iitkit
from iitkit.errors import IITKitError
from iitkit.hub import Artifact, Values
from iitkit.hub import write_artifact as save_artifact
from iitkit.interventions import LowRankSubspace, RotatedSubspace, SiteInfo
from iitkit.models.placing import place, site_info
from iitkit.models.sites import Placement

ROOT = Path(__file__).resolve().parents[2]


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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "interventions.safetensors"]
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
    assert config["sha256"] == {"interventions.safetensors": digest}
    assert (config["schema"], config["library"], config["task"]) == (2, "iitkit", "PronounGender")
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

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(IITKitError, match=r"cannot write the artifact .*: No space left on device"):
        save_artifact(folder, trained(rank=2), WHERE, BASE, SITES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_it_is_small(tmp_path: Path) -> None:
    """At width 768 and rank 1, with all that a fit tells and a report measures, 8 kB."""
    rates = ("iia", "iia_flipped", "iia_kept", "top1", "n", "n_flipped", "n_kept")
    groups = [f"{a}{b}" for a in ("", "full_vector/", "random_subspace/") for b in ("test", "train", "validation", "x")]
    metrics: dict[str, Any] = {f"{group}/{rate}": 0.123456789 for group in groups for rate in rates}
    metrics |= {"full_vector/iia": 0.5, "full_vector/iia_flipped": 0.5, "random_subspace/iia": 0.5}
    folder = save_artifact(
        tmp_path / "a",
        {"gender": trained(width=768)["gender"]},
        {"gender": {**WHERE["gender"], "answers": [" she", " he"]}},
        {**BASE, "id": "openai-community/gpt2", "revision": "ab" * 20, "weights": f"sha256:{'0' * 32}"},
        {"gender": SiteInfo(768, input_width=768)},
        values(),
        {"gender": 43.035240173339844},
        metrics,
        task="PronounGender",
        variables={"gender": ["female", "male"]},
        prefix="<|endoftext|>",
        tokenizer=dict.fromkeys(("vocabulary", "chat_template"), f"sha256:{'0' * 16}"),
        training=dict.fromkeys(("settings", "data"), f"sha256:{'0' * 16}"),
        versions={"iitkit": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        example={"prompt": "Yesterday, Anna walked home because", "spans": {"name": "Anna"}, "set": {"gender": "male"}},
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "interventions.safetensors", "metrics.json")
    ]
    assert (folder / "interventions.safetensors").stat().st_size < 768 * 4 + 300
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 1024
    assert iitkit.load(folder).metrics == metrics


def test_alignment(tmp_path: Path) -> None:
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


# --- values, metrics and the rest ---


def test_everything_comes_back(tmp_path: Path) -> None:
    features = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    values = {"heads": Values((True, 2.5, "she"), features, (3, 1, 8))}
    made = {"heads": LowRankSubspace(SiteInfo(8, heads=4), rank=2)}
    where = {"heads": {"layer": 0, "component": "head_attention_value_output", "position": -1, "variable": "v"}}
    metrics = {"test/iia": 0.25, "test/size/heads": 2.0, "alone": 1.5, "test/iia_kept": None}
    folder = save_artifact(
        tmp_path / "a", made, where, BASE, {"heads": SiteInfo(8, heads=4)}, values, {"heads": 7.25}, metrics
    )
    for found in (iitkit.load(folder), iitkit.load(iitkit.load(folder).save(tmp_path / "b"))):
        assert (found.values["heads"].names, found.values["heads"].counts) == ((True, 2.5, "she"), (3, 1, 8))
        assert [type(name) for name in found.values["heads"].names] == [bool, float, str]
        assert torch.equal(found.values["heads"].features, features)
        assert found.config["placements"]["heads"]["largest"] == 7.25
        assert found.metrics == metrics
        assert list(found.interventions["heads"].state_dict()) == ["space.basis"]
    for name in ("config.json", "interventions.safetensors", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match="the artifact holds what JSON cannot"):
        write(tmp_path / "a", metrics={"test/iia": float("nan")})
    with pytest.raises(IITKitError, match="the artifact: prefix is 3: expected text"):
        write(tmp_path / "a", prefix=3)
    assert not (tmp_path / "a").exists()


def test_what_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    loaded = iitkit.load(write(tmp_path / "a"))
    mine = tmp_path / "mine"
    mine.mkdir()
    loaded.save(mine)  # empty: nothing is lost
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for taken in (other, other / "thesis.tex"):
        with pytest.raises(IITKitError, match="is there and is no artifact: it is not replaced"):
            loaded.save(taken)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    loaded = iitkit.load(write(tmp_path / "a"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    loaded.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


def test_the_old_stays_where_the_new_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    before = (folder / "config.json").read_bytes()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-old"):
            raise OSError(1, "Operation not permitted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(IITKitError, match=r"cannot write the artifact .*: Operation not permitted"):
        write(tmp_path / "a", task="another")
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
