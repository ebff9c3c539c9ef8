"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

from iitkit.models.cache import cache_folder

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # the networks here are tiny: threads cost more than they save


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, so that nothing they see was kept by an earlier run; only converted bases are."""
    bases = cache_folder() / "bases"
    bases.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "bases").symlink_to(bases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IITKIT_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with a tiny random GPT-2 of 24 layers."""
    return str(save_tiny(tmp_path_factory.mktemp("base") / "tiny-gpt2", "gpt2", layers=24))


@pytest.fixture(scope="session")
def shallow_gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with a tiny random GPT-2 of 4 layers, for runs that need no depth."""
    return str(save_tiny(tmp_path_factory.mktemp("base") / "shallow-gpt2", "gpt2"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with a tiny random LLaMA of 24 layers."""
    return str(save_tiny(tmp_path_factory.mktemp("base") / "tiny-llama", "llama", layers=24))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Start every test from the same global random state."""
    torch.manual_seed(0)
