"""Attribution patching: exact where the network is linear, gradients by finite differences where it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from byhand import activation, logits_of, module_of, padded, prompts
from replaying import SIDES, model_of
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PretrainedConfig

from iitkit.analysis.attribution import attribute
from iitkit.analysis.patching import patch
from iitkit.errors import IITKitError
from iitkit.models.grids import Engine

WIDTH, VOCABULARY = 12, 40


class Mixing(nn.Module):
    """Attention whose pattern is fixed: each token takes the mean of those up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
        mixed: Tensor = self.o_proj(hidden.cumsum(1) / steps)
        return mixed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Mixing(), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(hidden)
        out: Tensor = hidden + self.mlp(hidden)
        return out


class Linear(nn.Module):
    """A language model without a nonlinearity: its logits are a linear function of every activation."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(layers)])
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)
        self.config, self.name_or_path = PretrainedConfig(hidden_size=WIDTH), "linear"

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, **more: Any
    ) -> SimpleNamespace:
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.lm_head(hidden))


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return Linear().eval().requires_grad_(False).double()


def pair(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    rows = prompts((6, 6), seed, VOCABULARY), prompts((6, 6), seed + 1, VOCABULARY)
    return tuple({"input_ids": torch.tensor(x)} for x in rows)  # type: ignore[return-value]


def test_a_linear_network_is_attributed_exactly(linear: nn.Module) -> None:
    told: list[str] = []
    base, source = pair()
    components = ["block_output", "mlp_output", "attention_output"]
    grid = attribute(
        linear, base, source, answers=[5, 6], wrong=[7, 8], components=components, exact=None, tell=told.append
    )
    assert grid.dims == ("component", "layer", "position", "metric", "example")
    assert grid.coords["metric"] == ["attribution", "exact"]
    estimate, exact = (grid.sel(metric=name).values for name in ("attribution", "exact"))
    assert float(np.abs(exact).max()) > 0.01
    assert np.allclose(estimate, exact, rtol=0, atol=1e-12)
    assert grid.about["correlation"] == pytest.approx(1.0, abs=1e-12)
    assert told[0].startswith("2 examples: 55 cells each")  # and all of them at once
    assert told[1:] == ["attribution against patching, 54 of 54 cells: correlation 1.000"]
    patched = patch(
        linear, base, source, answers=[5, 6], wrong=[7, 8], components=components, metrics="logit_difference"
    )
    change = patched.values - patched.references["corrupt"]
    assert np.allclose(exact, change, rtol=0, atol=1e-12)
    gap = patched.references["clean"] - patched.references["corrupt"]
    assert np.allclose(grid.references["clean"][0], gap, atol=1e-12)
    assert not grid.references["nothing"].any()
    assert np.allclose(grid.references["everything"][1], gap, atol=1e-12)  # block outputs are among the cells
    assert np.isnan(grid.references["everything"][0]).all()
    mlps = {"answers": [5, 6], "wrong": [7, 8], "components": "mlp_output", "layers": [1], "positions": [2, 3]}
    patched = patch(linear, base, source, metrics="logit_difference", **mlps)
    some = attribute(linear, base, source, exact=1, **mlps).references["everything"][1]
    assert np.allclose(some, patched.references["everything"] - patched.references["nothing"], atol=1e-12)


def test_noising_turns_the_references_round(linear: nn.Module) -> None:
    base, source = pair(3)
    there = attribute(linear, base, source, answers=5, wrong=7, exact=0)
    back = attribute(linear, base, source, answers=5, wrong=7, exact=0, direction="noising")
    assert np.array_equal(there.values, back.values, equal_nan=True)  # the metric is the same: base and source are
    assert np.array_equal(there.references["clean"], back.references["corrupt"])
    assert np.isnan(there.sel(metric="exact").values).all()
    assert there.about["correlation"] is None


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("metric", ["logit_difference", "log_probability"])
def test_estimates_are_directional_derivatives(family: str, side: Any, metric: str) -> None:
    model = model_of(family, torch.float64)
    bases, sources = prompts((5, 7), 1), prompts((5, 7), 2)
    both = [dict(zip(("input_ids", "attention_mask"), padded(x, side), strict=True)) for x in (bases, sources)]
    grid = attribute(
        model,
        *both,
        answers=5,
        wrong=7,
        metric=metric,
        components=["block_output", "mlp_output"],
        layers=[0, 2],
        exact=0,
    )
    step, tolerance = (1e-5, 1e-7) if family == "gpt2" else (1e-2, 4e-3)  # LLaMA's norms compute in fp32

    def value(ids: list[int], module: nn.Module, position: int, put: Tensor) -> float:
        logits = logits_of(model, ids, [(module, [position], lambda hidden: put)])[-1]
        return float(logits[5] - (logits[7] if metric == "logit_difference" else logits.logsumexp(-1)))

    for row, (base, source) in enumerate(zip(bases, sources, strict=True)):
        for component in ("block_output", "mlp_output"):
            for layer in (0, 2):
                module = module_of(model, family, layer, component)
                ours, theirs = activation(model, base, module), activation(model, source, module)
                for position in (0, 3, len(base) - 1):
                    toward = (theirs - ours)[position]
                    up, down = (value(base, module, position, ours[position] + s * toward) for s in (step, -step))
                    found = grid.sel(component=component, layer=layer, position=position, metric="attribution")
                    assert found.values[row] == pytest.approx((up - down) / (2 * step), abs=tolerance)
        assert np.isnan(grid.values[..., len(base) :, 0, row]).all()


def test_heads_add_up_to_all_of_them() -> None:
    model = tiny_model("llama")
    base, source = ({"input_ids": torch.tensor(prompts((6,), seed))} for seed in (3, 4))
    options: dict[str, Any] = {"answers": 5, "wrong": 7, "exact": 0, "components": "head_attention_value_output"}
    whole, parts = (attribute(model, base, source, **options, heads=heads) for heads in (None, "all"))
    assert parts.dims == ("layer", "head", "position", "metric")
    assert np.allclose(parts.values[..., 0].sum(1), whole.values[..., 0], atol=1e-6)


def test_the_largest_are_patched() -> None:
    model = tiny_model("gpt2")
    base, source = ({"input_ids": torch.tensor(prompts((6, 6), seed))} for seed in (5, 6))
    grid = attribute(model, base, source, answers=[5, 6], wrong=[7, 8], exact=7)
    known = ~np.isnan(grid.sel(metric="exact").values).all(-1)
    assert known.sum() == grid.about["patched"] == 7
    size = np.abs(grid.sel(metric="attribution").mean("example").values)
    ranks = np.argsort(np.argsort(-size.ravel(), kind="stable"))[known.ravel()]
    # 24 cells: the 4 largest, and three from the fifth to the last
    assert sorted(ranks.tolist()) == [0, 1, 2, 3, 4, 14, 23]
    patched = patch(model, base, source, answers=[5, 6], wrong=[7, 8], metrics="logit_difference")
    change = patched.values - patched.references["corrupt"]
    assert np.allclose(grid.sel(metric="exact").values[known], change[known], atol=1e-5)
    pairs = np.stack([grid.sel(metric=name).values[known].ravel() for name in ("attribution", "exact")])
    assert grid.about["correlation"] == pytest.approx(np.corrcoef(pairs)[0, 1], abs=1e-9)


def test_ctrl_c_keeps_the_exact_values_that_are_done_and_failures_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = tiny_model("gpt2"), Engine.table

    def interrupted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        found = run(self, *args, **kwargs)
        found.values[2:] = torch.nan
        found.interrupted = True
        return found

    def failing(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, base, cells, *args, **kwargs)
        found.failed |= {1: "no memory", len(cells) - 1: "none at all"}
        found.values[[1, -1]] = torch.nan
        return found

    options: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "answers": "he", "wrong": "she", "exact": 5}
    prompts = ["Then Mary walked", "Then Sarah walked"], ["Then John walked", "Then Tom walked"]
    whole = attribute(model, *prompts, **options, batch_size=1)
    monkeypatch.setattr(Engine, "table", interrupted)
    part = attribute(model, *prompts, **options, batch_size=1)
    assert part.about["interrupted"] is part.about["unfinished"] is True
    estimates, exact = (part.sel(metric=name).values for name in ("attribution", "exact"))
    assert np.allclose(estimates, whole.sel(metric="attribution").values, atol=1e-6)
    known = ~np.isnan(exact)
    assert known.sum(axis=(0, 1)).tolist() == [2, 0]  # of the first example two cells, of the second none
    assert np.allclose(exact[known], whole.sel(metric="exact").values[known], atol=1e-6)
    monkeypatch.setattr(Engine, "table", failing)
    lost = attribute(model, *prompts, **options)
    assert set(lost.failed.values()) == {"no memory"}
    assert lost.about["failed_references"] == {"everything": "none at all"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metric": "rank"}, "metric 'rank' has no gradient. Attribution patching takes one of logit_difference"),
        ({"metric": "probabilty"}, "metric 'probabilty' has no gradient. Did you mean 'probability'?"),
        ({}, "metric 'logit_difference' needs the right answer"),
        ({"direction": "noisy"}, "direction 'noisy': Did you mean 'noising'? expected denoising, noising"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"exact": -1}, "exact -1: expected a number of cells, or None for all"),
        ({"answers": "he", "wrong": "she", "engine": Engine(tiny_model("gpt2", seed=1))}, "engine: it runs another"),
        ({"answers": "he", "wrong": "she", "layers": [9]}, "layers 9: GPT2LMHeadModel has layers 0 to 3"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(IITKitError) as raised:
        attribute(tiny_model("gpt2"), "Mary walked home", "Mary walked stayed", tokenizer=tiny_tokenizer(), **given)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)
