"""What an artifact says of its making: digests that change with the run and with nothing else, and an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import iitkit, write_config

from iitkit import load
from iitkit.cli.provenance import example_of, trained_on
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.modules import DAS
from iitkit.tasks import PronounGender, words


def training(base: str, folder: Path, *options: str) -> dict[str, str]:
    config = write_config(folder, base)
    ran = iitkit("fit", "--config", config, "--trainer.max_epochs=1", *options)
    assert ran.code == 0, ran.err
    found: dict[str, str] = load(folder / "run").config["training"]
    return found


def test_digests(shallow_gpt2: str, tmp_path: Path) -> None:
    first = training(shallow_gpt2, tmp_path / "first")
    assert set(first) == {"settings", "data"}
    # the same run in another folder, with another progress bar
    assert training(shallow_gpt2, tmp_path / "again", "--trainer.enable_progress_bar=false") == first
    faster = training(shallow_gpt2, tmp_path / "faster", "--model.optimizer.lr=0.1")
    assert (faster["settings"] != first["settings"], faster["data"]) == (True, first["data"])
    other = training(shallow_gpt2, tmp_path / "other", "--seed_everything=1")
    assert (other["settings"] != first["settings"], other["data"] != first["data"]) == (True, True)


def bound(position: Any, task: Any = None, base: str = "", **options: Any) -> tuple[DAS, CounterfactualDataModule]:
    module = DAS(base, {"gender": {"layer": 1, "position": position}})  # type: ignore[arg-type]
    sizes = Sizes(train=24, validation=8, test=8, test_templates=0)
    data = CounterfactualDataModule(task or PronounGender(), sizes, batch_size=8, seed=0, **options)
    data.bind(module, model=False)
    return module, data


@pytest.mark.parametrize("position", ["last", "name", ["name.first", -1]])
def test_the_example_has_what_positions_name(shallow_gpt2: str, position: Any) -> None:
    module, data = bound(position, base=shallow_gpt2)
    found = example_of(module, data)
    assert found is not None
    text = data.pools["train"].texts[0]
    assert found["prompt"] == text.text
    start, stop = text.spans["name"]
    own = next(row["gender"] for row in words("names") if row["name"] == text.text[start:stop])
    assert found["set"] == {"gender": {"male": "female", "female": "male"}[own]}
    assert found["spans"] == ({} if position == "last" else {"name": text.text[start:stop]})


def test_digests_without_a_command_line(shallow_gpt2: str) -> None:
    module, data = bound("name", base=shallow_gpt2)
    other, same = bound("last", base=shallow_gpt2)
    module.configure_model()
    other.configure_model()
    one, two = trained_on(module, data), trained_on(other, same)
    assert one["settings"] != two["settings"]
    assert one["data"] == two["data"]
