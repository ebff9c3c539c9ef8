"""Bad input is answered in a line or two, with code 2, and leaves nothing that looks like a result."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Ran, files, iitkit, metrics, said, write_config

from iitkit.cli import callbacks
from iitkit.data.loader import TrainLoader

GENDER = "--model.alignment.gender"
RESULTS = ("metrics.json", "artifact", "predictions", "checkpoints", ".metrics", ".artifact", ".tmp")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Path:
    return write_config(tmp_path_factory.mktemp("errors"), shallow_gpt2)


@pytest.fixture(scope="module")
def fitted(config: Path) -> Path:
    """A run whose checkpoints are given to others."""
    root = config.parent / "fitted"
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={root}", "--trainer.max_epochs=1")
    assert ran.code == 0, ran.err
    return root


def refused(config: Path, root: Path, *arguments: object, command: str = "fit") -> str:
    """The complaint; nothing that looks like a result may be in the run's folder."""
    message = said(iitkit(command, "--config", config, f"--trainer.default_root_dir={root}", *arguments))
    assert [name for name in files(root) if name.startswith(RESULTS)] == []
    return message


# --- keys, values and class names on the command line ---

OPTIONS = {
    # mistyped keys at every depth
    "--modle.base=x": "the config has no key 'modle'. Did you mean 'model'?",
    "--seed_everythin=3": "the config has no key 'seed_everythin'. Did you mean 'seed_everything'?",
    "--ckpt=last": "the config has no key 'ckpt'. Did you mean 'ckpt_path'?",
    "--model.bas=x": "model: DAS has no key 'bas'. Did you mean 'base'?",
    "--model.init_args.bas=x": "model: DAS has no key 'bas'. Did you mean 'base'?",
    f"{GENDER}.layr=3": "model.alignment.gender: Placement has no key 'layr'. Did you mean 'layer'?",
    f"{GENDER}.intervention.rnk=3": (
        "model.alignment.gender.intervention: LowRankSubspace has no key 'rnk'. Did you mean 'rank'?"
    ),
    "--model.optimizer.lrr=3": "model.optimizer: Adam has no key 'lrr'. Did you mean 'lr'?",
    "--data.batchsize=3": "data: CounterfactualDataModule has no key 'batchsize'. Did you mean 'batch_size'?",
    "--data.sizes.trian=4": "data.sizes: no key 'trian'. Did you mean 'train'?",
    "--trainer.max_epoch=3": "trainer: no key 'max_epoch'. Did you mean 'max_epochs'?",
    # wrong types
    f"{GENDER}.layer=x": "model.alignment.gender.layer: given 'x', expected an integer or null",
    f"{GENDER}.intervention.rank=x": "model.alignment.gender.intervention.rank: given 'x', expected an integer",
    "--model.optimizer.lr=x": "model.optimizer.lr: given 'x', expected a number",
    "--model.replay=offf": "model.replay: given 'offf', expected 'auto' or 'layers' or 'off'",
    "--data.batch_size=x": "data.batch_size: given 'x', expected an integer",
    "--data.sizes.train=x": "data.sizes.train: given 'x', expected an integer",
    "--data.padding=middle": "data.padding: given 'middle', expected 'left' or 'right'",
    "--data.shares=[1,2]": "data.shares: given '[1, 2]', expected a tuple with 3 elements",
    "--trainer.max_epochs=x": "trainer.max_epochs: given 'x', expected an integer or null",
    "--seed_everything=x": "seed_everything: given 'x', expected true or false or an integer",
    # values out of range
    "--data.sizes.test=0": "data.sizes.test: 0 pairs: expected 1 or more",
    "--data.sizes.train=-1": "data.sizes.train: -1 pairs: expected 1 or more",
    "--data.batch_size=0": "data.batch_size: 0: expected 1 or more",
    "--data.flipped=2": "data.flipped: 2.0: expected a share from 0 to 1, or null",
    "--data.prompts=1": "data.prompts: 1: expected 2 or more",
    "--trainer.accelerator=gpuu": "trainer: You selected an invalid accelerator name: `accelerator='gpuu'`",
    "--model.replay_memory=-1": "model.replay_memory: -1.0: expected GiB, 0 or more",
    "--trainer.precision=bf16-true": "trainer.precision: 'bf16-true' would convert the interventions too: say model.",
    # class names
    "--model=DSA": "model: no class 'DSA'. Did you mean 'DAS'? Known: DAS",
    "--data.task=PronounGendr": "data.task: no class 'PronounGendr'. Did you mean 'PronounGender'? Known: Agreement,",
    f"{GENDER}.intervention=Vanila": "model.alignment.gender.intervention: no class 'Vanila'. Did you mean 'Vanilla'?",
    f"{GENDER}.intervention.class_path=Vanila": "gender.intervention: no class 'Vanila'. Did you mean 'Vanilla'?",
    "--model.optimizer=Adm": "model.optimizer: no class 'Adm'. Did you mean 'Adam'?",
    "--trainer.callbacks=Foo": "trainer.callbacks: no class 'Foo'",
    # stray things
    "stray": "unrecognized arguments: stray",
    "--allow": "--allow '': expected the name of a package",
    "--model.base": "expected one argument",
    "--ckpt_path=nope.ckpt": "no checkpoint nope.ckpt: give a .ckpt file that `iitkit fit` wrote, 'best' or 'last'",
    "--ckpt_path=last": "run/checkpoints/last.ckpt: give a .ckpt file",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(config: Path, tmp_path: Path, option: str) -> None:
    root = tmp_path / "run"
    assert OPTIONS[option] in refused(config, root, option)
    assert files(root) == []  # the config was refused before a run began


# --- the same in a YAML file ---

EDITS = [
    ("seed_everything", "seed_everythin", "the config has no key 'seed_everythin'. Did you mean 'seed_everything'?"),
    ("trainer: {", "trainr: {", "the config has no key 'trainr'. Did you mean 'trainer'?"),
    ("data:", "dta:", "the config has no key 'dta'. Did you mean 'data'?"),
    ("    base:", "    bas:", "model: DAS has no key 'bas'. Did you mean 'base'?"),
    ("alignment:", "alignmnt:", "model: DAS has no key 'alignmnt'. Did you mean 'alignment'?"),
    ("layer: 3", "layr: 20", "model.alignment.gender: Placement has no key 'layr'. Did you mean 'layer'?"),
    ("rank: 2", "rnk: 2", "model.alignment.gender.intervention: LowRankSubspace has no key 'rnk'. Did you mean"),
    ("lr: 0.05", "lrr: 0.05", "model.optimizer: Adam has no key 'lrr'. Did you mean 'lr'?"),
    ("batch_size: 8", "batchsize: 8", "data: CounterfactualDataModule has no key 'batchsize'. Did you mean"),
    ("{train:", "{trian:", "data.sizes: no key 'trian'. Did you mean 'train'?"),
    ("max_epochs", "max_epoch", "trainer: no key 'max_epoch'. Did you mean 'max_epochs'?"),
    ("layer: 3", "layer: [20]", "model.alignment.gender.layer: given '[20]', expected an integer or null"),
    ("rank: 2", "rank: two", "model.alignment.gender.intervention.rank: given 'two', expected an integer"),
    ("batch_size: 8", "batch_size: eight", "data.batch_size: given 'eight', expected an integer"),
    ("class_path: DAS", "class_path: DSA", "model: no class 'DSA'. Did you mean 'DAS'?"),
    ("class_path: Adam", "class_path: Adm", "model.optimizer: no class 'Adm'. Did you mean 'Adam'?"),
    ("PronounGender", "PronounGendr", "data.task: no class 'PronounGendr'. Did you mean 'PronounGender'?"),
    (
        "{rank: 2}",
        "{class_path: Vanila, init_args: {}}",
        "model.alignment.gender.intervention: no class 'Vanila'. Did you mean 'Vanilla'?",
    ),
    ("base: ", "dtype: ", "model.base is missing: DAS needs it"),
]


@pytest.mark.parametrize(("old", "new", "message"), EDITS, ids=[new for _, new, _ in EDITS])
def test_yaml(config: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = config.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert message in refused(file, tmp_path / "run")


def test_yaml_names_the_placement_among_several(config: Path, tmp_path: Path) -> None:
    text = config.read_text(encoding="utf-8").replace(
        "      gender:", "      name: {layer: 2, position: name}\n      gender:"
    )
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace("layer: 3", "layr: 20"), encoding="utf-8")
    assert "model.alignment.gender: Placement has no key 'layr'" in refused(file, tmp_path / "run")
    file.write_text(text.replace("layer: 2,", "layer: two,"), encoding="utf-8")
    assert "model.alignment.name.layer: given 'two'" in refused(file, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "the config is not valid YAML: while parsing a flow node"),
        ("a: b: c\n", "the config is not valid YAML: mapping values are not allowed in this context"),
        ("just text\n", "the config holds no keys: given 'just text', expected ckpt_path, data, model"),
        ("", "the config holds no keys"),
        ("model: {class_path: DAS}\n", "model.base, model.alignment are missing: DAS needs it"),
        ("seed_everything: 1\n", "data, model are missing"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    assert message in refused(file, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "no command 'fti'. Did you mean 'fit'? The commands are fit, validate, test, predict"),
        (["fit", "--config", "das_gpt2.yml"], "no config 'das_gpt2.yml'. Did you mean 'das_gpt2.yaml'?"),
        (["fit", "--config=nope"], "no config 'nope'. Give a file, or one of addition_smollm2.yaml,"),
        (["fit", "--config"], "expected one argument"),
        (["fit"], "missing"),
        (["test"], "missing"),
    ],
)
def test_the_front_door(arguments: list[str], message: str) -> None:
    assert message in said(iitkit(*arguments))


