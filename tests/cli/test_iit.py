"""``iitkit fit`` on IIT: the trained network's folder, what DAS makes of it, resumed runs, two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import files, iitkit, metrics, said, same_weights, weights

from iitkit import load, load_base, load_network
from iitkit.models.runs import call

CONFIG = """\
seed_everything: 0
model:
  class_path: IIT
  init_args:
    base: {class_path: MLP, init_args: {sizes: [8, 6, 7, 2]}}
    alignment:
      left_equal: {layer: 1, intervention: {class_path: Vanilla, init_args: {features: [0, 1]}}}
      right_equal: {layer: 1, intervention: {class_path: Vanilla, init_args: {features: [2, 3]}}}
    optimizer: {class_path: Adam, init_args: {lr: 0.01}}
    w_strict: 0.2
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {class_path: HierarchicalEquality, init_args: {inputs: vectors, entities: 40, width: 2}}
    sizes: {train: 48, validation: 24, test: 20}
    batch_size: 8
    eval_batch_size: 8
trainer: {max_epochs: 2, default_root_dir: ROOT, num_sanity_val_steps: 0}
"""
SYMBOLS = """\
seed_everything: 0
model:
  class_path: IIT
  init_args:
    base: {class_path: GPT2, init_args: {vocabulary: 3, width: 16, layers: 2, heads: 2, positions: 8}}
    alignment:
      ab: {layer: 0, position: b, intervention: {rank: 3}}
    optimizer: {class_path: Adam, init_args: {lr: 0.01}}
    train: both
    w_kl: 0.1
    alternating: true
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {class_path: BooleanTree, init_args: {inputs: symbols}}
    sizes: {train: 48, validation: 24, test: 20}
    batch_size: 8
    eval_batch_size: 8
trainer: {max_epochs: 2, default_root_dir: ROOT, num_sanity_val_steps: 0}
"""
ADAPTED = """\
seed_everything: 0
model:
  class_path: IIT
  init_args:
    base: {class_path: GPT2, init_args: {vocabulary: 3, width: 16, layers: 4, heads: 2, positions: 8}}
    alignment:
      ab: {layer: 1, component: mlp_output, position: all, intervention: {class_path: Vanilla}}
      cd: {layer: 2, component: mlp_output, position: [c, d], intervention: {class_path: Vanilla}}
    optimizer: {class_path: Adam, init_args: {lr: 0.01}}
    lr_scheduler: {class_path: CosineAnnealingLR, init_args: {T_max: 9}}
    lora: {rank: 2}
    w_behaviour: {start: 1, end: 0}
    w_iit: {start: 0, end: 1, until: 0.6}
    w_strict: 0.5
    w_kl: 0.1
    strict: parts
    alternating: true
    detach_source: true
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {class_path: BooleanTree, init_args: {inputs: symbols}}
    sizes: {train: 48, validation: 17, test: 17}
    together: 2
    batch_size: 8
    eval_batch_size: 8
trainer:
  max_epochs: 3
  default_root_dir: ROOT
  num_sanity_val_steps: 0
  accumulate_grad_batches: 2
  gradient_clip_val: 0.5
