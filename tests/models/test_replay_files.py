"""What replay leaves in files: found by later runs, shared by processes, never believed when damaged or foreign."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from byhand import prompts, relative
from replaying import draw_batch, fresh, runners, subspace
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from iitkit.batch import Batch
from iitkit.models.replay import Keeping, Replay, ReplayPrepared, filling, shards
from iitkit.models.replay.shards import ShardFolder, make_room
from iitkit.models.runs import PlainRunner

ROOT = Path(__file__).resolve().parents[2]
COUNT = 80
LENGTHS = [4 + i % 7 for i in range(COUNT)]
AT = [i % length for i, length in enumerate(LENGTHS)]
SITE = [(1, "block_output")]


def everything(layer: int = 1) -> Batch:
    """All prompts, each as a base and as a source."""
    texts = prompts(LENGTHS, seed=3)
    rows = [(i, (i * 7 + 1) % COUNT) for i in range(COUNT)]
    return draw_batch(rows, texts, [[[p]] for p in AT], "left")


def filled(
    folder: Path, model: PreTrainedModel | None = None, base: str | None = "weights", memory: float | None = None
) -> tuple[Replay, PlainRunner, Batch]:
    """A runner on a network of its own, as in another run, whose store was filled with all prompts."""
    replay, plain = runners(model or fresh("gpt2"), SITE, keeping=Keeping(memory, str(folder), base))
    batch = everything()
    replay.fill([(batch.base, batch.base_positions, batch.position_mask)])
    return replay, plain, batch


def check(replay: Replay, plain: PlainRunner, batch: Batch) -> None:
    edit, none = subspace(3, torch.float32), batch.labels[:, :0]
    prepared, expected = replay.prepare(batch), plain.prepare(batch)
    assert isinstance(prepared, ReplayPrepared)
    assert replay.mode == "tokens"
    with torch.no_grad():
        assert relative(prepared.logits([edit], none), expected.logits([edit], none)) <= 1e-5
    assert relative(prepared.features[0], expected.features[0]) <= 1e-5


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_second_run_finds_everything(folder: Path) -> None:
    first, plain, batch = filled(folder)
    assert (len(first.store.computed), len(first.store.found)) == (COUNT, 0)
    check(first, plain, batch)
    assert len(files(folder)) == 1
    second, plain, batch = filled(folder)
    assert (len(second.store.computed), len(second.store.found)) == (0, COUNT)
    assert second.store.memory == 0
    assert second.store.mapped == first.store.memory > 0
    check(second, plain, batch)
    assert not second.store.computed
    assert "an earlier run left 80 of them" in second.told()


def test_other_weights_dtypes_and_sites_have_files_of_their_own(folder: Path) -> None:
    filled(folder)
    assert not filled(folder, base="other weights")[0].store.found
    assert not filled(folder, model=fresh("gpt2").double())[0].store.found
    assert not filled(folder, model=fresh("llama"))[0].store.found
    deeper, plain = runners(fresh("gpt2"), [(2, "block_output")], keeping=Keeping(None, str(folder), "weights"))
    batch = everything()
    deeper.fill([(batch.base, batch.base_positions, batch.position_mask)])
    # keys and values of the layers above are there; what enters the layer, and its own activations, are not
    assert (len(deeper.store.computed), len(deeper.store.found)) == (COUNT, COUNT)
    check(deeper, plain, batch)
    assert set(files(folder)[0].parent.parent.iterdir()) >= {file.parent for file in files(folder)}


def test_without_a_base_nothing_is_left(folder: Path) -> None:
    replay, plain, batch = filled(folder, base=None)
    check(replay, plain, batch)
    assert files(folder) == []
    assert replay.store.memory > 0


@pytest.mark.parametrize("base", ["weights", None])
def test_no_memory_means_files(folder: Path, base: str | None) -> None:
    folder.mkdir()
    replay, plain, batch = filled(folder, memory=0, base=base)
    assert replay.store.memory == 0
    assert replay.store.mapped > 0
    check(replay, plain, batch)
    some = draw_batch([(0, 1), (5, 3)], prompts([9, 8, 7, 6, 5, 11], seed=8), [[[2]]] * 6, "right")
    check(replay, plain, some)  # prompts that come later
    assert replay.store.memory == 0
    assert len(files(folder)) >= 2
    if base is None:  # a folder that lives as long as the network's store
        del replay, plain
        gc.collect()
        assert files(folder) == []


def test_a_little_memory_is_used_before_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled(folder / "a")[0].store.memory
    monkeypatch.setattr(filling, "SHARD_BYTES", whole // 8)
    replay, plain, batch = filled(folder / "b", memory=whole // 2, base=None)
    assert 0.3 * whole < replay.store.memory <= whole // 2
    assert replay.store.memory + replay.store.mapped == whole
    check(replay, plain, batch)


# --- damage ---


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def shorten_a_tensor(file: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, metadata=meta)


@pytest.mark.parametrize("damage", [flip_a_byte, cut, empty, cut_the_header, shorten_a_tensor])
def test_damaged_files_are_made_anew(
    damage: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(folder)
    (file,) = files(folder)
    good = file.read_bytes()
    damage(file)
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        replay, plain, batch = filled(folder)
    assert f"{file.name} is damaged" in caplog.text
    assert len(replay.store.computed) == COUNT
    check(replay, plain, batch)
    assert files(folder) == [file]
    with safe_open(file, framework="pt") as stored:
        assert stored.metadata()["crc32"]
    assert len(file.read_bytes()) == len(good)
    assert len(filled(folder)[0].store.found) == COUNT


def test_foreign_files_are_left_alone_and_not_used(folder: Path) -> None:
    first = filled(folder)[0]
    (file,) = files(folder)
    other = filled(folder, base="other weights")[0]
    (theirs,) = [found for found in files(folder) if found != file]
    # another network's shard under our name, and a file of somebody else's
    file.write_bytes(theirs.read_bytes())
    stranger = file.parent / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, stranger)
    replay, plain, batch = filled(folder)
    assert len(replay.store.computed) == COUNT
    check(replay, plain, batch)
    assert stranger.is_file()
    assert first.store.memory == other.store.memory


def test_half_written_files_are_not_seen_and_go(folder: Path) -> None:
    filled(folder)
    (file,) = files(folder)
    young, old = (file.parent / f".{name}.tmp" for name in ("young", "old"))
    for scratch in (young, old):
        scratch.write_bytes(file.read_bytes()[:100])
    file.unlink()
    os.utime(old, (time.time() - 7200,) * 2)
    replay, plain, batch = filled(folder)
    assert len(replay.store.computed) == COUNT
    check(replay, plain, batch)
    assert young.is_file()  # somebody may be writing it
    assert not old.is_file()


def test_files_of_weights_that_have_changed_are_found_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(folder)
    model = fresh("gpt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.1)
    replay, plain, batch = filled(folder, model=model)  # under the same name
    assert len(replay.store.found) == COUNT
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        check(replay, plain, batch)
    assert "what was kept is made anew" in caplog.text
    assert not replay.store.found


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with caplog.at_level(logging.INFO, logger="iitkit"):
        replay, plain, batch = filled(folder)
    assert "not written to a file for later runs: No space left on device" in caplog.text
    check(replay, plain, batch)
    assert list(folder.rglob("*.tmp")) == []
    with caplog.at_level(logging.INFO, logger="iitkit"):
        replay, plain, batch = filled(folder, memory=0)
    assert replay.mode is None
    assert "replay is off: its store would exceed 0.0 GiB of memory (replay_memory), and no file can be" in caplog.text
    none = batch.labels[:, :0]
    assert torch.equal(replay.prepare(batch).logits(None, none), plain.prepare(batch).logits(None, none))


def test_the_longest_unused_files_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("first", "second", "third")):
        filled(folder, base=name)
        for file in files(folder):
            if time.time() - file.stat().st_mtime < 60:
                os.utime(file, (time.time() - 1000 * (3 - i),) * 2)
    size = files(folder)[0].stat().st_size
    total = shards.shutil.disk_usage(folder).total
    monkeypatch.setattr(shards, "SHARE", 2.5 * size / total)
    make_room(folder, 0)
    assert len(files(folder)) == 2
    assert not filled(folder, base="first")[0].store.found
    assert filled(folder, base="third")[0].store.found
    monkeypatch.setattr(shards, "SPARE", 2 * total)
    with pytest.raises(OSError, match="GiB are free on the disk"):
        make_room(folder, 0)


# --- processes ---

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths}
from test_replay_files import check, filled
folder, start = Path(sys.argv[1]), Path(sys.argv[2])
import time, torch
torch.set_num_threads(1)
while not start.exists():
    time.sleep(0.01)
replay, plain, batch = filled(folder)
check(replay, plain, batch)
print(len(replay.store.computed), len(replay.store.found))
"""


def test_two_processes_that_fill_at_once_do_the_work_of_one(folder: Path, tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "models")]
    start = tmp_path / "start"
    command = [sys.executable, "-c", SCRIPT.format(paths=paths), str(folder), str(start)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    start.write_text("go")
    counts = []
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        counts.append(tuple(int(n) for n in out.split()[-2:]))
    assert sorted(counts) == [(0, COUNT), (COUNT, 0)]
    assert len(files(folder)) == 1
    assert list(folder.rglob("*.tmp")) == []


def test_a_folder_tells_networks_apart(tmp_path: Path) -> None:
    one, other = (ShardFolder(tmp_path, {"base": name}) for name in ("a", "b"))
    assert one.path != other.path
    assert ShardFolder(tmp_path, {"base": "a"}).path == one.path
