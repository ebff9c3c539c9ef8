"""Patching grids against one hooked forward for each cell, by hand, one unpadded prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import DTYPES, PadSide, activation, gram_schmidt, hooks_of, logits_of, module_of, padded, prompts, swap
from replaying import SIDES, model_of
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn

from iitkit import CounterfactualDataModule, LowRankSubspace, Mean, Site, SiteInfo, Sizes
from iitkit.analysis.patching import patch
from iitkit.analysis.prompts import Prompt
from iitkit.batch import IGNORED
from iitkit.errors import IITKitError
from iitkit.models.grids import Engine
from iitkit.tasks import IndirectObject, PronounGender

FAMILIES = ("gpt2", "llama", "gptj")
IN_FP32 = ("gptj", torch.float64)  # GPT-J computes its attention in fp32, whatever its weights are
METRICS = (
    "logit_difference",
    "recovered_logit_difference",
    "probability",
    "log_probability",
    "rank",
    "top1",
    "kl_from_clean",
    "kl_to_clean",
)
LENGTHS = (5, 8, 6)


def by_hand(metric: str, logits: Tensor, clean: Tensor, corrupt: Tensor, answer: int, wrong: int) -> float:
    """One row's metric, in fp64, written out."""
    logits, clean, corrupt = logits.double(), clean.double(), corrupt.double()
    p, q = clean.softmax(-1), logits.softmax(-1)
    gap = [float(x[answer] - x[wrong]) for x in (logits, clean, corrupt)]
    told: dict[str, Callable[[], float]] = {
        "logit_difference": lambda: gap[0],
        "recovered_logit_difference": lambda: (gap[0] - gap[2]) / (gap[1] - gap[2]),
        "probability": lambda: float(q[answer]),
        "log_probability": lambda: math.log(float(q[answer])),
        "rank": lambda: 1.0 + int((logits > logits[answer]).sum()),
        "top1": lambda: float(int(logits.argmax()) == answer),
        "kl_from_clean": lambda: float((p * (p / q).log()).sum()),
        "kl_to_clean": lambda: float((q * (q / p).log()).sum()),
    }
    return told[metric]()


def inputs(rows: Sequence[Sequence[int]], side: PadSide) -> dict[str, Tensor]:
    """What a tokenizer returns."""
    ids, mask = padded(rows, side)
    return {"input_ids": ids, "attention_mask": mask}


