"""Artifacts that are damaged or mean harm: each is refused, and says why; nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts import CONFIG, WEIGHTS, put_weights, rewrite, tensors, weigh, write
from torch import Tensor

import iitkit
from iitkit.errors import IITKitError

Damage = Callable[[Path], object]
BASIS = "gender.space.basis"


def changed(**values: Any) -> Damage:
    return lambda folder: rewrite(folder, lambda config: config.update(values))


def without(key: str) -> Damage:
    return lambda folder: rewrite(folder, lambda config: config.pop(key))


def base(**values: Any) -> Damage:
    return lambda folder: rewrite(folder, lambda config: config["base"].update(values))


def placement(**values: Any) -> Damage:
    return lambda folder: rewrite(folder, lambda config: config["placements"]["gender"].update(values))


def spec(**options: Any) -> Damage:
    return placement(intervention=options)


def added(name: str, **values: Any) -> Damage:
    def add(config: dict[str, Any]) -> None:
        config["placements"][name] = {**config["placements"]["number"], **values}

    return lambda folder: rewrite(folder, add)


def renamed(name: str) -> Damage:
    return lambda folder: rewrite(folder, lambda c: c["placements"].update({name: c["placements"].pop("gender")}))


def named(name: str) -> Damage:
    return lambda folder: rewrite(folder, lambda config: config["sha256"].update({name: "0" * 64}))


def with_tensor(name: str, tensor: Tensor) -> Damage:
    return lambda folder: weigh(folder, {**tensors(folder), name: tensor})


def lacking(name: str) -> Damage:
    return lambda folder: weigh(folder, {key: value for key, value in tensors(folder).items() if key != name})


def text(value: str, file: str = CONFIG) -> Damage:
    return lambda folder: (folder / file).write_text(value, encoding="utf-8")


def cut(folder: Path) -> None:
    put_weights(folder, (folder / WEIGHTS).read_bytes()[:-40])


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def huge(name: str) -> Damage:
    def grow(folder: Path) -> None:
        with (folder / name).open("r+b") as stream:
            stream.truncate(4 * 2**30 + 1)  # sparse: it takes no room

    return grow


def header(claims: dict[str, Any], data: bytes = b"", length: int | None = None) -> Damage:
    """A safetensors file whose header says what it likes."""
    plain = json.dumps(claims).encode()
    return lambda folder: put_weights(
        folder, struct.pack("<Q", len(plain) if length is None else length) + plain + data
    )


def linked(name: str) -> Damage:
    def link(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return link


def vast_rank(folder: Path) -> None:
    with_tensor("gender.edit.A", torch.ones(32, 1))(folder)
    placement(input_width=32, intervention={"name": "LoRA", "rank": 10**12})(folder)


class Harm:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HARM"],)


def pickled(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Harm()))


def tensor(shape: list[int], stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {BASIS: {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}}


DAMAGE: dict[str, tuple[Damage, str]] = {
    # what runs code
    "a pickle beside it": (pickled("extra.pkl"), "holds extra.pkl, which can run code when it is loaded"),
    "weights as .bin": (pickled("pytorch_model.bin"), "holds pytorch_model.bin, which can run code"),
    "weights as .pt": (pickled("interventions.pt"), "holds interventions.pt, which can run code"),
    "a pickle is named": (named("weights.bin"), "names 'weights.bin', which can run code when it is loaded"),
    "code beside it": (text("raise SystemExit", "modeling.py"), "holds modeling.py, which can run code"),
    "a pickle called safetensors": (lambda f: put_weights(f, pickle.dumps(Harm())), "its header claims"),
    "an import path for a name": (spec(name="os.system"), "intervention 'os.system' is a Python path"),
    "an import path of a part": (
        spec(name="Composed", space={"name": "builtins:eval"}, mask={"name": "All"}, edit={"name": "Swap"}),
        "intervention 'builtins:eval' is a Python path",
    ),
    "a class path": (spec(name="Vanilla", class_path="os.system"), "has class_path 'os.system', a Python path"),
    "a class path within": (
        spec(name="Composed", edit={"name": "Swap", "_target_": "os.system"}),
        "has _target_ 'os.system', a Python path",
    ),
    "a package": (placement(packages=["antigravity"]), "comes from package 'antigravity': import it first"),
    "a package's path": (placement(packages=["../../evil"]), "comes from package '../../evil': import it first"),
    # files
    "no config": (lambda folder: (folder / CONFIG).unlink(), "is no artifact: it has no config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "is no artifact: it has no interventions.safetensors"),
    "a path out of the folder": (
        named("../../.ssh/id_rsa"),
        "names the file '../../.ssh/id_rsa': expected a plain name",
    ),
    "an absolute path": (named("/etc/passwd"), "names the file '/etc/passwd': expected a plain name"),
    "a path of Windows": (named("..\\x.safetensors"), "expected a plain name, no path"),
    "a link for a name": (named("."), "names the file '.': expected a plain name"),
    "linked weights": (linked(WEIGHTS), "interventions.safetensors is a link to another place: expected a file"),
    "a linked config": (linked(CONFIG), "config.json is a link to another place: expected a file"),
    "a linked README": (linked("README.md"), "README.md is a link to another place: expected a file"),
    "other tensors are named": (named("more.safetensors"), "expected interventions.safetensors"),
    "other tensors beside it": (
        lambda folder: (folder / "more.safetensors").write_bytes(b""),
        "holds more.safetensors, which config.json has no digest of",
    ),
    "changed bytes": (flip, "is not the file that config.json describes: fetch the artifact again"),
    "huge weights": (huge(WEIGHTS), "more than any artifact's interventions.safetensors: it is not read"),
    "a huge config": (huge(CONFIG), "more than any artifact's config.json: it is not read"),
    # tensors
    "truncated weights": (cut, "bytes of tensors, the file has"),
    "an empty file": (lambda folder: put_weights(folder, b""), "its header claims 0 bytes, the file has 0"),
    "a header of 2^60 bytes": (
        header({}, length=2**60),
        "its header claims 1152921504606846976 bytes, the file has 10",
    ),
    "a header that is none": (
        lambda folder: put_weights(folder, struct.pack("<Q", 4) + b"\xff{[}"),
        "its header is not valid JSON",
    ),
    "a tensor of 2^50 numbers": (header(tensor([2**25, 2**25], 2**52)), "claims 4503599627370496 bytes of tensors"),
    "sizes that overflow": (header(tensor([2**40, 2**40], 4), b"\0" * 4), "cannot be read"),
    "a negative size": (header(tensor([-32, 1], 128), b"\0" * 128), "cannot be read"),
    "an unknown dtype": (header(tensor([32, 1], 128, "OBJECT"), b"\0" * 128), "cannot be read"),
    "offsets that lie": (header(tensor([32, 1], 64), b"\0" * 64), "cannot be read"),
    "half precision": (with_tensor(BASIS, torch.zeros(32, 1).half()), f"tensor '{BASIS}' is float16: expected float32"),
    "bf16": (with_tensor(BASIS, torch.zeros(32, 1).bfloat16()), f"tensor '{BASIS}' is bfloat16: expected float32"),
    "complex numbers": (
        with_tensor(BASIS, torch.zeros(32, 1, dtype=torch.complex64)),
        f"tensor '{BASIS}' is complex64",
    ),
    "integers": (with_tensor(BASIS, torch.eye(32, 1).long()), "placement 'gender'"),
    "another shape": (with_tensor(BASIS, torch.ones(31, 1)), "basis of shape (31, 1): expected (32, 1)"),
    "a vector": (with_tensor(BASIS, torch.ones(32)), "basis of shape (32,): expected (32, 1)"),
    "no orthonormal basis": (with_tensor(BASIS, torch.ones(32, 1)), "basis is not orthonormal"),
    "NaN": (with_tensor(BASIS, torch.full((32, 1), torch.nan)), f"tensor '{BASIS}' holds NaN or infinity"),
    "infinity": (with_tensor("number.space.basis", torch.full((32, 3), torch.inf)), "holds NaN or infinity"),
    "an extra tensor": (with_tensor("other.x", torch.ones(1)), "holds tensors of no placement: other.x"),
    "an extra tensor of a placement": (with_tensor("gender.space.x", torch.ones(1)), "placement 'gender'"),
    "a missing tensor": (lacking(BASIS), "placement 'gender'"),
    # values
    "values of another shape": (
        with_tensor("gender.values", torch.ones(3, 1)),
        "values of shape (3, 1): expected (2, 1)",
    ),
    "values of another rank": (
        with_tensor("gender.values", torch.ones(2, 2)),
        "values of shape (2, 2): expected (2, 1)",
    ),
    "values of fp64": (
        with_tensor("gender.values", torch.ones(2, 1).double()),
        "values of torch.float64: expected finite",
    ),
    "values of NaN": (with_tensor("gender.values", torch.full((2, 1), torch.nan)), "holds NaN or infinity"),
    "values without features": (lacking("gender.values"), "the features of 'female', 'male' are not there"),
    "features without values": (
        with_tensor("number.values", torch.ones(2, 3)),
        "placement 'number': values: expected a list",
    ),
    "a value twice": (placement(values=[{"value": 1, "n": 2}] * 2), "a value stands twice in 1, 1"),
    "a count of none": (placement(values=[{"value": 1, "n": 0}]), "values: expected a list of up to 64 values"),
    "65 values": (placement(values=[{"value": i, "n": 1} for i in range(65)]), "expected a list of up to 64 values"),
    "answers of other values": (placement(answers=["he"]), "answers: expected one for each of its values"),
    # config.json
    "not JSON": (text("{'library': 'iitkit'}"), "config.json is not valid JSON"),
    "not text": (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00{"), "is not text in UTF-8 (byte 0)"),
    "deep JSON": (text("[" * 100_000), "is not valid JSON"),
    "a key twice": (text('{"library": "iitkit", "library": "iitkit"}'), "key 'library' stands twice"),
    "NaN in JSON": (text('{"library": "iitkit", "schema": NaN}'), "NaN is no number"),
    "a list": (text("[]"), "is not the config of an iitkit artifact"),
    "foreign": (changed(library="other"), "is not the config of an iitkit artifact"),
    "a future schema": (changed(schema=3), "has schema 3, this iitkit reads 2: install a newer iitkit"),
    "an old schema": (
        changed(schema=1),
        "has schema 1, this iitkit reads 2: fit again, or install the iitkit that wrote",
    ),
    "no schema": (without("schema"), "has schema None, this iitkit reads 2"),
    "a schema that is true": (changed(schema=True), "has schema True, this iitkit reads 2"),
    "no base": (without("base"), "base is None: expected a mapping"),
    "a base without width": (lambda f: rewrite(f, lambda c: c["base"].pop("width")), "base.width is missing"),
    "a base of no width": (base(width=0), "base.width is 0: expected an integer from 1"),
    "no placements": (changed(placements={}), "placements is {}: expected a mapping of at least one placement"),
    "no digest": (without("sha256"), "sha256 is None: expected a mapping of files to digests"),
    "a digest that is none": (changed(sha256={WEIGHTS: "x"}), "sha256 of interventions.safetensors is 'x'"),
    "a width as text": (placement(width="32"), "placement 'gender'.width is '32': expected an integer from 1"),
    "a width of true": (placement(width=True), "placement 'gender'.width is True: expected an integer from 1"),
    "a vast width": (placement(width=2**40), "placement 'gender'.width is 1099511627776: expected an integer"),
    "another width": (placement(width=33), "basis of shape (32, 1): expected (33, 1)"),
    "an infinite norm": (text('{"library": "iitkit", "schema": 2, "base": 1e999}'), "base is inf: expected a mapping"),
    "a position that is none": (placement(position={"a": 1}), "position is {'a': 1}: expected an integer, a name"),
    "an unknown key": (placement(largset=1.0), "placement 'gender' has no 'largset'. Did you mean 'largest'?"),
    "a path for a name": (renamed("../../gender"), "placement '../../gender': expected a plain name"),
    "a dotted name": (renamed("number.space"), "placement 'number.space': expected a plain name"),
    "a name of nothing": (renamed(""), "placement '': expected a plain name"),
    "shares with nothing": (
        added("again", shared_with="gendr", intervention=None),
        "placement 'again'",
    ),
    # interventions
    "an unknown intervention": (
        spec(name="LowRankSubspac", rank=1),
        "placement 'gender': intervention 'LowRankSubspac' is not registered. Did you mean 'LowRankSubspace'?",
    ),
    "a list for a name": (spec(name=["LowRankSubspace"]), "placement 'gender'"),
    "an unknown option": (
        spec(name="LowRankSubspace", rnk=1),
        "LowRankSubspace has no option 'rnk'. Did you mean 'rank'?",
    ),
    "a rank as text": (spec(name="LowRankSubspace", rank="1"), "placement 'gender'"),
    "another rank": (spec(name="LowRankSubspace", rank=2), "basis of shape (32, 1)"),
    "a vast rank": (vast_rank, "ask for a tensor of more than 16777216 numbers"),
    "a vast rotation": (
        placement(width=10**6, intervention={"name": "BoundlessSubspace"}),
        "ask for a tensor of more than 16777216 numbers",
    ),
    "a file that is read": (spec(name="LowRankSubspace", start="/etc/passwd", rank=2), "basis of shape (32, 1)"),
    # metrics
    "metrics of text": (
        text('{"test": {"iia": "high"}}', "metrics.json"),
        "expected groups of rates, each a finite number",
    ),
    "metrics of infinity": (text('{"test": {"iia": Infinity}}', "metrics.json"), "Infinity is no number"),
    "a vast metric": (
        text('{"test": {"iia": 1e999}}', "metrics.json"),
        "expected groups of rates, each a finite number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    folder = write(tmp_path / "a")
    iitkit.load(folder)  # it was well
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(IITKitError, match=re.escape(message)) as raised:
        iitkit.load(folder)
    assert len(str(raised.value).splitlines()) <= 2
    assert str(raised.value).count(str(folder)) == 1
    assert len(str(raised.value)) < 500 + len(str(folder))
    assert not (tmp_path / "harm").exists()


def test_messages_differ() -> None:
    messages = [message for _, message in DAMAGE.values()]
    shared = {message for message in messages if messages.count(message) > 1}
    assert shared <= {
        *(
            "is not the config of an iitkit artifact",
            "cannot be read",
            "placement 'gender'",
            "holds NaN or infinity",
            "is not valid JSON",
        ),
        *("basis of shape (32, 1)", "expected a list of up to 64 values", "expected a plain name, no path"),
        *("ask for a tensor of more than 16777216 numbers", "expected groups of rates, each a finite number"),
    }


def test_what_is_harmless_loads(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "notes.txt").write_text("mine")
    (folder / "metrics.json").unlink()
    (folder / "README.md").unlink()
    found = iitkit.load(folder)
    assert (list(found.interventions), found.metrics) == (["gender", "number"], {})


# --- a fuzz of config.json ---

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308, 1e-308),
    *("", "x", "gender", "\x00", "é\u202e\U0001f600", "\ud800", "a" * 20_000, "../../x", "os.system", "__class__"),
    *([], {}, [[]], [None], {"": {}}, {"name": "Vanilla"}, {"name": "Identity"}, [1, 2], ["last", -1]),
    *({"name": "RotatedSubspace"}, {"name": "PCASubspace", "rank": 1}, {"name": "SAEFeatures", "file": "/etc/passwd"}),
    *({"name": "Composed", "space": {"name": "Rotation"}}, {"name": "LowRankSubspace", "rank": 10**9}),
    *({"name": "MaskedSubspace", "rank": 10**6}, {"name": "RotatedSubspace", "coordinates": {"gender": 10**12}}),
    *({"name": "BoundlessSubspace"}, {"name": "Noise", "scale": "x"}, {"name": "Constant", "value": [[1]]}),
]


def deep(levels: int, rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if rng.random() < 0.5 else {"name": value}
    return value


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here]
    if isinstance(value, dict):
        found += [path for key in value for path in paths(value[key], (*here, key))]
    elif isinstance(value, list):
        found += [path for i, item in enumerate(value) for path in paths(item, (*here, i))]
    return found


def mutated(config: dict[str, Any], rng: random.Random) -> Any:
    """One to three changes anywhere: another value, a missing key, a new key, a value from elsewhere."""
    made: Any = json.loads(json.dumps(config))
    for _ in range(rng.randint(1, 3)):
        places = paths(made)
        path = places[rng.randrange(len(places))]
        kind = rng.choice(("value", "value", "drop", "key", "move", "deep", "number"))
        new: Any = rng.choice(VALUES)
        if kind == "deep":
            new = deep(rng.choice((5, 50, 400)), rng)
        if kind == "number":
            new = rng.choice((rng.randint(-(2**70), 2**70), rng.uniform(-1e9, 1e9)))
        if kind == "move":
            new = value_at(made, places[rng.randrange(len(places))])
        if not path:
            if rng.random() < 0.1:
                made = new
            continue
        holder = value_at(made, path[:-1])
        if kind == "drop":
            holder.pop(path[-1])
        elif kind == "key" and isinstance(holder, dict):
            holder[rng.choice([*(str(v)[:50] for v in VALUES[14:24]), "head", "joint", "packages", "shared_with"])] = (
                new
            )
        else:
            holder[path[-1]] = json.loads(json.dumps(new))
        if kind == "deep" or not isinstance(made, dict | list):
            break  # nothing walks through that
    return made


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_mutated_configs_raise_our_error_alone(tmp_path: Path) -> None:
    """600 of them; some are harmless and load."""
    folder = write(tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    rng = random.Random(7)
    loaded, refused, longest = 0, set(), 0
    for _ in range(600):
        made = mutated(config, rng)
        written = json.dumps(made)
        if rng.random() < 0.1:  # as no JSON writer would
            at = rng.randrange(len(written))
            written = (
                written[:at] + rng.choice(['"', "{", "}", ",", ":", "\x00", '"a":1,"a":2,', ""]) + written[at + 1 :]
            )
        (folder / CONFIG).write_text(written, encoding="utf-8", errors="surrogatepass")
        try:
            found = iitkit.load(folder)
        except IITKitError as error:
            message = str(error)
            refused.add(re.sub(r"[\d.]+", "0", message.replace(str(folder), ""))[:80])
            longest = max(longest, len(message))
        else:
            loaded += 1
            str(found)
            found.alignment()
            assert all(torch.isfinite(values.features).all() for values in found.values.values())
    assert loaded >= 20
    assert len(refused) >= 40
    assert longest < 1000


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_mutated_weights_raise_our_error_alone(tmp_path: Path, start: int) -> None:
    """Bytes of the header and of the tensors, with a digest that fits."""
    folder = write(tmp_path / "a")
    data = (folder / WEIGHTS).read_bytes()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    rng, refused = random.Random(start), 0
    for _ in range(100):
        made = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.choice((rng.randrange(8), rng.randrange(400), rng.randrange(len(made))))
            made[at] = rng.choice((0, 255, 0x7F, 0x80, ord("9"), ord("{"), rng.randrange(256)))
        if rng.random() < 0.2:
            made = made[: rng.randrange(len(made))]
        (folder / WEIGHTS).write_bytes(bytes(made))
        config["sha256"][WEIGHTS] = hashlib.sha256(made).hexdigest()
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        try:
            iitkit.load(folder)
        except IITKitError:
            refused += 1
    assert refused >= 50
