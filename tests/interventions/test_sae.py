"""Sparse autoencoders: the files that the field shares, the three kinds, and the reconstruction error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import Composed, Intervention, SAEFeatures, SiteInfo

D, K = 5, 8
SITE = SiteInfo(D)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(threshold: bool = False) -> dict[str, Tensor]:
    found = {"W_enc": normal(D, K, seed=1), "b_enc": normal(K, seed=2), "W_dec": normal(K, D, seed=3)}
    found["b_dec"] = normal(D, seed=4)
    return {**found, "threshold": normal(K, seed=5).abs()} if threshold else found


def saelens(folder: Path, tensors: dict[str, Tensor], **config: Any) -> str:
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder / "sae_weights.safetensors")


def gemma_scope(folder: Path, tensors: dict[str, Tensor]) -> str:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(folder / "params.npz", **arrays)
    return str(folder / "params.npz")


def gemma_scope_2(folder: Path, tensors: dict[str, Tensor]) -> str:
    """As the Hub has them: lower-case names, and a config.json that says nothing of the maths."""
    spelt = {name.replace("W_", "w_"): tensor for name, tensor in tensors.items()}
    save_file(spelt, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "type": "sae"}))
    return str(folder / "params.safetensors")


def features(kind: str, w: dict[str, Tensor], x: Tensor, centred: bool) -> Tensor:
    """One row and one feature at a time, from the papers."""
    rows = []
    for row in x - w["b_dec"] if centred else x:
        before = [float(row @ w["W_enc"][:, i] + w["b_enc"][i]) for i in range(K)]
        if kind == "jumprelu":
            after = [b if b > float(w["threshold"][i]) and b > 0 else 0.0 for i, b in enumerate(before)]
        elif kind == "topk":
            largest = sorted(range(K), key=lambda i: -before[i])[:3]
            after = [max(b, 0.0) if i in largest else 0.0 for i, b in enumerate(before)]
        else:
            after = [max(b, 0.0) for b in before]
        rows.append(torch.tensor(after))
    return torch.stack(rows)


CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "standard": ("standard", True, {"architecture": "standard", "normalize_activations": "none"}),
    "standard of old": ("standard", True, {"activation_fn_str": "relu", "apply_b_dec_to_input": True}),
    "standard, not centred": ("standard", False, {"architecture": "standard", "apply_b_dec_to_input": False}),
    "jumprelu": ("jumprelu", False, {"architecture": "jumprelu", "apply_b_dec_to_input": False}),
    "jumprelu, centred": ("jumprelu", True, {"architecture": "jumprelu", "apply_b_dec_to_input": True}),
    "topk": ("topk", True, {"architecture": "topk", "k": 3}),
    "topk of old": (
        "topk",
        True,
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
    ),
    "Gemma Scope": ("jumprelu", False, {}),
    "Gemma Scope 2": ("jumprelu", False, {"small": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_swapped_and_the_reconstruction_error_stays(case: str, tmp_path: Path) -> None:
    kind, centred, config = CASES[case]
    w = weights(threshold=kind == "jumprelu")
    if not config:
        file = gemma_scope(tmp_path, w)
    elif "small" in config:
        file = gemma_scope_2(tmp_path, w)
    else:
        file = saelens(tmp_path, w, **config)
    base, source = 2 * normal(6, D, seed=6), 2 * normal(6, D, seed=7)
    before, after = features(kind, w, base, centred), features(kind, w, source, centred)
    assert 0.1 < float((before > 0).float().mean()) < 0.9
    rebuilt = before @ w["W_dec"] + w["b_dec"]
    error = base - rebuilt
    assert float(error.abs().max()) > 0.5  # a lossy one
    for chosen in (None, [1, 6, 2]):
        mixed = before.clone()
        columns = list(range(K)) if chosen is None else chosen
        mixed[:, columns] = after[:, columns]
        expected = mixed @ w["W_dec"] + w["b_dec"] + error
        found = SAEFeatures(SITE, file, features=chosen)(base, source)
        assert (found - expected).abs().max() < 1e-4
    zero = SAEFeatures(SITE, file, features=[1, 6, 2], edit="zero")
    assert (zero(base) - (base - before[:, [1, 6, 2]] @ w["W_dec"][[1, 6, 2]])).abs().max() < 1e-4
    mean = SAEFeatures(SITE, file, edit="mean")
    for part in source.split(4):  # type: ignore[no-untyped-call]
        mean.observe(part)
    mean.finish()
    assert (mean(base) - (base + (after.mean(0) - before) @ w["W_dec"])).abs().max() < 1e-4


def test_weights_are_frozen_and_kept_in_fp32(tmp_path: Path) -> None:
    w = {name: tensor.half() for name, tensor in weights().items()}
    made = SAEFeatures(SITE, saelens(tmp_path, w, architecture="standard"), gate="sigmoid")
    assert [name for name, _ in made.named_parameters()] == ["mask.gates"]
    state = made.state_dict()
    assert state["space.W_enc"].dtype == torch.float32
    assert torch.equal(state["space.W_enc"], w["W_enc"].float())
    assert made.effective_size() == 0.0  # of 8 features
    assert made.penalty().item() == pytest.approx(4.0)


def test_only_the_named_file_is_read_and_only_when_it_is_made(tmp_path: Path) -> None:
    file = saelens(tmp_path, weights(), architecture="standard")
    made = SAEFeatures(SITE, file, features=[2])
    tensors = made.released().state_dict()
    for path in tmp_path.iterdir():
        path.unlink()
    rebuilt = Intervention.from_spec(made.spec(), SITE, tensors)
    base, source = normal(3, D, seed=1), normal(3, D, seed=2)
    assert torch.equal(rebuilt(base, source), made(base, source))
    with pytest.raises(IITKitError, match="the stored autoencoder is for activations of width 5, the site's is 6"):
        Intervention.from_spec(made.spec(), SiteInfo(6), tensors)


@pytest.mark.parametrize("top", [0, -1, K + 1, float("nan"), [1, 2]])
def test_a_stored_number_of_features_that_cannot_be_is_refused(top: Any, tmp_path: Path) -> None:
    made = SAEFeatures(SITE, saelens(tmp_path, weights(), architecture="topk", k=3))
    tensors = {**made.released().state_dict(), "space.top": torch.tensor(top)}
    with pytest.raises(IITKitError, match=r"the stored autoencoder: k is .*: expected 1 to its 8 features"):
        Intervention.from_spec(made.spec(), SITE, tensors)


def broken(change: Any, **config: Any) -> Any:
    def write(folder: Path) -> str:
        w = weights()
        change(w)
        return saelens(folder, w, **{"architecture": "standard", **config})

    return write


def transcoder(folder: Path) -> str:
    return gemma_scope_2(folder, {**weights(threshold=True), "affine_skip_connection": normal(D, D, seed=9)})


def alter(**tensors: Tensor | None) -> Any:
    def change(w: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor is None:
                del w[name]
            else:
                w[name] = tensor

    return change


def text(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def pickled(folder: Path) -> str:
    np.savez(folder / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    return str(folder / "params.npz")


def without_config(folder: Path) -> str:
    file = saelens(folder, weights(), architecture="standard")
    (folder / "cfg.json").unlink()
    return file


BROKEN: dict[str, tuple[Any, str]] = {
    "another width": (
        broken(alter(W_enc=normal(D + 1, K, seed=1))),
        "is for activations of width 6, the site's is 5",
    ),
    "no matrix": (broken(alter(W_enc=torch.tensor(1.0))), "W_enc has shape (), expected 5 × features"),
    "a centre of another shape": (broken(alter(b_dec=normal(D + 1, seed=1))), "b_dec has shape (6,), expected (5,)"),
    "a transcoder": (transcoder, "is a transcoder (it has affine_skip_connection), no sparse autoencoder of one site"),
    "a missing tensor": (broken(alter(W_dec=None)), "has no tensor 'W_dec': it holds W_enc, b_dec, b_enc"),
    "no threshold": (broken(alter(), architecture="jumprelu"), "has no tensor 'threshold': it holds"),
    "a wrong shape": (broken(alter(b_enc=normal(K + 1, seed=1))), "b_enc has shape (9,), expected (8,)"),
    "a decoder of another shape": (
        broken(alter(W_dec=normal(K, D - 1, seed=1))),
        "W_dec has shape (8, 4), expected (8, 5)",
    ),
    "gated": (broken(alter(), architecture="gated"), "architecture 'gated' is not supported: expected standard"),
    "tanh": (broken(alter(), activation_fn_str="tanh-relu"), "activation 'tanh-relu' is not supported"),
    "normalised": (
        broken(alter(), normalize_activations="layer_norm"),
        "normalize_activations 'layer_norm' is not supported: expected 'none'",
    ),
    "scaled": (
        broken(alter(), normalize_activations="expected_average_only_in"),
        "normalize_activations 'expected_average_only_in' is not supported",
    ),
    "heads": (broken(alter(), reshape_activations="hook_z"), "reshape_activations 'hook_z' is not supported"),
    "finetuned": (broken(alter(), finetuning_scaling_factor=True), "finetuning_scaling_factor True is not supported"),
    "topk without k": (broken(alter(), architecture="topk"), "its cfg.json gives no k for topk"),
    "too large a k": (broken(alter(), architecture="topk", k=9), "k is 9: expected 1 to its 8 features"),
    "no cfg.json": (without_config, "needs SAELens' cfg.json beside it"),
    "no file": (lambda folder: str(folder / "none.safetensors"), "there is no file"),
    "not safetensors": (lambda folder: text(folder, "a.safetensors", b"nothing"), "cannot be read"),
    "not npz": (lambda folder: text(folder, "a.npz", b"nothing"), "cannot be read"),
    "a pickle": (lambda folder: text(folder, "a.pt", b"nothing"), "expected a .safetensors or an .npz file"),
    "objects in npz": (pickled, "cannot be read: Object arrays cannot be loaded when allow_pickle=False"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_used_are_refused(case: str, tmp_path: Path) -> None:
    write, message = BROKEN[case]
    file = write(tmp_path)
    with pytest.raises(IITKitError, match=re.escape(message)) as caught:
        SAEFeatures(SITE, file)
    assert str(tmp_path) in str(caught.value)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    file = saelens(tmp_path, weights(), architecture="standard")
    with pytest.raises(IITKitError, match=r"features \[1\] and gate 'sigmoid': give one"):
        SAEFeatures(SITE, file, features=[1], gate="sigmoid")
    with pytest.raises(IITKitError, match=r"temperature 1\.0: only a gate has one"):
        SAEFeatures(SITE, file, temperature=1.0)
    with pytest.raises(IITKitError, match="indices: coordinate 8: expected 0 to 7"):
        SAEFeatures(SITE, file, features=[8])
    with pytest.raises(IITKitError, match="SAE needs the option 'file'"):
        Composed(SITE, {"name": "SAE"})
