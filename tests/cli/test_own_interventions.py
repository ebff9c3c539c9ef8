"""A user's own intervention: by class path in YAML, in checkpoints and artifacts; never imported unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import iitkit, metrics, said, weights, write_config

import iitkit as package
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo

TESTS = Path(__file__).resolve().parents[1]
OWN = (
    "--model.alignment.gender.intervention=ownedits.Partway",
    "--model.alignment.gender.intervention.rank=3",
    "--model.alignment.gender.intervention.share=0.75",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> tuple[Path, Path]:
    """A finished fit: its config and its folder."""
    config = write_config(tmp_path_factory.mktemp("own"), shallow_gpt2)
    ran = iitkit("fit", "--config", config, *OWN, "--allow", "ownedits")
    assert ran.code == 0, ran.err
    assert "Partway(rank=3, share=0.75)" in ran.out
    return config, config.parent / "run"


def test_it_is_not_imported_unless_allowed(shallow_gpt2: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, shallow_gpt2)
    message = said(iitkit("fit", "--config", config, *OWN))
    assert "importing 'ownedits.Partway' is not allowed" in message
    assert "--allow ownedits" in message


def test_it_is_measured_and_resumed_from_its_checkpoints(run: tuple[Path, Path], tmp_path: Path) -> None:
    config, root = run
    best = f"--ckpt_path={root / 'checkpoints' / 'best.ckpt'}"
    arguments = ["--config", config, *OWN, "--allow", "ownedits"]
    tested = iitkit("test", *arguments, f"--trainer.default_root_dir={tmp_path}", best)
    assert tested.code == 0, tested.err
    assert metrics(tmp_path)["test/iia"] == metrics(root)["test/iia"]
    other = iitkit("test", *arguments, best, "--model.alignment.gender.intervention.share=0.5")
    assert "the checkpoint's alignment differs at 'gender'" in said(other)
    before = weights(root / "checkpoints" / "last.ckpt")
    ran = iitkit("fit", *arguments, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert ran.code == 0, ran.err
    after = weights(root / "checkpoints" / "last.ckpt")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_its_artifact_names_the_package_and_loads_what_is_registered(run: tuple[Path, Path]) -> None:
    _, root = run
    where = json.loads((root / "artifact" / "config.json").read_text())["placements"]["gender"]
    assert where["intervention"] == {"name": "Partway", "rank": 3, "share": 0.75}
    assert where["packages"] == ["ownedits"]
    found = package.load(root).interventions["gender"]
    assert type(found).__name__ == "Partway"
    base, source = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    basis = found.state_dict()["space.basis"]
    expected = base + 0.75 * ((source - base) @ basis) @ basis.T
    assert (found(base, source) - expected).abs().max() <= 1e-5


LOADING = """
import sys
sys.path.insert(0, {tests!r})
import iitkit
from iitkit.errors import IITKitError
try:
    iitkit.load({root!r})
except IITKitError as error:
    print(error)
print("ownedits" in sys.modules)
print(iitkit.load({root!r}, allow=["ownedits"]).interventions["gender"].title)
"""


def test_loading_never_imports_what_an_artifact_names(run: tuple[Path, Path]) -> None:
    _, root = run
    code = LOADING.format(tests=str(TESTS), root=str(root))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refused, imported, loaded = done.stdout.strip().splitlines()
    assert "intervention 'Partway' comes from package 'ownedits': import it first" in refused
    assert "iitkit.load(…, allow=['ownedits'])" in refused
    assert imported == "False"
    assert loaded == "Partway(rank=3, share=0.75)"


COMPOSED = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import iitkit
from iitkit.errors import IITKitError
folder = Path({folder!r})
if sys.argv[1] == "save":
    import ownedits
    from iitkit.hub import write_artifact
    site = iitkit.SiteInfo(8)
    made = iitkit.Composed(site, edit={{"name": "Halfway"}})
    identity = {{"id": "x", "revision": "y", "architecture": "z", "width": 8, "layers": 1, "dtype": "float32"}}
    identity["weights"] = None
    where = {{"layer": 0, "component": "block_output", "position": "last", "variable": "v"}}
    write_artifact(folder, {{"v": made}}, {{"v": where}}, identity, {{"v": site}})
else:
    try:
        iitkit.load(folder)
    except IITKitError as error:
        print("package 'ownedits': import it first" in str(error), "ownedits" in sys.modules)
    print(iitkit.load(folder, allow=["ownedits"]).interventions["v"].title)
"""


def test_a_composed_intervention_names_the_packages_of_its_parts(tmp_path: Path) -> None:
    code = COMPOSED.format(tests=str(TESTS), folder=str(tmp_path / "artifact"))
    said = [
        subprocess.run([sys.executable, "-c", code, what], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        for what in ("save", "load")
    ]
    assert said[1][0] == "True False"
    assert "Halfway" in said[1][1]


def test_a_name_that_is_taken_is_an_error() -> None:
    with pytest.raises(IITKitError, match=r"intervention 'LowRankSubspace' is already registered by iitkit"):
        type("LowRankSubspace", (LowRankSubspace,), {"__module__": "somewhere"})
    assert Intervention.registry["LowRankSubspace"] is LowRankSubspace
    assert LowRankSubspace(SiteInfo(8), rank=2).title == "LowRankSubspace(rank=2)"