"""
"""All that a step may depend on: schedules, turns, drawn sites, steps of two batches, updates that are drawn."""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "iit.yaml"
    file.write_text(text.replace("ROOT", str(folder / "run")), encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=[CONFIG, SYMBOLS], ids=["vectors", "symbols"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("iit"), request.param)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """An uninterrupted run."""
    ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    assert f"network: {config.parent / 'run' / 'network'}" in ran.out
    return config.parent / "run"


def test_the_network_of_the_best_checkpoint_is_saved(whole: Path) -> None:
    model = load_network(str(whole / "network"))
    best = {
        key.removeprefix("base_model."): value
        for key, value in weights(whole / "checkpoints" / "best.ckpt").items()
        if key.startswith("base_model.")
    }
    state = model.state_dict()
    assert best.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in best.items())
    base = json.loads((whole / "artifact" / "config.json").read_text())["base"]
    assert base["id"] == str(whole / "network")
    assert load(whole).check(model, match="exact") == "exact"
    assert base["revision"].startswith("sha256:")
    assert {"network/config.json", "network/model.safetensors"} <= set(files(whole))


def test_das_and_steering_start_from_it(config: Path, whole: Path, tmp_path: Path) -> None:
    variable = "ab" if "GPT2" in config.read_text() else "left_equal"
    text = config.read_text(encoding="utf-8").replace("class_path: IIT", "class_path: DAS")
    start, end = text.index("    base:"), text.index("    optimizer:")
    placement = f"    alignment: {{{variable}: {{layer: 1, intervention: {{rank: 2}}}}}}\n"
    text = text[:start] + f"    base: {whole / 'network'}\n" + placement + text[end:]
    dropped = ("    w_", "    train:", "    alternating:")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(dropped))
    file = write(tmp_path, text)
    ran = iitkit("fit", "--config", file, f"--trainer.default_root_dir={tmp_path / 'das'}")
    assert ran.code == 0, ran.err
    assert metrics(tmp_path / "das")["test/task_accuracy"] == metrics(whole)["test/task_accuracy"]
    assert not (tmp_path / "das" / "network").exists()


def test_the_report_has_each_variable(config: Path, whole: Path) -> None:
    found = metrics(whole)
    if "GPT2" in config.read_text():
        assert found["test/ab/iia"] == found["test/iia"]
        return
    assert found["test/left_equal/n"] + found["test/right_equal/n"] == found["test/n"] == 20
    right = sum(found[f"test/{v}/iia"] * found[f"test/{v}/n"] for v in ("left_equal", "right_equal"))
    assert right == pytest.approx(found["test/iia"] * 20, abs=1e-4)
    assert 0 <= found["test/strict/layer_1_block_output/accuracy"] <= 1


@pytest.mark.parametrize(("moment", "count", "step"), [("batch", 3, 3), ("batch", 8, 8), ("validation", 2, 6)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: Path, whole: Path, tmp_path: Path, moment: str, count: int, step: int
) -> None:
    stop = "--trainer.callbacks"
    root = f"--trainer.default_root_dir={tmp_path}"
    ran = iitkit(
        *("fit", "--config", config, root, "--allow", "stopping", f"{stop}+=stopping.StopAt"),
        *(f"{stop}.init_args.moment={moment}", f"{stop}.init_args.count={count}", f"{stop}.init_args.how=SIGTERM"),
    )
    assert ran.code == 143, ran.err
    assert f"stopped after step {step}" in " ".join(ran.out.split())
    again = iitkit("fit", "--config", config, root, "--ckpt_path", "last")
    assert again.code == 0, again.err
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(tmp_path / "checkpoints" / name, whole / "checkpoints" / name), name
    assert (tmp_path / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    name = "network/model.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_resumed_run_of_schedules_and_turns_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped between the two batches of a step, too."""
    config = write(tmp_path, ADAPTED)
    whole, part = tmp_path / "run", tmp_path / "part"
    ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    root, stop = f"--trainer.default_root_dir={part}", "--trainer.callbacks"
    ran = iitkit(
        *("fit", "--config", config, root, "--allow", "stopping", f"{stop}+=stopping.StopAt"),
        *(f"{stop}.init_args.moment=batch", f"{stop}.init_args.count=9", f"{stop}.init_args.how=SIGTERM"),
    )
    assert ran.code == 143, ran.err
    assert not (part / "network").exists()
    again = iitkit("fit", "--config", config, root, "--ckpt_path", "last")
    assert again.code == 0, again.err
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(part / "checkpoints" / name, whole / "checkpoints" / name), name
    assert (part / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    name = "network/model.safetensors"
    assert (part / name).read_bytes() == (whole / name).read_bytes()
    first, last = (weights(whole / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert first.keys() == last.keys()
    assert load(whole).check(load_network(str(whole / "network")), match="exact") == "exact"
    found = metrics(whole)
    assert found["test/ab+cd/top1"] == found["test/top1"]
    assert sum("test/strict" in key for key in found) == 10  # 4 × (2 heads + MLP) less 2


def test_the_networks_own_run_is_not_written_over_it(whole: Path, config: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in files(whole)}
    ran = iitkit("fit", "--config", config, f"--model.base={whole / 'network'}", f"--trainer.default_root_dir={whole}")
    assert "the run writes its network to" in said(ran)
    assert "over its own base: set another trainer.default_root_dir" in said(ran)
    assert {name: (whole / name).read_bytes() for name in files(whole)} == before
    assert iitkit("test", "--config", config, f"--model.base={whole / 'network'}").code == 0  # writes none


def test_the_run_moved_every_step(whole: Path) -> None:
    """Else equal ends would say nothing."""
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 12)
    start, end = weights(whole / "checkpoints" / "best.ckpt"), weights(whole / "checkpoints" / "last.ckpt")
    assert start.keys() == end.keys()


def test_lora_is_saved_in_the_weights(shallow_gpt2: str, tmp_path: Path) -> None:
    """The folder is an ordinary one: no adapter is left, and it says what the trained module says."""
    file = write(
        tmp_path,
        f"""\
seed_everything: 0
model:
  class_path: IIT
  init_args:
    base: {shallow_gpt2}
    alignment:
      gender: {{layer: 2, position: last, intervention: {{class_path: LowRankSubspace, init_args: {{rank: 2}}}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.05}}}}
    lora: {{rank: 2, modules: ["*.mlp.c_fc", "*.attn.c_attn"]}}
    w_kl: 0.1
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {{class_path: PronounGender}}
    sizes: {{train: 16, validation: 8, test: 8, test_templates: 8}}
    batch_size: 8
trainer: {{max_epochs: 1, default_root_dir: ROOT, num_sanity_val_steps: 0}}
""",
    )
    ran = iitkit("fit", "--config", file)
    assert ran.code == 0, ran.err
    root = tmp_path / "run"
    kept = weights(root / "checkpoints" / "best.ckpt")
    assert {key.rsplit(".", 1)[1] for key in kept if key.startswith("base_model")} == {"A", "B"}
    before, tokenizer = load_base(shallow_gpt2)
    after, own = load_base(str(root / "network"))
    assert own.get_vocab() == tokenizer.get_vocab()
    prefix = "transformer.h.1.mlp.c_fc"
    delta = [kept[f"base_model.{prefix}.parametrizations.weight.0.{name}"] for name in ("A", "B")]
    expected = before.get_submodule(prefix).weight + 2.0 * delta[0] @ delta[1]
    assert torch.allclose(after.get_submodule(prefix).weight, expected, atol=1e-6)
    assert delta[1].abs().max() > 0.01
    changed = [n for n, p in after.state_dict().items() if not torch.equal(p, before.state_dict()[n])]
    assert changed == [f"transformer.h.{i}.{m}.weight" for i in range(4) for m in ("attn.c_attn", "mlp.c_fc")]
    said_ = call(after, _tokens(own, "Yesterday, Mary walked home because"))
    assert torch.isfinite(said_.logits).all()


def _tokens(tokenizer: object, text: str) -> object:
    from iitkit.batch import Tokens

    encoded = tokenizer(text, return_tensors="pt")  # type: ignore[operator]
    return Tokens(encoded["input_ids"], encoded["attention_mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.w_iti=1"], "model: IIT has no key 'w_iti'. Did you mean 'w_iit'?"),
        (["--model.train=bse"], "model.train: given 'bse', expected 'base' or 'interventions' or 'both'"),
        (
            ["--model.base={class_path: MPL}"],
            "model.base: no class 'MPL'. Did you mean 'MLP'? Known: GPT2, GRU, Llama, MLP",
        ),
        (
            ["--model.base={class_path: MLP, init_args: {size: [8, 2]}}"],
            "model.base: MLP has no key 'size'. Did you mean",
        ),
        (["--model.base.init_args.sizes=[8, 2]"], "MLP.sizes: [8, 2]: expected input, hidden layers and classes"),
        (["--model.base.init_args.sizes=[9, 4, 4, 2]"], "base MLP.sizes: an input has 8 numbers, the network takes 9"),
        (["--model.w_iit={strt: 1}"], "model.w_iit: Schedule has no key 'strt'. Did you mean 'start'?"),
        (["--model.w_iit={start: 1, end: -1}"], "model.w_iit goes from 1.0 to -1.0: expected 0 or more"),
        (["--model.w_iit={start: 0, end: 1, until: 2}"], "schedule until 2.0: expected a share of training above 0"),
        (["--model.w_strict={start: 0, end: 1, shape: exponential}"], "exponential schedule from 0.0 to 1.0: expected"),
        (["--model.parameters=[foo*]"], "model.parameters: MLPModel has no parameter 'foo*'; it has layers.0.weight"),
        (["--model.lora={rank: 9}"], "model.lora.rank: 9: layers.0 is (6, 8): expected at most 6, or modules without"),
        (["--model.train=interventions", "--model.w_kl=1"], "model.w_kl is of a base that trains"),
        (["--model.train=interventions"], "nothing to train in Vanilla, Vanilla"),
        (["--model.lora={rnk: 3}"], "model.lora: Adapters has no key 'rnk'. Did you mean 'rank'?"),
        (["--model.w_behaviour=0", "--model.w_iit=0", "--model.w_strict=0"], "all weights are 0"),
    ],
)
def test_errors(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in said(iitkit("fit", "--config", write(tmp_path, CONFIG), *options))


def test_completions_are_no_pairs(tmp_path: Path) -> None:
    text = CONFIG[: CONFIG.index("data:")]
    lines = "".join(f'{{"prompt": "{i} and", "completion": " so"}}\n' for i in range(20))
    (tmp_path / "said.jsonl").write_text(lines, encoding="utf-8")
    data = f"class_path: CompletionDataModule\n  init_args: {{dataset: {{path: {tmp_path / 'said.jsonl'}}}}}\n"
    file = write(tmp_path, f"{text}data:\n  {data}trainer: {{default_root_dir: ROOT}}\n")
    assert "IIT is trained on pairs: choose data CounterfactualDataModule" in said(iitkit("fit", "--config", file))


@pytest.mark.slow
@pytest.mark.parametrize("text", [CONFIG, SYMBOLS, ADAPTED], ids=["vectors", "symbols", "adapted"])
def test_two_processes_are_one(text: str, tmp_path: Path) -> None:
    """Two processes with half the batch each take the steps of one with the whole, and measure the same.

    17 pairs are two batches in one process and one in the other.
    """
    config = write(tmp_path, text)
    for processes in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "iitkit", "fit", "--config", str(config)),
                *(f"--trainer.default_root_dir={tmp_path / str(processes)}", f"--trainer.devices={processes}"),
                *("--trainer.accelerator=cpu", f"--data.batch_size={8 // processes}"),
                *("--data.eval_batch_size=8", "--trainer.enable_progress_bar=false"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("IIA, 95 %") == 1  # one of them reports
    ours, theirs = (weights(tmp_path / str(processes) / "checkpoints" / "last.ckpt") for processes in (1, 2))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    for key, value in ours.items():
        assert (value.double() - theirs[key].double()).abs().max() <= 1e-4 * (1 + value.double().abs().max()), key
    alone, together = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    assert alone.keys() == together.keys()
    for name, number in alone.items():
        assert together[name] == (pytest.approx(number, abs=1e-6) if isinstance(number, float) else number), name
