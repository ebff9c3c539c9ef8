"""TransformerLens's environment: made once, of its own constraints, and used again as long as these stay the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from iitkit.models.cache import cache_folder

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "lens-constraints.txt"
PACKAGES = ("transformer-lens", "transformers", "torch", "safetensors")


def python_of_lens(folder: Path | None = None) -> Path:
    """Return the Python of the environment, after making it where it is not there.

    Args:
        folder: of the environment; in iitkit's cache unless said.

    Raises:
        RuntimeError: pip could not install it.
    """
    folder = cache_folder() / "bench" / "transformer-lens-4.3.0" if folder is None else folder
    python, mark = folder / "bin" / "python", folder / "made-of.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if mark.is_file() and mark.read_text() == CONSTRAINTS.read_text():
            return python
        if (folder / "pyvenv.cfg").is_file():
            shutil.rmtree(folder)
        print(f"setting up TransformerLens in {folder} (once, about 2 minutes)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"TransformerLens could not be installed: {done.stderr.strip()[-800:]}\n"
                "run with --no-peer, or give --lens-env an environment folder"
            )
        mark.write_text(CONSTRAINTS.read_text())
    return python
