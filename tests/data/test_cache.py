"""Tokenised prompts in files: found again, by nobody else, whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ourtokenizers import CHATML, adding, chatting
from tiny import tiny_tokenizer

from iitkit.causal import CausalModel, Template, Text
from iitkit.data import cache as module
from iitkit.data.cache import PromptCache, digest
from iitkit.data.pool import make_pool, text_pool
from iitkit.data.prompts import Prompts
from iitkit.data.tokens import tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["Mary", "park", "Johnzyx", "dog", "é"]
TEXTS = [
    Template("{one} and the {other} went to " + f"{i}").render({"one": one, "other": other})
    for i in range(4)
    for one in WORDS
    for other in WORDS
]
"""A hundred prompts."""


class Counting:
    """A tokenizer that counts how many texts it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.texts = tokenizer, 0

    def __call__(self, text: Any, **options: Any) -> Any:
        self.texts += 1 if isinstance(text, str) else len(text)
        return self._tokenizer(text, **options)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def kept(folder: Path) -> PromptCache:
    return PromptCache(folder, least=1)


def same(one: Prompts, other: Prompts) -> bool:
    return (
        one.ids == other.ids
        and one.slots == other.slots
        and np.array_equal(one.spans, other.spans)
        and [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    )


def files(folder: Path) -> list[str]:
    """All but the locks."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith(".lock-"))


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        yield lambda: [record.getMessage() for record in caplog.records]


# --- found again ---


def test_the_next_run_does_not_tokenise(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    first, second = Counting(tiny_tokenizer()), Counting(tiny_tokenizer())
    made = kept(tmp_path).prompts(first, TEXTS, Wording("Well: "))
    assert first.texts == 100
    found = kept(tmp_path).prompts(second, TEXTS, Wording("Well: "))
    assert second.texts == 0
    fresh = tokenise(tiny_tokenizer(), TEXTS, Wording("Well: "))
    assert same(made, fresh)
    assert same(found, fresh)
    assert len(files(tmp_path)) == 1
    assert warned() == []


def test_the_columns_are_the_file_s_own_bytes(tmp_path: Path) -> None:
    for _ in range(2):  # when it is made, and when it is found
        found = kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
        for array in (found.ids.flat, found.ids.starts, found.spans):
            assert not array.flags.owndata
            assert not array.flags.writeable


def test_a_pool_from_a_file_is_the_same_pool(tmp_path: Path) -> None:
    positions = {"a": "one", "b": ["other.first", "last"], "c": "f2+l2"}
    plain = text_pool(TEXTS, tiny_tokenizer(), positions, "Well: ")
    text_pool(TEXTS, tiny_tokenizer(), {"a": "last"}, "Well: ", cache=kept(tmp_path))
    counting = Counting(tiny_tokenizer())
    pool = text_pool(TEXTS, counting, positions, "Well: ", cache=kept(tmp_path))  # other positions, the same tokens
    assert counting.texts == 0
    assert pool.positions == plain.positions
    rows = np.array([70, 3, 3])
    taken, expected = pool.taken(rows), plain.taken(rows)
    assert [taken.prompts[i] for i in range(3)] == [expected.prompts[i] for i in range(3)]
    assert taken.positions == expected.positions


def test_in_iitkit_s_own_folder_unless_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IITKIT_CACHE", str(tmp_path))
    PromptCache(least=1).prompts(tiny_tokenizer(), TEXTS, Wording())
    assert len(files(tmp_path / "prompts")) == 1


def test_few_prompts_are_not_kept(tmp_path: Path) -> None:
    for least, expected in ((101, 0), (100, 1)):
        PromptCache(tmp_path, least=least).prompts(tiny_tokenizer(), TEXTS, Wording())
        assert len(list(tmp_path.glob("*.arrow"))) == expected
    assert PromptCache(tmp_path).least == 2000


def test_prompts_that_lack_a_span_or_have_none(tmp_path: Path) -> None:
    for texts in (
        [Text("the park", {"a": (4, 8)}), Text("the dog and", {"b": (4, 7)}), Text("Mary", {})],
        [Text("the park", {}), Text("dog", {})],
    ):
        for _ in range(2):
            assert same(kept(tmp_path).prompts(tiny_tokenizer(), texts, Wording()), tokenise(tiny_tokenizer(), texts))


# --- by nobody else ---


def test_everything_that_matters_is_in_the_name() -> None:
    plain, chat = tiny_tokenizer(), chatting()
    added, split = tiny_tokenizer(), tiny_tokenizer()
    added.add_tokens(["Johnzyx"])
    split.split_special_tokens = True
    other_chat = chatting(CHATML.replace("|>", "]>"))
    dated = chatting("{{ strftime_now('%Y') }}" + CHATML)
    fewer, moved = TEXTS[:-1], [replace(TEXTS[0], spans={**TEXTS[0].spans, "one": (0, 3)}), *TEXTS[1:]]
    renamed = [Text(text.text, {"uno": text.spans["one"], "other": text.spans["other"]}) for text in TEXTS]
    # the same characters in all, otherwise divided
    shifted = [Text(TEXTS[0].text + TEXTS[1].text[:1], TEXTS[0].spans), Text(TEXTS[1].text[1:], {}), *TEXTS[2:]]
    given: list[tuple[Any, list[Text], Wording]] = [
        (plain, TEXTS, Wording()),
        (plain, fewer, Wording()),
        (plain, TEXTS[::-1], Wording()),
        (plain, moved, Wording()),
        (plain, renamed, Wording()),
        (plain, shifted, Wording()),
        (added, TEXTS, Wording()),
        (split, TEXTS, Wording()),
        (adding("<|endoftext|>"), TEXTS, Wording()),
        (plain, TEXTS, Wording("Well: ")),
        (plain, TEXTS, Wording(special_tokens=False)),
        (plain, TEXTS, Wording(max_tokens=50)),
        (plain, TEXTS, Wording(shots=[("a", " b")])),
        (plain, TEXTS, Wording(shots=[("a", " b")], separator=" ")),
        (chat, TEXTS, Wording(chat=True)),
        (chat, TEXTS, Wording(chat=True, system="Be short.")),
        (other_chat, TEXTS, Wording(chat=True)),
        (dated, TEXTS, Wording(chat=True)),
    ]
    keys = [digest(*what) for what in given]
    assert len(set(keys)) == len(keys)
    assert digest(plain, list(TEXTS), Wording()) == keys[0]


def test_today_s_date_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    dated = chatting("{{ strftime_now('%Y') }}" + CHATML)
    today = digest(dated, TEXTS, Wording(chat=True))
    frame = Wording(chat=True).frame(dated)
    monkeypatch.setattr(Wording, "frame", lambda self, tokenizer: ("1999" + frame[0][4:], frame[1]))
    assert digest(dated, TEXTS, Wording(chat=True)) != today


def test_what_passes_is_not_in_the_name() -> None:
    tokenizer = tiny_tokenizer()
    key = digest(tokenizer, TEXTS, Wording())
    tokenizer(["a", "a b c d e"], padding=True, truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert digest(tokenizer, TEXTS, Wording()) == key
    assert tokenizer.backend_tokenizer.truncation is not None  # and it is left as it was
    chat = chatting()  # its template plays no part
    assert digest(chat, TEXTS, Wording()) == key


# --- other processes ---

SCRIPT = """
import os, sys, time
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import test_cache as t
from iitkit.data import cache as module
folder = Path(sys.argv[1])
def say(word):
    print(word, flush=True)
"""


def child(body: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that runs ``body``."""
    code = SCRIPT.format(tests=str(ROOT / "tests"), here=str(ROOT / "tests" / "data")) + body
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_another_process_finds_it(tmp_path: Path) -> None:
    key = digest(tiny_tokenizer(), TEXTS, Wording())
    kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
    body = """
counting = t.Counting(t.tiny_tokenizer())
t.kept(folder).prompts(counting, t.TEXTS, t.Wording())
say(f"{t.digest(counting, t.TEXTS, t.Wording())} {counting.texts}")
"""
    for seed in ("0", "1"):
        done = child(body, tmp_path, PYTHONHASHSEED=seed)
        out, err = done.communicate(timeout=120)
        assert out == f"{key} 0\n", err


@pytest.mark.slow
@pytest.mark.parametrize("where", ["tokenising", "writing", "renaming"])
def test_killed_in_the_middle(tmp_path: Path, where: str, warned: Callable[[], list[str]]) -> None:
    body = {
        "tokenising": """
class Slow(t.Counting):
    def __call__(self, text, **options):
        say("now"); time.sleep(600)
t.kept(folder).prompts(Slow(t.tiny_tokenizer()), t.TEXTS, t.Wording())
""",
        "writing": """
plain = module._write
def half(file, prompts):
    plain(file, prompts)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size // 2)
    say("now"); time.sleep(600)
module._write = half
t.kept(folder).prompts(t.tiny_tokenizer(), t.TEXTS, t.Wording())
""",
        "renaming": """
module.PromptCache._make_room = lambda self, size: (say("now"), time.sleep(600))
t.kept(folder).prompts(t.tiny_tokenizer(), t.TEXTS, t.Wording())
""",
    }[where]
    victim = child(body, tmp_path)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "now\n"
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    victim.communicate()
    assert list(tmp_path.glob("*.arrow")) == []  # no half cache
    assert len(files(tmp_path)) == (where != "tokenising")  # what it had begun
    counting = Counting(tiny_tokenizer())
    made = kept(tmp_path).prompts(counting, TEXTS, Wording())
    assert counting.texts == 100
    assert same(made, tokenise(tiny_tokenizer(), TEXTS))
    assert [name.endswith(".arrow") for name in files(tmp_path)] == [True]  # and nothing stray
    assert warned() == []


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    """Both wait for a sign, then ask for the same: one tokenises, the other waits and finds."""
    body = """
class Slow(t.Counting):
    def __call__(self, text, **options):
        time.sleep(1)
        return super().__call__(text, **options)
counting = Slow(t.tiny_tokenizer())
say("ready")
while not (folder / "go").exists(): time.sleep(0.01)
found = t.kept(folder / "cache").prompts(counting, t.TEXTS, t.Wording())
say(f"{counting.texts} {t.same(found, t.tokenise(t.tiny_tokenizer(), t.TEXTS))}")
"""
    both = [child(body, tmp_path) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    said = []
    for one in both:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
        said.append(out)
    assert sorted(said) == ["0 True\n", "100 True\n"]
    assert len(files(tmp_path / "cache")) == 1


def test_without_locks_two_writers_leave_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes while the first is between writing and renaming."""
    one, other = kept(tmp_path), kept(tmp_path)
    plain = PromptCache._make_room
    nested: list[Prompts] = []

    def between(self: PromptCache, size: int) -> None:
        if not nested:
            nested.append(tokenise(tiny_tokenizer(), TEXTS))
            other._keep("0" * 32, nested[0])
        plain(self, size)

    monkeypatch.setattr(PromptCache, "_make_room", between)
    monkeypatch.setattr(PromptCache, "_sweep", lambda self, key: None)  # of a key whose lock it does not hold
    found = one._keep("0" * 32, tokenise(tiny_tokenizer(), TEXTS))
    assert found is not None
    assert same(found, nested[0])
    assert len(files(tmp_path)) == 1


# --- whole or not at all ---


def test_an_exception_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IITKitError, match="the slot is empty"):
        kept(tmp_path).prompts(tiny_tokenizer(), [*TEXTS, Text("a  b", {"one": (2, 2)})], Wording())
    assert files(tmp_path) == []
    for error in (KeyboardInterrupt(), RuntimeError("no")):
        plain = module._write

        def failing(file: Path, prompts: Prompts, error: BaseException = error, plain: Any = plain) -> int:
            plain(file, prompts)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module, "_write", failing)
            with pytest.raises(type(error)):
                kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
        assert files(tmp_path) == []
    kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
    assert len(files(tmp_path)) == 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], list[str]]) -> None:
    def full(file: Path, prompts: Prompts) -> int:
        file.write_bytes(b"ARROW1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    found = kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
    assert same(found, tokenise(tiny_tokenizer(), TEXTS))
    assert files(tmp_path) == []
    assert warned() == [f"data: tokenised prompts are not kept in {tmp_path}: the disk is full"]


@pytest.mark.slow
def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    """No stand-in: the process may not write files of more than 2000 bytes."""
    body = """
import logging, resource
logging.basicConfig(format="%(message)s", stream=sys.stdout)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
found = t.kept(folder).prompts(t.tiny_tokenizer(), t.TEXTS, t.Wording())
say(t.same(found, t.tokenise(t.tiny_tokenizer(), t.TEXTS)))
"""
    done = child(body, tmp_path)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    told, right = out.splitlines()
    assert told.startswith(f"data: tokenised prompts are not kept in {tmp_path}: ")
    assert right == "True"
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    (tmp_path / "taken").write_text("a file")
    found = kept(tmp_path / "taken").prompts(tiny_tokenizer(), TEXTS, Wording())
    assert same(found, tokenise(tiny_tokenizer(), TEXTS))
    assert len(warned()) == 1
    assert warned()[0].startswith(f"data: tokenised prompts are not kept in {tmp_path / 'taken'}: ")
    assert (tmp_path / "taken").read_text() == "a file"


def damaged(content: bytes, how: str) -> bytes:
    if how == "empty":
        return b""
    if how.startswith("cut"):
        return content[: len(content) * int(how[3:]) // 10]
    if how == "longer":
        return content + b"\0"
    at = len(content) * int(how[4:]) // 10
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "how", ["empty", "longer", "cut1", "cut5", "cut9", *(f"flip{tenth}" for tenth in range(10)), "nonsense"]
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, how: str, warned: Callable[[], list[str]]) -> None:
    fresh = kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
    (file,) = tmp_path.glob("*.arrow")
    whole = file.read_bytes()
    fresh = tokenise(tiny_tokenizer(), TEXTS)
    if how == "nonsense":  # its checksum is right
        file.unlink()
        file = file.with_name(f"{file.name[:32]}-{zlib.crc32(b'nonsense'):08x}.arrow")
        file.write_bytes(b"nonsense")
    else:
        file.unlink()  # the old one is mapped: another takes its name
        file.write_bytes(damaged(whole, how))
    counting = Counting(tiny_tokenizer())
    assert same(kept(tmp_path).prompts(counting, TEXTS, Wording()), fresh)
    assert counting.texts == 100
    assert len(warned()) == 1
    assert warned()[0].startswith(f"data: the kept prompts {file.name} are damaged (")
    assert "\n" not in warned()[0]
    (again,) = files(tmp_path)
    assert (tmp_path / again).read_bytes() == whole
    assert same(kept(tmp_path).prompts(counting, TEXTS, Wording()), fresh)
    assert counting.texts == 100


# --- room ---


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    wordings = [Wording(f"{i} ") for i in range(4)]
    keys = [digest(tiny_tokenizer(), TEXTS, wording) for wording in wordings]
    kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, wordings[0])
    size = next(tmp_path.glob("*.arrow")).stat().st_size
    cache = PromptCache(tmp_path, limit=3 * size + size // 2, least=1)
    for i in (1, 2):
        cache.prompts(tiny_tokenizer(), TEXTS, wordings[i])
    for i, file in ((i, next(tmp_path.glob(f"{key}-*"))) for i, key in enumerate(keys[:3])):
        os.utime(file, (1000 + i, 1000 + i))
    cache.prompts(tiny_tokenizer(), TEXTS, wordings[0])  # used again
    cache.prompts(tiny_tokenizer(), TEXTS, wordings[3])
    assert {name[:32] for name in files(tmp_path)} == {keys[0], keys[2], keys[3]}


def test_more_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    kept(tmp_path).prompts(tiny_tokenizer(), TEXTS[:2], Wording())
    before = files(tmp_path)
    PromptCache(tmp_path, limit=4000, least=1).prompts(tiny_tokenizer(), TEXTS, Wording())
    assert files(tmp_path) == before


def test_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / f".{'a' * 32}-1-2.tmp", tmp_path / f".{'b' * 32}-1-2.tmp"
    for file in (old, new):
        file.write_bytes(b"half")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    kept(tmp_path).prompts(tiny_tokenizer(), TEXTS, Wording())
    assert not old.exists()
    assert new.exists()  # it may be another process's, at work


def test_locks_do_not_grow_in_number(tmp_path: Path) -> None:
    for i in range(40):
        kept(tmp_path).prompts(tiny_tokenizer(), TEXTS[:1], Wording(f"{i} "))
    assert len(list(tmp_path.glob(".lock-*"))) <= 16


def test_a_slow_tokenizer_is_refused_before_anything(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(IITKitError, match="Slow gives no character offsets"):
        kept(tmp_path / "new").prompts(Slow(), TEXTS, Wording())
    assert not (tmp_path / "new").exists()


def test_a_task_s_pool_through_the_cache(tmp_path: Path) -> None:
    model = CausalModel(prompt="the {word} and {other}", output="answer")
    model.variables(word=WORDS, other=WORDS)

    @model.mechanism
    def answer(word: str) -> str:
        return f" {word}"

    model.compile()
    setting = model.run({"word": WORDS, "other": WORDS[::-1]})
    for calls in (5, 0):
        counting = Counting(tiny_tokenizer())
        pool = make_pool(model, setting, np.zeros(5, np.int64), counting, {"a": "other"}, "", 7, kept(tmp_path))
        assert counting.texts == calls
        assert [pool.prompts[i].text for i in (0, 4)] == ["the Mary and é", "the é and Mary"]
        assert pool.first == 7