def drawn(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Ragged bases, and sources of the same lengths that begin as they do."""
    bases, sources = prompts(LENGTHS, seed), prompts(LENGTHS, seed + 1)
    return bases, [base[:2] + source[2:] for base, source in zip(bases, sources, strict=True)]


def check(found: Any, expected: float, metric: str, scale: float, tolerance: float) -> None:
    if metric == "rank":  # in fp32 two logits may change places
        assert abs(found - expected) <= (1 if tolerance > 1e-8 else 0)
    elif metric == "top1":
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=0, abs=tolerance * scale), metric


CELLS = ("block_output", "mlp_output", "attention_output")


@cache
def hooked(family: str, dtype: torch.dtype) -> list[dict[tuple[int, ...], Tensor]]:
    """For each row the logits of every cell (component, layer, position); () is the base, (1,) the source."""
    model, found = model_of(family, dtype), []
    for base, source in zip(*drawn(), strict=True):
        made: dict[tuple[int, ...], Tensor] = {(): logits_of(model, base)[-1], (1,): logits_of(model, source)[-1]}
        for c, component in enumerate(CELLS):
            for layer in range(4):
                module = module_of(model, family, layer, component)
                values = activation(model, source, module)
                for position in range(len(base)):
                    edit = [(module, [position], _put(values[position]))]
                    made[c, layer, position] = logits_of(model, base, edit)[-1]
        found.append(made)
    return found


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("family", "dtype"), [(f, d) for f in FAMILIES for d in DTYPES if (f, d) != IN_FP32], ids=str)
def test_grid_is_one_hooked_forward_a_cell(family: str, dtype: torch.dtype, side: PadSide, direction: str) -> None:
    model = model_of(family, dtype)
    bases, sources = drawn()
    answers, wrong = [5, 6, 7], [8, 9, 10]
    grid = patch(
        model,
        inputs(bases, side),
        inputs(sources, side),
        answers=answers,
        wrong=wrong,
        components=CELLS,
        metrics=METRICS,
        direction=direction,  # type: ignore[arg-type]
        engine=Engine(model),
    )
    assert grid.dims == ("component", "layer", "position", "metric", "example")
    assert grid.shape == (3, 4, 8, 8, 3)
    for row, made in enumerate(hooked(family, dtype)):
        own, theirs = made[()], made[1,]
        clean, corrupt = (theirs, own) if direction == "denoising" else (own, theirs)
        assert bool(np.isnan(grid.values[:, :, len(bases[row]) :, :, row]).all())
        for m, metric in enumerate(METRICS):
            told = {key: by_hand(metric, x, clean, corrupt, answers[row], wrong[row]) for key, x in made.items()}
            scale = max(1.0, *(abs(x) for x in told.values()))
            for key, expected in told.items():
                if len(key) == 3:
                    check(grid.values[(*key, m, row)], expected, metric, scale, DTYPES[dtype])
            ends = {"clean": clean, "corrupt": corrupt, "nothing": own}
            ends["everything"] = theirs  # block outputs are among the cells
            for name, logits in ends.items():
                expected = by_hand(metric, logits, clean, corrupt, answers[row], wrong[row])
                check(grid.references[name][m, row], expected, metric, scale, DTYPES[dtype])


def _put(value: Tensor) -> Any:
    return lambda hidden: value


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_and_gqa_heads(family: str) -> None:
    model = model_of(family)
    bases, sources = drawn(3)
    both = inputs(bases[:1], "right"), inputs(sources[:1], "right")
    metric = "kl_from_clean"
    clean = logits_of(model, sources[0])[-1]

    def expected(module: nn.Module, position: int, columns: slice, side: str = "output") -> float:
        seen: list[Tensor] = []
        with torch.no_grad():
            for ids, put in ((sources[0], False), (bases[0], True)):

                def hook(module: nn.Module, args: Any, output: Any = None, put: bool = put) -> Any:
                    tensor = args[0] if output is None else output
                    seen.append(tensor)
                    if not put:
                        return None
                    new = tensor.clone()
                    new[0, position, columns] = seen[0][0, position, columns]
                    return (new,) if output is None else new

                register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
                handle = register(hook)
                logits = model(torch.tensor([ids])).logits[0, -1]
                handle.remove()
        return by_hand(metric, logits, clean, clean, 0, 1)

    root: Any = model
    for layer in (0, 2):
        grid = patch(
            model, *both, metrics=metric, components="head_attention_value_output", heads="all", layers=[layer]
        )
        assert grid.dims == ("layer", "head", "position")
        assert grid.coords["head"] == [0, 1, 2, 3]
        block = root.transformer.h[layer].attn if family == "gpt2" else root.model.layers[layer].self_attn
        projection = block.c_proj if family == "gpt2" else block.o_proj
        for head in range(4):
            for position in (2, 4):
                wanted = expected(projection, position, slice(8 * head, 8 * head + 8), "input")
                assert grid.sel(layer=layer, head=head, position=position) == pytest.approx(wanted, abs=1e-6)
        grid = patch(model, *both, metrics=metric, components="head_key_output", heads="all", layers=[layer])
        keys = 4 if family == "gpt2" else 2  # two key-value heads for four queries
        assert grid.coords["head"] == list(range(keys))
        for head in range(keys):
            if family == "gpt2":
                wanted = expected(block.c_attn, 2, slice(32 + 8 * head, 40 + 8 * head))
            else:
                wanted = expected(block.k_proj, 2, slice(8 * head, 8 * head + 8))
            assert grid.sel(layer=layer, head=head, position=2) == pytest.approx(wanted, abs=1e-6)
    some = patch(model, *both, metrics=metric, components="head_value_output", heads=[1], layers=[1, 2])
    assert some.shape == (2, 1, 5)
    with pytest.raises(IITKitError, match=r"heads: mlp_output has none|has no head"):
        patch(model, *both, metrics=metric, components="mlp_output", heads="all")
    if family == "llama":
        with pytest.raises(IITKitError, match=r"different numbers of them \(head_query_output 4, head_key_output 2\)"):
            patch(model, *both, components=["head_query_output", "head_key_output"], heads="all")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_everything_is_all_of_the_grids_own_cells(family: str) -> None:
    """Of some heads in some layers at one position: not of the others, and not elsewhere."""
    root: Any = model_of(family)
    bases, sources = drawn(3)
    both = inputs(bases[:1], "right"), inputs(sources[:1], "right")
    options: dict[str, Any] = {"metrics": "kl_from_clean", "components": "head_attention_value_output"}
    grid = patch(root, *both, **options, heads=[1, 3], layers=[1, 2], positions=[3])
    blocks = [
        root.transformer.h[i].attn.c_proj if family == "gpt2" else root.model.layers[i].self_attn.o_proj for i in (1, 2)
    ]
    entries = [*range(8, 16), *range(24, 32)]
    seen: dict[Any, Tensor] = {}

    def keep(module: nn.Module, args: Any) -> None:
        seen[module] = args[0].clone()

    def put(module: nn.Module, args: Any) -> Any:
        new = args[0].clone()
        new[0, 3, entries] = seen[module][0, 3, entries]
        return (new,)

    logits = []
    for ids, hook in ((sources[0], keep), (bases[0], put)):
        handles = [module.register_forward_pre_hook(hook) for module in blocks]
        with torch.no_grad():
            logits.append(root(torch.tensor([ids])).logits[0, -1])
        for handle in handles:
            handle.remove()
    expected = by_hand("kl_from_clean", logits[1], logits[0], logits[0], 0, 1)
    assert float(grid.references["everything"]) == pytest.approx(expected, abs=1e-6)
    rest = patch(root, *both, **options, heads="all", layers=[1, 2], positions=[3]).references["everything"]
    assert abs(float(rest) - expected) > 1e-4


@pytest.mark.parametrize("component", ["block_output", "head_value_output", "attention_weight", "mlp_hidden"])
def test_patching_nothing_is_run(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    bases, sources = drawn(3)
    n = None if component != "attention_weight" else 1  # patterns are of prompts of one length
    both = inputs(bases[:n], "left"), inputs(sources[:n], "left")
    found: list[Any] = []
    run = Engine.table
    monkeypatch.setattr(Engine, "table", lambda *args, **kwargs: found.append(run(*args, **kwargs)) or found[-1])
    grid = patch(model, *both, components=component, metrics="log_probability", answers=5)
    assert not bool(found[0].filled[-1])
    assert not found[0].failed
    expected = [float(logits_of(model, base)[-1].log_softmax(-1)[5]) for base in bases[:n]]
    assert grid.references["nothing"].ravel().tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_patterns() -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(5)
    base, source = bases[1], sources[1]
    grid = patch(
        model,
        inputs([base], "right"),
        inputs([source], "right"),
        components="attention_weight",
        heads="all",
        layers=[1],
    )
    assert grid.about["metric"] == "kl_from_clean"
    untyped: Any = model
    attention = untyped.transformer.h[1].attn

    def run(ids: list[int], pattern: Tensor | None, head: int, query: int) -> tuple[Tensor, Tensor]:
        """GPT-2's attention of layer 1 written out, with one row of one head's pattern replaced."""
        seen: list[Tensor] = []

        def forward(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            q, k, v = (x.view(1, -1, 4, 8).transpose(1, 2) for x in attention.c_attn(hidden).split(32, dim=2))
            scores = (q @ k.transpose(2, 3)) / math.sqrt(8)
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
            weights = scores.softmax(-1)
            seen.append(weights.clone())
            if pattern is not None:
                weights[0, head, query] = pattern[0, head, query]
            mixed = (weights @ v).transpose(1, 2).reshape(1, -1, 32)
            return (attention.c_proj(mixed), *output[1:])

        handle = attention.register_forward_hook(forward, with_kwargs=True)
        try:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
        finally:
            handle.remove()
        return logits, seen[0]

    clean, pattern = run(source, None, 0, 0)
    for head in range(4):
        for query in (3, 7):
            wanted = by_hand("kl_from_clean", run(base, pattern, head, query)[0], clean, clean, 0, 1)
            assert grid.sel(layer=1, head=head, position=query) == pytest.approx(wanted, abs=1e-6)


def test_named_positions_in_prompts_of_different_lengths() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    base = [Prompt("Yesterday, Mary walked home because", {"name": "Mary"}), Prompt("Mary was sick", {"name": "Mary"})]
    source = [Prompt("Today, John stayed because", {"name": "John"}), Prompt("On Monday, John", {"name": "John"})]
    grid = patch(
        model,
        base,
        source,
        tokenizer=tokenizer,
        positions=["name", "last"],
        answers=["he", "he"],
        wrong=["she", "she"],
        metrics="logit_difference",
    )
    assert grid.coords["position"] == ["name", "last"]
    assert grid.coords["example"] == [prompt.text for prompt in base]
    he, she = (tokenizer(word)["input_ids"][0] for word in (" he", " she"))
    for b, s in zip(base, source, strict=True):
        ours, theirs = tokenizer(b.text)["input_ids"], tokenizer(s.text)["input_ids"]
        words = [tokenizer.convert_ids_to_tokens(ids) for ids in (ours, theirs)]
        at = {
            "name": tuple(
                next(i for i, word in enumerate(said) if word.endswith(name))
                for said, name in zip(words, ("ary", "John"), strict=True)
            ),
            "last": (len(ours) - 1, len(theirs) - 1),
        }
        for layer in range(4):
            module = module_of(model, "llama", layer, "block_output")
            values = activation(model, theirs, module)
            for name, (into, of) in at.items():
                logits = logits_of(model, ours, [(module, [into], _put(values[of]))])[-1]
                cell = {"layer": layer, "position": name, "example": b.text}
                assert grid.sel(**cell) == pytest.approx(float(logits[he] - logits[she]), abs=1e-4)
    with pytest.raises(IITKitError, match=r"has 6 tokens, its source \d+: name the positions"):
        patch(model, base, source, tokenizer=tokenizer)
    one = patch(model, base[0], source[0], tokenizer=tokenizer, positions="name", answers="he")
    assert one.dims == ("layer",)
    assert one.about["position"] == "name"
    assert one.about["metric"] == "probability"
    assert one.about["prompts"] == [{"base": base[0].text, "source": source[0].text, "answer": " he"}]


@pytest.mark.parametrize("answer", [5, np.int64(5), np.array([5]), torch.tensor(5), torch.tensor([5])], ids=repr)
def test_answers_as_tokens_of_any_kind(answer: Any) -> None:
    model = tiny_model("gpt2")
    base, source = drawn(3)[0][0], drawn(3)[1][0]
    grid = patch(model, inputs([base], "left"), inputs([source], "left"), answers=answer, metrics="probability")
    expected = float(logits_of(model, source)[-1].softmax(-1)[5])
    assert float(grid.references["clean"]) == pytest.approx(expected, rel=1e-5)


def test_windows_and_layers() -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(7)
    base, source = bases[0], sources[0]
    grid = patch(
        model, inputs([base], "left"), inputs([source], "left"), components="mlp_output", window=3, layers=[0, 2]
    )
    clean = logits_of(model, source)[-1]
    for layer, window in ((0, (0, 1)), (2, (1, 2, 3))):
        modules = [module_of(model, "gpt2", at, "mlp_output") for at in window]
        edits = [(module, [3], _put(activation(model, source, module)[3])) for module in modules]
        wanted = by_hand("kl_from_clean", logits_of(model, base, edits)[-1], clean, clean, 0, 1)
        assert grid.sel(layer=layer, position="3") == pytest.approx(wanted, abs=1e-6)


def test_trained_interventions_in_the_same_grid() -> None:
    model = tiny_model("llama")
    bases, sources = drawn(9)
    bases_of = [gram_schmidt(torch.randn(32, 4, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    made = [LowRankSubspace(SiteInfo(32), rank=4) for _ in bases_of]
    for edit, basis in zip(made, bases_of, strict=True):
        edit.space.freeze({"basis": basis})
    grid = patch(
        model,
        inputs(bases, "right"),
        inputs(sources, "right"),
        interventions={"number": (Site(1, position=-1), made[0]), "other": made[1]},
        answers=5,
        metrics="log_probability",
    )
    labels = ["block_output", "block_output: number", "block_output: other"]
    assert grid.coords["component"] == labels
    for row, (base, source) in enumerate(zip(bases, sources, strict=True)):
        for layer in range(4):
            module = module_of(model, "llama", layer, "block_output")
            position = len(base) - 2
            value = activation(model, source, module)[position]
            for label, basis in zip(labels, (None, *bases_of), strict=True):
                logits = logits_of(model, base, [(module, [position], swap(value, basis))])[-1]
                cell = grid.sel(component=label, layer=layer, position=position)
                assert cell.values[row] == pytest.approx(float(logits.log_softmax(-1)[5]), abs=1e-4)
    narrow = LowRankSubspace(SiteInfo(16), rank=2)
    with pytest.raises(IITKitError, match=r"block_output: x: the intervention is for width 16, block_output has 32"):
        patch(model, inputs(bases, "right"), inputs(sources, "right"), interventions={"x": narrow})


@pytest.mark.parametrize("padding", ["right", "left"])
def test_pairs_of_a_task(padding: Any) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    data = CounterfactualDataModule(
        IndirectObject(), Sizes(train=8, validation=8, test=12, test_templates=8), eval_batch_size=8, padding=padding
    )
    grid = patch(
        model,
        data,
        tokenizer=tokenizer,
        variable="io_position",
        positions=["subject", "last"],
        pairs=10,
        batch_size=4,
        layers=[1, 3],
    )
    assert grid.coords["metric"] == ["iia", "iia_flipped", "iia_kept"]
    assert grid.coords["example"] == [f"pair {i}" for i in range(10)]
    rows = [(batch, i) for batch in data.every_pair("test") for i in range(len(batch))][:10]
    flipped = []
    for number, (batch, i) in enumerate(rows):
        base, source = (x.ids[i][x.mask[i].bool()].tolist() for x in (batch.base, batch.sources[0]))
        candidates, label = batch.candidates[i, :, 0].tolist(), int(batch.label[i])
        flipped.append(bool(batch.flipped[i]))
        for p, name in enumerate(("subject", "last")):
            start_b = int(batch.base.mask[i].long().argmax())
            start_s = int(batch.sources[0].mask[i].long().argmax())
            into, of = int(batch.base_positions[i, p, 0]) - start_b, int(batch.source_positions[i, p, 0]) - start_s
            for layer in (1, 3):
                module = module_of(model, "llama", layer, "block_output")
                value = activation(model, source, module)[of]
                logits = logits_of(model, base, [(module, [into], _put(value))])[-1]
                right = float(max(range(2), key=lambda k: float(logits[candidates[k]])) == label)
                cell = grid.sel(layer=layer, position=name, example=f"pair {number}")
                assert cell.sel(metric="iia") == right
                assert cell.sel(metric="iia_flipped" if flipped[-1] else "iia_kept") == right
                assert math.isnan(cell.sel(metric="iia_kept" if flipped[-1] else "iia_flipped"))
    mean = grid.mean("example")
    assert grid.n("example").sel(layer=1, position="last", metric="iia_flipped") == sum(flipped)
    assert 0 <= mean.sel(layer=3, position="last", metric="iia") <= 1
    assert grid.about["task"] == "IndirectObject"
    with pytest.raises(IITKitError, match="need the variable that is interchanged"):
        patch(model, data, tokenizer=tokenizer, positions=["last"])
    for changes, says in (
        ({"pairs": 0}, "pairs 0: expected 1 or more"),
        ({"prefix": "<|endoftext|>"}, "prefix: pairs of a task or a dataset bring theirs along"),
    ):
        with pytest.raises(IITKitError, match=says):
            patch(model, data, tokenizer=tokenizer, variable="io_position", positions=["last"], **changes)
    with pytest.raises(IITKitError, match="need named positions"):
        patch(model, data, tokenizer=tokenizer, variable="io_position")
    with pytest.raises(IITKitError, match=r"no split 'tests'\. Did you mean 'test'"):
        patch(model, data, tokenizer=tokenizer, variable="io_position", positions="last", split="tests")
    with pytest.raises(IITKitError, match="metric 'recovered_logit_difference' needs a clean prompt that answers as"):
        patch(
            model,
            data,
            tokenizer=tokenizer,
            variable="io_position",
            positions="last",
            metrics="recovered_logit_difference",
        )


def test_a_batch_of_pairs_with_answers_of_several_tokens() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    data = CounterfactualDataModule(PronounGender(), Sizes(train=8, validation=8, test=8, test_templates=8))
    patch(model, data, tokenizer=tokenizer, variable="gender", positions=["name"], pairs=2, layers=[0])  # binds
    batch = next(iter(data.every_pair("test")))
    longer = torch.cat([batch.candidates, torch.full_like(batch.candidates, IGNORED)], 2)
    longer[:, 0] = torch.tensor([11, 12])  # one answer of two tokens against one of one
    changed = replace(batch, candidates=longer)
    grid = patch(model, changed, positions=["name"], layers=[2], metrics="iia", batch_size=3)
    assert grid.shape == (1, 1, len(batch))
    for row in range(len(batch)):
        base, source = (x.ids[row][x.mask[row].bool()].tolist() for x in (batch.base, batch.sources[0]))
        module = module_of(model, "gpt2", 2, "block_output")
        into, of = int(batch.base_positions[row, 0, 0]), int(batch.source_positions[row, 0, 0])
        edits = [(module, [into], _put(activation(model, source, module)[of]))]
        long = logits_of(model, [*base, 11], edits).log_softmax(-1)
        short = logits_of(model, base, edits)[-1].log_softmax(-1)
        scores = [float(long[-2, 11] + long[-1, 12]), float(short[int(longer[row, 1, 0])])]
        right = float(scores.index(max(scores)) == int(batch.label[row]))
        assert grid.values[0, 0, row] == right
    assert set(np.unique(grid.values)) <= {0.0, 1.0}
    with pytest.raises(IITKitError, match="variable: a batch of pairs has none: leave it out"):
        patch(model, changed, positions=["name"], metrics="iia", variable="gender")
    with pytest.raises(IITKitError, match="answers of several tokens are measured by iia alone"):
        patch(model, changed, positions=["name"], metrics="probability")


def test_patching_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(11)
    options: dict[str, Any] = {"answers": 5, "wrong": 6, "batch_size": 1}
    both = inputs(bases, "right"), inputs(sources, "right")
    whole = patch(model, *both, **{**options, "batch_size": 3})
    calls: list[int] = []
    run = Engine.table

    def interrupted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "table", interrupted)
    part = patch(model, *both, **options, folder=tmp_path)
    assert part.about["interrupted"] is True
    assert part.sizes["example"] == 1
    again = patch(model, *both, **options, folder=tmp_path)
    assert len(calls) == 4
    assert np.allclose(again.values, whole.values, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert again.coords == whole.coords


def counting(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[int]:
    """Grids that are run from here on, as a growing list; Ctrl-C comes after a third of the ``stop``-th one's cells."""
    calls: list[int] = []
    run = Engine.table

    def counted(self: Engine, base: Any, cells: Any, reduce: Any, progress: Any = None) -> Any:
        calls.append(len(cells))

        def reducing(logits: Tensor, *rest: Any) -> Tensor:
            calls[-1] -= len(logits)
            if len(calls) == stop and calls[-1] < len(cells) * 2 / 3:
                raise KeyboardInterrupt
            found: Tensor = reduce(logits, *rest)
            return found

        return run(self, base, cells, reducing, progress)

    monkeypatch.setattr(Engine, "table", counted)
    return calls


def test_what_is_kept_is_of_the_same_network_and_interventions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(11)
    both = inputs(bases, "right"), inputs(sources, "right")
    edit = LowRankSubspace(SiteInfo(32), rank=2)
    edit.space.freeze({"basis": gram_schmidt(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))})
    options: dict[str, Any] = {"interventions": {"number": edit}, "layers": [1, 2], "folder": tmp_path}
    calls = counting(monkeypatch)

    def runs(**changes: Any) -> Any:
        """The grid, and whether it was run."""
        before = len(calls)
        return patch(model, *both, **{**options, **changes}), len(calls) > before

    first, ran = runs()
    assert ran
    again, ran = runs()
    assert not ran
    assert np.array_equal(first.values, again.values, equal_nan=True)
    basis = edit.state_dict()["space.basis"]
    kept = basis[0, 0].clone()
    basis[0, 0] += 0.25  # trained on
    other, ran = runs()
    assert ran
    fresh = patch(model, *both, **{**options, "folder": None})
    assert np.array_equal(other.values, fresh.values, equal_nan=True)
    assert not np.allclose(other.values, first.values, equal_nan=True)
    basis[0, 0] = kept
    assert not runs()[1]
    weight: Any = model.transformer.h[0].mlp.c_proj.weight
    neuron = weight[77].clone()
    weight[77] = 0  # one neuron less
    assert runs()[1]
    weight[77] = neuron
    assert not runs()[1]
    handle = model.transformer.h[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    assert runs()[1]
    handle.remove()
    for changes in (
        {"window": 3},
        {"layers": [1]},
        {"metrics": "kl_to_clean"},
        {"direction": "noising"},
        {"answers": 5},
    ):
        assert runs(**changes)[1], changes
        assert not runs(**changes)[1], changes
    assert not runs()[1]


def test_ctrl_c_in_an_example_keeps_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(13)
    both = inputs(bases[1:2], "right"), inputs(sources[1:2], "right")
    engine = Engine(model, memory=1)  # few cells at a time
    whole = patch(model, *both, engine=engine)
    for folder in (None, tmp_path):
        with monkeypatch.context() as patched:
            counting(patched, stop=1)
            part = patch(model, *both, engine=engine, folder=folder)
        assert part.about["interrupted"] is True
        assert part.about.get("unfinished") is (True if folder is None else None)
        known = ~np.isnan(part.values)
        assert 0 < known.sum() < part.values.size
        assert np.allclose(part.values[known], whole.values[known], atol=1e-6)
    with monkeypatch.context() as patched:
        counting(patched, stop=1)
        other = patch(model, *both, engine=engine, folder=tmp_path, metrics="kl_to_clean")  # another measurement
    assert (~np.isnan(other.values)).sum() == known.sum()
    with monkeypatch.context() as patched:
        calls: list[int] = []
        run = Engine.table

        def counted(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(len(cells))
            return run(self, base, cells, *args, **kwargs)

        patched.setattr(Engine, "table", counted)
        again = patch(model, *both, engine=engine, folder=tmp_path)
    assert calls == [whole.values.size + 2 - known.sum()]  # only the rest of the cells, and all or none of them
    assert "interrupted" not in again.about
    assert np.allclose(again.values, whole.values, atol=1e-6)
    for name, numbers in whole.references.items():
        assert np.allclose(again.references[name], numbers, atol=1e-6)
    assert len([file for file in tmp_path.iterdir() if "part" in file.name]) == 2  # of the other measurement


def test_ctrl_c_in_a_later_example_keeps_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    bases, sources = drawn(17)
    both = inputs(bases, "right"), inputs(sources, "right")
    engine = Engine(model, memory=1)
    whole = patch(model, *both, engine=engine, batch_size=1)
    with monkeypatch.context() as patched:
        counting(patched, stop=2)
        part = patch(model, *both, engine=engine, batch_size=1, folder=tmp_path)
    assert part.sizes["example"] == 1  # an unfinished one is not among those that are averaged
    assert not np.isnan(part.values[:, : len(bases[0])]).any()
    damaged = next(file for file in tmp_path.iterdir() if file.name.endswith("_part.json"))
    before = damaged.read_text()
    with monkeypatch.context() as patched:
        counting(patched, stop=2)
        damaged.write_text("{")
        part = patch(model, *both, engine=engine, batch_size=1, folder=tmp_path)  # begins the second again
    assert part.sizes["example"] == 2
    damaged.write_text(before)
    again = patch(model, *both, engine=engine, batch_size=1, folder=tmp_path)
    assert np.allclose(again.values, whole.values, atol=1e-6, equal_nan=True)


def test_the_cost_is_told_of_what_is_left(tmp_path: Path) -> None:
    model = tiny_model("gpt2")

    def told(n: int) -> list[str]:
        lines: list[str] = []
        both = [["Mary was", "Sarah was", "Mary walked"][:n], ["John was", "Tom was", "John walked"][:n]]
        patch(
            model, *both, tokenizer=tiny_tokenizer(), batch_size=1, positions=[-1], folder=tmp_path, tell=lines.append
        )
        return lines

    assert [line.split(":")[0] for line in told(1)] == ["1 example"]
    assert [line.split(":")[0] for line in told(3)] == ["2 examples"]  # the first is kept
    assert told(3) == []


def test_what_is_kept_has_the_axes_that_are_asked_for(tmp_path: Path) -> None:
    model, options = tiny_model("gpt2"), {"tokenizer": tiny_tokenizer(), "answers": "he", "folder": tmp_path}
    for _ in range(2):  # run, then kept
        assert patch(model, BASE, SOURCE, **options, metrics="rank").dims == ("layer", "position")
        assert patch(model, [BASE], [SOURCE], **options, metrics="rank").dims == ("layer", "position", "example")
        one = patch(model, BASE, SOURCE, **options, metrics=["rank"], components=["block_output"], positions="last")
        assert one.dims == ("component", "layer", "metric")
        assert patch(model, BASE, SOURCE, **options, metrics="rank", positions=["last"]).dims == ("layer", "position")


BASE, SOURCE = "Yesterday, Mary walked home because", "Yesterday, John walked home because"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"source": None}, "no source: give what activations are taken from"),
        ({"source": [SOURCE, SOURCE]}, "1 bases and 2 sources: expected as many of both"),
        ({"source": "Today, John"}, f"the base {BASE!r} has 6 tokens, its source"),
        ({"variable": "gender"}, "variable: is of a task or a dataset: leave it out"),
        ({"split": "train"}, "split: is of a task or a dataset: leave it out"),
        ({"pairs": 3}, "pairs: is of a task or a dataset: leave it out"),
        ({"positions": ["name"]}, "position 'name' names a span, and this text has none"),
        ({"positions": []}, "positions: expected one or several"),
        ({"positions": [17]}, "position 17 is outside a prompt of 6 tokens"),
        ({"direction": "noisy"}, "direction 'noisy': Did you mean 'noising'?"),
        ({"components": "block_out"}, "patch: component 'block_out' is unknown."),
        ({"layers": [7]}, "layers 7: GPT2LMHeadModel has layers 0 to 3"),
        ({"layers": [1, 1]}, "layers 1, 1: one is named twice"),
        ({"metrics": "logit_difference"}, "metric 'logit_difference' needs the right answer: give it"),
        ({"metrics": "logit_difference", "answers": "he"}, "metric 'logit_difference' needs the wrong answer"),
        ({"metrics": "iia"}, "metric 'iia' needs candidates and their counterfactual label"),
        ({"answers": ["he", "she"]}, "answers: given 2, expected one for each of 1 examples"),
        ({"answers": 10**6}, "answers 1000000 to 1000000: the network has tokens 0 to "),
        ({"answers": -1}, "answers -1: expected text or a token id"),
        ({"answers": "he", "wrong": " he"}, f"the answer and the wrong answer of {SOURCE!r} begin with the same token"),
        ({"answers": 1.5}, "answers 1.5: expected text or a token id"),
        ({"tokenizer": None}, "prompts given as text need tokenizer="),
        ({"window": 1.5}, "window 1.5: expected a number of layers"),
        ({"window": 0}, "window 0: expected a number of layers"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"heads": [0]}, "patch: head 0"),
        ({"heads": []}, "heads: expected one or several"),
        ({"heads": "al"}, "heads 'al': expected a list of them, or 'all'"),
        ({"heads": 1}, "heads 1: expected a list of them, or 'all'"),
        ({"heads": [0, 0], "components": "head_value_output"}, "heads: 0 is named twice"),
        ({"components": []}, "components: expected one or several"),
        ({"components": ["mlp_output", "mlp_output"]}, "components: 'mlp_output' is named twice"),
        ({"engine": Engine(tiny_model("gpt2", seed=1))}, "engine: it runs another network: make it of this one"),
        ({"interventions": {"x": Mean(SiteInfo(32))}}, "interventions: 'x' must see data first: let `iitkit fit`"),
        ({"interventions": {"x": 3}}, "interventions: 'x' is a int: expected an intervention"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], says: str) -> None:
    model = tiny_model("gpt2")
    options: dict[str, Any] = {"base": BASE, "source": SOURCE, "tokenizer": tiny_tokenizer(), **given}
    with pytest.raises(IITKitError) as raised:
        patch(model, **options)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_nothing_is_left_behind() -> None:
    model = tiny_model("gpt2")
    before = hooks_of(model)
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    patch(model, BASE, SOURCE, tokenizer=tiny_tokenizer())
    assert hooks_of(model) == before
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())
