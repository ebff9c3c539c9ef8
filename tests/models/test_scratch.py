"""Networks from scratch: their sizes, their seeds, their folders; vectors through a run by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from iitkit import collect, interchange, load_base, load_network
from iitkit.batch import Runnable, Tokens, Values
from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.loading import base_identity, load_tokenizer
from iitkit.models.replay import Replay, make_runner
from iitkit.models.runs import PlainRunner, candidate_scores, label_logits
from iitkit.models.scratch import GPT2, GRU, MLP, Llama, Network, base_network
from iitkit.models.scratch_saving import save_network, symbol_tokenizer
from iitkit.models.sites import Site

ALL: list[Network] = [
    MLP([5, 4, 3, 2], "tanh"),
    GRU(7, width=3, hidden=4, layers=2),
    GPT2(7, width=8, layers=2, heads=2, positions=10),
    Llama(7, width=8, layers=2, heads=4, kv_heads=2, neurons=12, positions=10),
]


def names(network: Network) -> str:
    return type(network).__name__


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (ALL[0], 5 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2),
        (ALL[1], 7 * 3 + 12 * (3 + 4 + 2) + 12 * (4 + 4 + 2) + 4 * 7 + 7),
        (ALL[2], 7 * 8 + 10 * 8 + 2 * (12 * 8 * 8 + 13 * 8) + 16),
        (ALL[3], 2 * 7 * 8 + 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12 + 16) + 8),
        (GPT2(3, width=64, layers=3, heads=4, positions=16), 151_296),
    ],
)
def test_sizes(network: Network, expected: int) -> None:
    model = network.build(0)
    assert numbers(model) == expected
    assert not model.training


@pytest.mark.parametrize("network", ALL, ids=names)
def test_weights_are_of_the_seed_alone(network: Network) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = network.build(1), network.build(1), network.build(2)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b, _ in pairs)
    assert any(not torch.equal(a, c) for (_, a), _, c in pairs)
    own = Network.from_spec({**network.spec(), "seed": 1})
    assert all(torch.equal(a, b) for a, b in zip(own.build(9).parameters(), one.parameters(), strict=True))
    assert own.spec() == {**network.spec(), "seed": 1}


@pytest.mark.parametrize("network", ALL, ids=names)
def test_a_saved_network_is_the_network(network: Network, tmp_path: Path) -> None:
    model, identity = base_network(network, "float32", 4)
    assert identity["revision"] == "seed 4"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    folder = save_network(model, tmp_path / "runs" / "network", symbols=[0, 1, 2, 3, 4, "+", "="])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["network"]
    loaded = load_network(str(folder))
    assert type(loaded) is type(model)
    assert not loaded.training
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    found = base_identity(str(folder), loaded)
    assert {key: found[key] for key in ("architecture", "width", "layers", "dtype")} == {
        key: identity[key] for key in ("architecture", "width", "layers", "dtype")
    }
    assert str(found["revision"]).startswith("sha256:")
    assert load_network(str(folder), dtype="float64").state_dict()[name].dtype == torch.float64
    save_network(network.build(5), folder)  # again, over the first
    assert not torch.equal(load_network(str(folder)).state_dict()[name], b)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())


@pytest.mark.parametrize("network", ALL, ids=names)
def test_a_network_keeps_its_dtype(network: Network, tmp_path: Path) -> None:
    model, identity = base_network(network, "bfloat16", 0)
    assert identity["dtype"] == "bfloat16"
    folder = save_network(model, tmp_path / "network")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32), ("float64", torch.float64)):
        loaded = load_network(str(folder), dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert all(torch.equal(a.to(expected), b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert {parameter.dtype for parameter in base_network(network, "auto", 0)[0].parameters()} == {torch.float32}


def test_a_network_is_as_readable_as_any_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folder = save_network(ALL[0].build(0), tmp_path / "network")
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("stops", ["while it is written", "when the earlier one is out of the way"])
def test_an_interrupted_save_leaves_the_earlier_network(
    stops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_network(ALL[0].build(0), tmp_path / "network")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, renamed = Path.rename, []

    def ctrl_c(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    def second(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        if stops == "while it is written":
            patch.setattr("iitkit.models.scratch_networks.save_file", ctrl_c)
        else:
            patch.setattr(Path, "rename", second)
        with pytest.raises(KeyboardInterrupt):
            save_network(ALL[0].build(1), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
    save_network(ALL[0].build(1), folder)
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_a_network_is_saved_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_network(ALL[2].build(0), tmp_path / "network", symbols=list("abcdefg"))
    assert capfd.readouterr() == ("", "")


def test_a_network_of_symbols_reads_them_as_words(tmp_path: Path) -> None:
    """An ordinary folder of transformers: text in, the same ids as the symbols have."""
    folder = save_network(ALL[2].build(0), tmp_path / "network", symbols=["+", "=", 0, 1, 2, 3, 4])
    model, tokenizer = load_base(folder)
    encoded = tokenizer("3 + 1 =", return_tensors="pt")
    assert encoded["input_ids"].tolist() == [[5, 0, 3, 1]]
    assert tokenizer.decode(encoded["input_ids"][0]) == "3 + 1 ="
    assert model(**encoded).logits.shape == (1, 4, 7)
    assert symbol_tokenizer([1, "1"]) is None  # written alike
    assert symbol_tokenizer(["a b"]) is None
    assert symbol_tokenizer([]) is None


def test_a_network_without_text_says_so(tmp_path: Path) -> None:
    folder = save_network(ALL[0].build(0), tmp_path / "network")
    with pytest.raises(IITKitError, match=r"is a network that reads no text: load it with iitkit\.load_network"):
        load_base(folder)
    with pytest.raises(IITKitError, match="reads no text: it has no tokenizer"):
        load_tokenizer(folder)


def test_damaged_folders(tmp_path: Path) -> None:
    folder = save_network(ALL[0].build(0), tmp_path / "network")
    config = json.loads((folder / "config.json").read_text())
    for change, problem in (
        ({"iitkit_network": "CNN"}, "iitkit_network 'CNN': expected one of MLP, GRU"),
        ({"sizes": [5, 4, 2]}, "is no MLP that iitkit saved"),
        ({"depth": 3}, "is no MLP that iitkit saved"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(IITKitError, match=re.escape(problem)):
            load_network(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"layers.0.weight": torch.zeros(4, 5)}, folder / "model.safetensors")
    with pytest.raises(IITKitError, match="is no MLP that iitkit saved"):
        load_network(str(folder))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP([4, 2]), "MLP.sizes: [4, 2]: expected input, hidden layers and classes"),
        (lambda: MLP([4, 0, 2]), "MLP.sizes[1]: 0: expected 1 or more"),
        (lambda: MLP([4, 3, 2], "rellu"), "MLP.activation: 'rellu': expected one of relu"),  # type: ignore[arg-type]
        (lambda: GPT2(), "GPT2: give the number of symbols (vocabulary), or for text the base whose tokenizer"),
        (lambda: GRU(3, tokenizer="x"), "GRU: give the number of symbols (vocabulary), or for text"),
        (lambda: GPT2(3, width=6, heads=4), "GPT2.heads: 4: expected a divisor of the width 6"),
        (lambda: Llama(3, width=8, heads=4, kv_heads=3), "Llama.heads: 4 with 3 kv_heads: expected a divisor"),
        (lambda: GPT2(3, layers=0), "GPT2.layers: 0: expected 1 or more"),
    ],
)
def test_refused_sizes(make: Any, message: str) -> None:
    with pytest.raises(IITKitError, match=re.escape(message)):
        make()


def test_a_network_reads_text_with_a_named_tokenizer(tiny_gpt2: str) -> None:
    network = Llama(tokenizer=tiny_gpt2, width=8, layers=1, heads=2)
    assert network.build(0).get_output_embeddings().weight.shape == (len(load_tokenizer(tiny_gpt2)), 8)  # type: ignore[operator]


def test_a_gru_refuses_padding_on_the_left() -> None:
    model = ALL[1].build(0)
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(IITKitError, match=r"set data\.padding to right"):
        model(torch.tensor([[1, 2, 3]]), attention_mask=mask)


# --- vectors through a run ---


def runnable(base: torch.Tensor, source: torch.Tensor, active: list[list[bool]]) -> Runnable[Values]:
    on = torch.tensor(active)
    zeros = torch.zeros(*on.shape, 1, dtype=torch.long)
    return Runnable(
        base=Values(base),
        sources=(Values(source),),
        active=on,
        source_of=torch.zeros_like(on, dtype=torch.long),
        base_positions=zeros,
        source_positions=zeros,
        position_mask=torch.ones_like(zeros, dtype=torch.bool),
        labels=torch.zeros(len(base), 1, dtype=torch.long),
    )


def test_vectors_are_interchanged_row_by_row() -> None:
    model: Any = MLP([5, 4, 3, 2], seed=0).build(0)
    first, second, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    base, source = torch.randn(3, 5), torch.randn(3, 5)
    locations = [locate(model, Site(layer=0)), locate(model, Site(layer=1))]
    edits = [Vanilla(SiteInfo(width=4), features=[1, 2]), LowRankSubspace(SiteInfo(width=3), rank=2)]
    batch = runnable(base, source, [[True, False], [False, True], [False, False]])
    prepared = PlainRunner(model, locations).prepare(batch)

    def layer0(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ first.weight.T + first.bias)

    def layer1(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ second.weight.T + second.bias)

    low = layer0(base)
    low[0, 1:3] = layer0(source)[0, 1:3]
    high = layer1(low)
    rotation = edits[1].rotation  # type: ignore[attr-defined]
    high[1] += (layer1(layer0(source))[1] - high[1]) @ rotation @ rotation.T
    expected = high @ last.weight.T + last.bias
    with torch.no_grad():
        found = label_logits(prepared, edits, batch.labels)
        plain = label_logits(prepared, None, batch.labels)
    assert found.shape == (3, 1, 2)
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
    assert torch.equal(plain[:, 0], model(base))
    assert torch.equal(found[2], plain[2])
    scores = candidate_scores(prepared, edits, torch.tensor([[[0], [1]]] * 3))
    assert torch.allclose(scores, expected.log_softmax(-1), atol=1e-6)
    assert [feature.shape for feature in prepared.features] == [(1, 4), (1, 3)]
    with torch.no_grad():  # the public functions say the same
        alone = interchange(model, base[:1], source[:1], {"x": (Site(layer=0), edits[0])})
    assert torch.allclose(alone, expected[:1], atol=1e-6)
    assert torch.equal(collect(model, source, {"x": Site(layer=0)})["x"][:, 0], layer0(source))


def test_vectors_are_never_replayed() -> None:
    model = MLP([5, 4, 3, 2]).build(0)
    runner = make_runner(model, [locate(model, Site(layer=0))])
    assert isinstance(runner, PlainRunner)
    assert not isinstance(runner, Replay)


@pytest.mark.parametrize("gradients", [True, False])
def test_gradients_flow_through_sources_where_asked(gradients: bool) -> None:
    model = GPT2(7, width=8, layers=2, heads=2, positions=10, seed=0).build(0).requires_grad_(True)
    ids = torch.tensor([[1, 2, 3], [3, 4, 5]])
    tokens = Tokens(ids, torch.ones_like(ids))
    one = torch.ones(2, 1, 1, dtype=torch.long)
    batch = Runnable(
        base=tokens,
        sources=(Tokens(ids.flip(0), torch.ones_like(ids)),),
        active=one[..., 0].bool(),
        source_of=one[..., 0] * 0,
        base_positions=one,
        source_positions=one,
        position_mask=one.bool(),
        labels=one[..., 0],
    )
    prepared = PlainRunner(model, [locate(model, Site(layer=0))], gradients).prepare(batch)
    assert prepared.features[0].requires_grad is gradients
    with torch.no_grad():
        assert not PlainRunner(model, [locate(model, Site(layer=0))], True).prepare(batch).features[0].requires_grad
