"""Fixtures of the contract: its rows, and the files that some of them read."""

from __future__ import annotations

import json

import pytest
from interventions.tables import FILES, GROUPS, NAMED, D, Spec, normal
from safetensors.torch import save as save_tensors


@pytest.fixture(params=GROUPS.values(), ids=list(GROUPS))
def rows(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    return found


@pytest.fixture(params=list(NAMED))
def named(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sparse autoencoders of each kind, 7 features."""
    k = 7
    for kind in ("relu", "jumprelu", "topk"):
        folder = tmp_path_factory.mktemp(kind)
        encoder = normal(D, k, seed=11)  # without the activations' large mean every feature is at times active
        tensors = {"W_enc": encoder - encoder.mean(0), "W_dec": normal(k, D, seed=12)}
        tensors |= {"b_enc": normal(k, seed=13), "b_dec": normal(D, seed=14)}
        config: Spec = {"architecture": "standard" if kind == "relu" else kind, "normalize_activations": "none"}
        if kind == "jumprelu":
            tensors["threshold"] = normal(k, seed=15).abs()
            config["apply_b_dec_to_input"] = False
        if kind == "topk":
            config["k"] = 3
        (folder / "sae.safetensors").write_bytes(save_tensors(tensors))
        (folder / "cfg.json").write_text(json.dumps(config))
        FILES[kind] = str(folder / "sae.safetensors")
    return FILES
