"""``iitkit trace``, through the command line on a tiny network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from running import files, iitkit, said
from tiny import tiny_model, tiny_tokenizer

from iitkit import Fact, Grid, trace
from iitkit.analysis.effects import indirect
from iitkit.models.grids import Engine

PREFIX = "<|endoftext|>"
ROWS = [
    {"prompt": "Yesterday, Mary walked home because", "subject": "Mary"},
    {"prompt": "This morning, Mary gave a while to", "subject": "morning, Mary"},
    {"prompt": "On Monday, John and Sarah were", "subject": "John and Sarah"},
]


def write(folder: Path, network: str, **changes: Any) -> Path:
    config = {
        "base": network,
        "prefix": PREFIX,
        "prompts": ROWS,
        "draws": 3,
        "default_root_dir": str(folder / "run"),
        **changes,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}), encoding="utf-8")
    return file


def test_a_trace_from_the_command_line(shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2), "--seed", 7)
    assert ran.code == 0, ran.err
    root = tmp_path / "run"
    kinds = ("html", "json", "parquet", "png", "txt")
    assert [f for f in files(root) if "/" not in f] == ["config.yaml", *(f"trace.{kind}" for kind in kinds)]
    grid = Grid.load(root / "trace")
    facts = [Fact(**row) for row in ROWS]  # type: ignore[arg-type]
    own = trace(tiny_model("gpt2"), tiny_tokenizer(), facts, prefix=PREFIX, draws=3, seed=7)
    assert grid.coords == own.coords
    assert np.allclose(grid.values, own.values, rtol=1e-6, atol=0, equal_nan=True)
    lines = ran.out.splitlines()
    assert lines[0].startswith("3 facts: ")
    assert "cannot change anything" in lines[0]
    assert (
        lines[1] == f"causal tracing of 3 facts in {shallow_gpt2}: noise 3 × {own.about['sigma']:.4g}, 3 draws, seed 7"
    )
    clean, corrupt = own.references["clean"], own.references["corrupt"]
    gap = clean - corrupt
    assert lines[2] == (
        f"probability: clean {clean.mean():.3f}, corrupted {corrupt.mean():.3f}, total effect (ATE) "
        f"{gap.mean():+.3f} ± {gap.std(ddof=1) / 3**0.5:.3f}"
    )
    mean = indirect(own).mean("example")
    (row,) = [line for line in lines if line.startswith("     2 ")]
    assert row.split()[1:] == [f"{value:+.3f}" for value in mean.sel(layer=2).values]
    best = mean.best(1, by="magnitude")[0]
    assert any(line.startswith(f"  {best.value:+.3f} ± ") and "(n " in line for line in lines)
    assert (root / "trace.txt").read_text().splitlines() == lines[1:-2]
    assert yaml.safe_load((root / "config.yaml").read_text())["seed"] == 7
    # what was written runs again, and finds everything done
    again = iitkit("trace", "--config", root / "config.yaml")
    assert again.code == 0
    assert again.out.splitlines()[0].startswith("causal tracing of 3 facts")
    assert Grid.load(root / "trace").equals(grid)


def test_inputs(shallow_gpt2: str, tmp_path: Path) -> None:
    grids = []
    romes = [{"known_id": i, "relation_id": "P1", "prediction": "x", **row} for i, row in enumerate(ROWS)]
    romes[0] = {"template": "Yesterday, {} walked home because", "subject": "Mary"}
    for name, text in {
        "facts.jsonl": "".join(f"{json.dumps(row)}\n" for row in romes) + "\n",
        "facts.json": json.dumps(romes),
        "facts.yaml": yaml.safe_dump(ROWS),
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        folder = tmp_path / f"of_{name}"
        config = write(tmp_path, shallow_gpt2, prompts=str(tmp_path / name), default_root_dir=str(folder))
        ran = iitkit("trace", "--config", config)
        assert ran.code == 0, ran.err
        grids.append(Grid.load(folder / "trace"))
    assert all(np.array_equal(grids[0].values, grid.values, equal_nan=True) for grid in grids)


def test_a_single_fact_is_shown_token_by_token(shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2, prompts=ROWS[:1], prefix=None))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "trace")
    own = trace(tiny_model("gpt2"), tiny_tokenizer(), Fact(**ROWS[0]), draws=3)  # type: ignore[arg-type]
    assert grid.dims == ("layer", "position")
    assert grid.coords["position"] == own.coords["position"]
    assert grid.coords["position"][4:] == ["4 ' home'", "5 ' because'"]
    assert np.allclose(grid.values, own.values, rtol=1e-6, atol=0)
    lines = ran.out.splitlines()
    assert lines[0].startswith("1 fact: ")
    assert lines[1].startswith("causal tracing of 1 fact in ")
    assert "indirect effects:" in lines
    assert {"trace.html", "trace.png"} <= set(files(tmp_path / "run"))
    assert "' because'" in (tmp_path / "run" / "trace.html").read_text(encoding="utf-8")


def test_prompts_of_a_task(shallow_gpt2: str, tmp_path: Path) -> None:
    task = {"class_path": "PronounGender"}
    config = write(tmp_path, shallow_gpt2, prompts=None, task=task, subject="name", most=5, layers=[1])
    ran = iitkit("trace", "--config", config)  # a random network knows none of the answers
    assert "the model knows none of the 5 facts" in said(ran)
    assert "not ' he'" in ran.err or "not ' she'" in ran.err
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2, prompts=None, task=task, subject="nam"))
    assert said(ran) == "iitkit: subject 'nam': Did you mean 'name'? expected one of name"
    ran = iitkit("trace", "--config", config, "--subject", "name", "--most", -1)
    assert said(ran) == "iitkit: most -1: expected 1 or more"
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2, prompts=None, task=task))
    assert said(ran) == "iitkit: subject: which slot of the prompt is corrupted? Expected one of name"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shots": 2}, "data.shots: the prompts are read as they are, behind data.prefix: leave it out"),
        ({"chat": True}, "data.chat: the prompts are read as they are"),
        ({"max_tokens": 9}, "data.max_tokens: the prompts are read as they are"),
        ({"special_tokens": False}, "data.special_tokens: the prompts are read as they are"),
    ],
)
def test_what_stands_around_the_prompts_of_data(
    options: dict[str, Any], says: str, shallow_gpt2: str, tmp_path: Path
) -> None:
    data = {
        "class_path": "CounterfactualDataModule",
        "init_args": {
            "task": {"class_path": "PronounGender"},
            "sizes": {"train": 8, "validation": 8, "test": 8, "test_templates": 8},
            **options,
        },
    }
    config = write(tmp_path, shallow_gpt2, prompts=None, prefix=None, data=data, subject="name")
    assert said(iitkit("trace", "--config", config)).startswith(f"iitkit: {says}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": None}, "inputs: expected one of prompts, task, data; given none of them"),
        (
            {"task": {"class_path": "PronounGender"}},
            "inputs: expected one of prompts, task, data; given prompts and task",
        ),
        ({"subject": "Mary"}, "subject: is of a task or data; every prompt of a list has its own: leave it out"),
        ({"prompts": [{"prompt": "Mary", "subjct": "Mary"}]}, "prompts[0]: no key 'subjct'. Did you mean 'subject'?"),
        ({"prompts": [{"prompt": "Mary"}]}, "prompts[0]: subject is missing: expected text"),
        (
            {"prompts": [{"prompt": True, "subject": "a"}]},
            "prompts[0]: prompt is True: expected text, in quotes: 'True'",
        ),
        ({"prompts": [{"template": "x", "subject": "a"}]}, "prompts[0]: template 'x': expected one {} for the subject"),
        ({"prompts": []}, "prompts: there is none"),
        ({"prompts": ["Mary"]}, "prompts: given 'Mary', expected a string or dict"),
        ({"prompts": "facts.jsonl"}, "prompts: no file 'facts.jsonl': give a .yaml, .json or .jsonl file"),
        ({"prompts": [{"prompt": "Mary was", "subject": "John"}]}, "subject 'John' is not in the prompt 'Mary was'"),
        ({"split": "train"}, "split: is of a task or data: leave it out"),
        ({"most": 3}, "most: is of a task or data: leave it out"),
        ({"corruption": "zero"}, "draws: corruption zero draws no noise: leave it out"),
        ({"corruption": "mean", "draws": None, "noise": 2.0}, "noise: corruption mean draws no noise: leave it out"),
        ({"corruption": "prompt", "draws": None, "seed": 1}, "seed: corruption prompt draws no noise: leave it out"),
        ({"components": []}, "components: expected one or several"),
        ({"components": "mlp_otput"}, "trace: component 'mlp_otput' is unknown. Did you mean 'mlp_output'?"),
        ({"layers": [4]}, "layers 4: GPT2LMHeadModel has layers 0 to 3"),
        ({"metrics": "logit_difference"}, "metric 'logit_difference' needs the wrong answer"),
        ({"corruption": "noisy"}, "corruption: given 'noisy', expected 'noise' or 'prompt' or 'zero' or 'mean'"),
        ({"drows": 3}, "the config has no key 'drows'. Did you mean 'draws'?"),
        ({"draws": "many"}, "draws: given 'many', expected an integer"),
        ({"base": None}, "base is missing: the command needs it"),
    ],
)
def test_mistakes(changes: dict[str, Any], says: str, shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2, **changes))
    assert said(ran).startswith(f"iitkit: {says}")
    assert files(tmp_path) == ["config.yaml"]


def test_an_option_misspelt(shallow_gpt2: str, tmp_path: Path) -> None:
    config = write(tmp_path, shallow_gpt2)
    assert said(iitkit("trace", "--config", config, "--compnents=x")).startswith(
        "iitkit: the config has no key 'compnents'. Did you mean 'components'?"
    )
    assert iitkit("trace", "--help").code == 0
    shown = iitkit("trace", "--config", config, "--print_config")
    assert shown.code == 0
    assert yaml.safe_load(shown.out)["noise"] == 3.0


def test_ctrl_c_in_a_single_fact(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.table

    def interrupted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        found = run(self, *args, **kwargs)
        found.values[9:] = torch.nan
        found.interrupted = True
        return found

    monkeypatch.setattr(Engine, "table", interrupted)
    ran = iitkit("trace", "--config", write(tmp_path, shallow_gpt2, prompts=ROWS[:1]))
    assert ran.code == 130
    assert ran.err.strip().endswith("interrupted; what is done is kept, and the same command goes on from there")
    assert (~np.isnan(Grid.load(tmp_path / "run" / "trace").values)).sum() == 9


def test_failed_cells_fail_the_exit_code(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.table

    def failing(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, base, cells, *args, **kwargs)
        found.failed[len(cells) - 3] = "RuntimeError: no memory"  # the last layer's last token
        found.values[len(cells) - 3] = torch.nan
        return found

    config = write(tmp_path, shallow_gpt2)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "table", failing)
        ran = iitkit("trace", "--config", config)
    assert ran.code == 1
    assert "iitkit: 4 values failed:" in ran.err
    assert f"layer 3, position last token, example {ROWS[0]['prompt']}: RuntimeError: no memory" in ran.err
    grid = Grid.load(tmp_path / "run" / "trace")
    assert len(grid.failed) == 4  # the third prompt's last token is its first subsequent one too
    assert "failed: layer 3, position last token" in (tmp_path / "run" / "trace.txt").read_text()
    again = iitkit("trace", "--config", config)  # what failed was not kept as done
    assert again.code == 0
    assert not Grid.load(tmp_path / "run" / "trace").failed


SLOW = """
import os, signal, sys, time
from pathlib import Path
from iitkit.models.grids import Engine
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background job ignores
run = Engine.table
def slow(self, *args, **kwargs):
    if list(Path(os.environ["KEPT"]).glob("*.json")):
        time.sleep(100)  # until it is interrupted
    return run(self, *args, **kwargs)
Engine.table = slow
from iitkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(shallow_gpt2: str, tmp_path: Path) -> None:
    config, root = write(tmp_path, shallow_gpt2), tmp_path / "run"
    command = [sys.executable, "-c", SLOW, "trace", "--config", str(config)]
    environment = {**os.environ, "KEPT": str(root / "examples")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list((root / "examples").glob("*.json"))) < 1:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted; what is done is kept, and the same command goes on from there" in err
    assert "Traceback" not in err
    done = Grid.load(root / "trace")
    assert 1 <= done.sizes["example"] < 3
    assert done.about["interrupted"] is True
    assert "causal tracing of" in out
    kept = {file.name: file.stat().st_mtime_ns for file in (root / "examples").glob("*.json")}
    ran = iitkit("trace", "--config", config)
    assert ran.code == 0
    assert Grid.load(root / "trace").sizes["example"] == 3
    after = {file.name: file.stat().st_mtime_ns for file in (root / "examples").glob("*.json")}
    assert {name: after[name] for name in kept} == kept  # not run again
