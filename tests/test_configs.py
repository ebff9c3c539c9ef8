"""Every config of iitkit's own runs, by its bare name and from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import files, iitkit

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("name", [config.name for config in CONFIGS])
def test_config_runs(name: str, tiny_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = iitkit(
        *("fit", "--config", name, "--model.base", tiny_gpt2, "--trainer.fast_dev_run", "true"),
        *("--data.sizes.train=16", "--data.sizes.validation=8", "--data.sizes.test=8"),
        *("--data.sizes.test_templates=8", "--data.batch_size=8", "--data.eval_batch_size=8"),
    )
    assert ran.code == 0, ran.err
    assert "trained, test " in ran.out
    assert "random subspaces, test " in ran.out
    assert files(tmp_path) == []  # a trial run leaves nothing


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_config_says_what_it_asks(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.splitlines()[0].rstrip().endswith(("?", ".", ")"))
    found = yaml.safe_load(text)
    assert found["seed_everything"] == 0
    assert found["trainer"]["default_root_dir"] == f"runs/{config.stem}"