@pytest.mark.parametrize(
    "key", ["--model", "--data.task", "--model.optimizer", f"{GENDER}.intervention", "--trainer.callbacks"]
)
def test_foreign_classes_are_not_imported(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "elsewhere.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("elsewhere.Thing", "os.system"):
        message = refused(config, tmp_path / "run", f"{key}={name}")
        assert f"importing {name!r} is not allowed" in message
        assert f"add --allow {name.split('.')[0]}" in message
    assert not (tmp_path / "ran").exists()
    assert "elsewhere" not in sys.modules


# --- what only the base model and the data can refuse ---

LATE = {
    f"{GENDER}.component=block_outptu": "component 'block_outptu' is unknown. Did you mean 'block_output'?",
    f"{GENDER}.layer=4": "alignment.gender: layer 4 is out of range: GPT2LMHeadModel has layers 0 to 3",
    f"{GENDER}.position=nam": "alignment.gender: position 'nam' is no span of the prompt. Did you mean 'name'?",
    f"{GENDER}.variable=gendr": "variable 'gendr' is no variable. Did you mean 'gender'? The variables are name,",
    f"{GENDER}.intervention.rank=33": "alignment.gender.intervention: rank 33: expected 1 to the site's width 32",
    "--model.dtype=float31": "dtype 'float31': expected one of float32, float64, bfloat16",
    "--model.base=/nowhere/at/all": "base '/nowhere/at/all': no such folder",
}


@pytest.mark.parametrize("option", LATE)
def test_late_refusals(config: Path, tmp_path: Path, option: str) -> None:
    assert LATE[option] in refused(config, tmp_path, option)


TASKS = {
    "NumberLabel": "12",
    "PrefixLabels": "are told apart by no token: one begins the other",
    "EmptyLabel": "label '' does not stand as tokens of its own behind",
    "FewWords": "no word of 'thing' (2 words) is left for the",
}


@pytest.mark.parametrize("name", TASKS)
def test_unsound_tasks(config: Path, tmp_path: Path, name: str) -> None:
    arguments = ["--allow", "hypotheses", f"--data.task=hypotheses.{name}", f"{GENDER}.variable=kind"]
    message = refused(config, tmp_path, *arguments)
    assert TASKS[name] in message
    assert "label" in message or "candidates" in message or "split" in message


def test_a_sound_task_of_the_users_own(config: Path, tmp_path: Path) -> None:
    arguments = ["--allow", "hypotheses", "--data.task=hypotheses.Sound", f"{GENDER}.variable=kind"]
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", *arguments)
    assert ran.code == 0, ran.err
    assert metrics(tmp_path)["test/n"] == 20


def test_no_network(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    message = refused(config, tmp_path, "--model.base=some/model")
    assert "base 'some/model': the Hub could not be reached" in message
    assert "Use a local folder" in message


def test_an_error_within_a_step_is_one_line_too(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Position ``all`` meets prompts of unequal lengths in the middle of an epoch, below Lightning's loops."""
    message = refused(config, tmp_path, f"{GENDER}.position=all", "--trainer.num_sanity_val_steps=0")
    assert "a swap needs as many in both" in message


# --- checkpoints ---


class Code:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize(
    ("damage", "command"),
    [
        *((damage, "fit") for damage in ("empty", "noise", "truncated", "foreign", "pickle", "torch pickle", "list")),
        *(("torch pickle", command) for command in ("test", "validate", "predict")),
    ],
)
def test_unreadable_checkpoints(config: Path, fitted: Path, tmp_path: Path, damage: str, command: str) -> None:
    whole, file = (fitted / "checkpoints" / "last.ckpt").read_bytes(), tmp_path / "bad.ckpt"
    ran = tmp_path / "ran"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "noise":
        file.write_bytes(bytes(range(256)) * 40)
    elif damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, file)
    elif damage == "list":
        torch.save([1, 2], file)
    elif damage == "pickle":
        file.write_bytes(pickle.dumps(Code(ran)))
    else:
        torch.save({"iitkit": Code(ran), "state_dict": {}}, file)
    message = refused(config, tmp_path / "run", f"--ckpt_path={file}", command=command)
    assert f"checkpoint {file} cannot be read" in message or f"{file} is no checkpoint of iitkit's" in message
    assert not ran.exists()


def test_a_newer_checkpoint(config: Path, fitted: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["iitkit"]["schema"] = 2
    torch.save(checkpoint, tmp_path / "new.ckpt")
    message = refused(config, tmp_path / "run", f"--ckpt_path={tmp_path / 'new.ckpt'}")
    assert "the checkpoint is none of iitkit's, or of a newer version" in message


@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoints_of_something_else(
    config: Path, fitted: Path, tmp_path: Path, tiny_llama: str, command: str
) -> None:
    for option, message in (
        (f"--model.base={tiny_llama}", "the checkpoint is of base "),
        (f"{GENDER}.intervention.rank=3", "the checkpoint's alignment differs at 'gender': it has {"),
        (f"{GENDER}.layer=2", "the checkpoint's alignment differs at 'gender': it has {"),
        ('--model.alignment={"pronoun": {"layer": 3}}', "the checkpoint's alignment differs at 'gender': it has {"),
    ):
        path = f"--ckpt_path={fitted / 'checkpoints' / 'best.ckpt'}"
        assert message in refused(config, tmp_path, path, option, command=command), option


# --- a full disk ---


def ended(config: Path, root: Path) -> str:
    """What a run that had begun says in the end, below what it said of its progress."""
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={root}")
    return said(Ran(ran.code, ran.out, ran.err[ran.err.index("iitkit: ") :]))


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")


def test_disk_full_at_a_text(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_text

    def cut(self: Path, data: str, *args: Any, **kwargs: Any) -> int:
        if "metrics.json" not in self.name:
            return whole(self, data, *args, **kwargs)
        whole(self, data[: len(data) // 2], *args, **kwargs)
        full()
        raise AssertionError

    monkeypatch.setattr(Path, "write_text", cut)
    assert "the disk is full (a/file)" in ended(config, tmp_path)
    assert [name for name in files(tmp_path) if "metrics.json" in name or "artifact" in name] == []
    monkeypatch.setattr(Path, "write_text", whole)
    again = iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last")
    assert again.code == 0  # what was complete is kept
    assert metrics(tmp_path)["test/n"] == 20


def test_disk_full_at_the_artifact(config: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = ended(config, tmp_path)
    assert f"cannot write the artifact {tmp_path / 'artifact'}: No space left on device" in message
    assert [name for name in files(tmp_path) if "artifact" in name] == []
    assert list(tmp_path.glob(".artifact*")) == []


def test_disk_full_at_a_checkpoint(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    message = refused(config, tmp_path)
    assert "the disk is full (a/file): free some space, then run again" in message


def test_write_text_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "a.json"
    callbacks.write_text(file, "one")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        callbacks.write_text(file, "two")
    assert file.read_text() == "one"
    assert files(tmp_path) == ["deep/a.json"]


def test_a_bug_is_no_bad_input(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is said to the user becomes a line; anything else keeps its traceback."""
    monkeypatch.setattr(TrainLoader, "state_dict", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}")
