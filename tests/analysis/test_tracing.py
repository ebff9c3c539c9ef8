"""Causal tracing against hooks placed by hand: one hooked forward of 1 clean and the noised rows for each cell."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import DTYPES, cast, module_of
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.analysis import progress
from iitkit.analysis.corrupting import Corruption, corrupted, deviation, embedded
from iitkit.analysis.effects import ROLES, by_role, indirect, tokens_of
from iitkit.analysis.facts import Fact
from iitkit.analysis.grid import Grid
from iitkit.analysis.progress import Bar
from iitkit.analysis.prompts import Encoded, Prompt, encode
from iitkit.analysis.tracing import trace
from iitkit.errors import IITKitError
from iitkit.models.grids import Engine

PREFIX = "<|endoftext|>"
PROMPT = "Yesterday, Mary walked home because"
FACTS = [  # prompts of different lengths, subjects of one, two and three tokens
    Fact("Yesterday, Mary walked home because", "Mary"),
    Fact("This morning, Mary gave a while to", "morning, Mary"),
    Fact("On Monday, John and Sarah were", "John and Sarah"),
]


def embedding_of(model: Any, family: str) -> nn.Module:
    found: nn.Module = model.model.embed_tokens if family == "llama" else model.transformer.wte
    return found


def hooked(
    model: PreTrainedModel,
    family: str,
    text: Encoded,
    noised: Tensor,
    restore: list[tuple[nn.Module, int]],
) -> Tensor:
    """Logits at the last token of the noised rows, of a batch whose first row is clean; by hand."""
    n = len(noised)

    def corrupt(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:1], noised.to(output)])

    def put_back(position: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[1:, position] = hidden[0, position]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    with ExitStack() as stack, torch.no_grad():
        stack.callback(embedding_of(model, family).register_forward_hook(corrupt).remove)
        for module, position in restore:
            stack.callback(module.register_forward_hook(put_back(position)).remove)
        logits: Tensor = model(torch.tensor([text.ids] * (n + 1))).logits
    return logits[1:, -1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_trace_is_one_hooked_forward_a_cell(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = cast(tiny_model(family), dtype), tiny_tokenizer()
    components = ["block_output", "mlp_output", "attention_output"]
    grid = trace(
        model, tokenizer, PROMPT, "Mary", prefix=PREFIX, components=components, window=3, draws=4, seed=5, noise=2.5
    )
    text = encode(tokenizer, Prompt(PROMPT, {"subject": "Mary"}), PREFIX)
    span = text.spans["subject"]
    sigma = deviation(model, [text], [span])
    noised = corrupted(model, text, span, Corruption("noise", 2.5, 4, 5), sigma, None).embeddings
    assert noised is not None
    with torch.no_grad():
        top = int(model(torch.tensor([text.ids])).logits[0, -1].argmax())
    found, expected = [], []
    for component in components:
        for layer in range(4):
            for position in range(len(text)):
                window = range(max(0, layer - 1), min(4, layer + 2))  # of 3: l − 1, l, l + 1
                put = [(module_of(model, family, at, component), position) for at in window]
                logits = hooked(model, family, text, noised, put)
                expected.append(float(logits.softmax(-1)[:, top].mean()))
                found.append(grid.sel(component=component, layer=layer, position=position))
    tolerance = DTYPES[dtype] * max(expected)
    assert found == pytest.approx(expected, rel=0, abs=tolerance)
    assert len(set(np.round(expected, 9))) > 20  # the cells differ
    corrupt = float(hooked(model, family, text, noised, []).softmax(-1)[:, top].mean())
    with torch.no_grad():
        clean = float(model(torch.tensor([text.ids])).logits[0, -1].softmax(-1)[top])
    assert grid.references["corrupt"].item() == pytest.approx(corrupt, rel=0, abs=tolerance)
    assert grid.references["nothing"].item() == pytest.approx(corrupt, rel=0, abs=tolerance)
    assert grid.references["clean"].item() == pytest.approx(clean, rel=0, abs=tolerance)
    assert grid.references["everything"].item() == pytest.approx(clean, rel=0, abs=tolerance)
    assert grid.about["answer"] == tokenizer.decode([top])
    assert grid.about["sigma"] == pytest.approx(sigma)


def test_windows_are_those_of_rome() -> None:
    model, tokenizer = tiny_model("gpt2", layers=12), tiny_tokenizer()
    grid = trace(model, tokenizer, PROMPT, "Mary", prefix=PREFIX, components="mlp_output", layers=[2, 7, 11], draws=2)
    assert grid.about["windows"] == {"mlp_output": 10}
    assert grid.coords["layer"] == [2, 7, 11]
    text = encode(tokenizer, Prompt(PROMPT, {"subject": "Mary"}), PREFIX)
    span, how = text.spans["subject"], Corruption("noise", 3.0, 2, 0)
    noised = corrupted(model, text, span, how, deviation(model, [text], [span]), None).embeddings
    assert noised is not None
    with torch.no_grad():
        top = int(model(torch.tensor([text.ids])).logits[0, -1].argmax())
    for layer, window in ((2, range(7)), (7, range(2, 12)), (11, range(6, 12))):  # l − 5 … l + 4, clipped
        put = [(module_of(model, "gpt2", at, "mlp_output"), 5) for at in window]
        expected = float(hooked(model, "gpt2", text, noised, put).softmax(-1)[:, top].mean())
        assert grid.sel(layer=layer, position=5) == pytest.approx(expected, rel=1e-5)


def test_noise_is_on_the_subject_alone() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    text = encode(tokenizer, Prompt(FACTS[2].prompt, {"subject": FACTS[2].subject}), PREFIX)
    start, stop = span = text.spans["subject"]
    assert [word.strip() for word in text.tokens[start:stop]] == ["John", "and", "Sarah"]
    how = Corruption("noise", 3.0, 4000, 0)
    rows = corrupted(model, text, span, how, 0.5, None)
    assert rows.embeddings is not None
    noise = rows.embeddings - embedded(model, text.ids)
    assert float(noise[:, start:stop].std()) == pytest.approx(1.5, rel=0.01)  # 3 · σ
    assert float(noise[:, start:stop].mean()) == pytest.approx(0, abs=0.01)
    assert not bool(noise[:, :start].any())
    assert not bool(noise[:, stop:].any())
    again = corrupted(model, text, span, how, 0.5, None)
    other = corrupted(model, text, span, Corruption("noise", 3.0, 4000, 1), 0.5, None)
    assert torch.equal(rows.embeddings, again.embeddings)  # type: ignore[arg-type]
    assert not torch.equal(rows.embeddings, other.embeddings)  # type: ignore[arg-type]


def test_sigma_is_over_all_subject_tokens_of_all_facts() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    grid = trace(model, tokenizer, FACTS, prefix=PREFIX, draws=1, layers=[0])
    ids = []
    for fact in FACTS:
        text = encode(tokenizer, Prompt(fact.prompt, {"subject": fact.subject}), PREFIX)
        ids += text.ids[slice(*text.spans["subject"])]
    assert len(ids) == 1 + 3 + 3
    weights = embedding_of(model, "gpt2").weight[ids].double().numpy()  # type: ignore[union-attr, index]
    assert grid.about["sigma"] == pytest.approx(weights.std(ddof=1), rel=1e-12)
    assert trace(model, tokenizer, FACTS[:1], prefix=PREFIX, draws=1, layers=[0], sigma=0.25).about["sigma"] == 0.25


def test_six_rows_by_hand() -> None:
    values = np.arange(2 * 7.0).reshape(2, 7) ** 2
    positions = [f"{i} x" for i in range(7)]
    grid = Grid(values, ("layer", "position"), {"position": positions}, {"clean": 9.0}, {}, {"subject": [1, 4]})
    found = by_role(grid)
    assert found.coords["position"] == list(ROLES)
    assert found.values[0].tolist() == [1, 4, 9, 16, 25, 36]
    several = by_role(Grid(values, ("layer", "position"), {"position": positions}, {}, {}, {"subject": [0, 2]}))
    assert np.isnan(several.values[0, 1])  # two subject tokens: none in the middle
    assert several.values[0].tolist()[2:] == [1, 4, (9 + 16 + 25) / 3, 36]
    one = by_role(Grid(values, ("layer", "position"), {"position": positions}, {}, {}, {"subject": [5, 6]}))
    assert np.isnan(one.values[1, [1, 4]]).all()
    assert one.values[1, [0, 2, 3, 5]].tolist() == [12**2, 12**2, 13**2, 13**2]


def test_a_failed_token_fails_its_row_only_where_it_is_all_of_it() -> None:
    values = np.array([[1.0, np.nan, 3.0, np.nan, 5.0, 6.0, 7.0]])
    lost = {(0, 1): "lost", (0, 3): "lost too"}
    found = by_role(Grid(values, ("layer", "position"), {}, {}, lost, {"subject": [0, 4]}))
    assert found.values[0, :2].tolist() == [1, 3]  # of two middle tokens one is left
    assert found.failed == {(0, 2): "lost too"}
    assert tokens_of("last token", (0, 4), 7) == [6]


def test_facts_are_averaged_with_their_standard_errors() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    grid = trace(model, tokenizer, FACTS, prefix=PREFIX, draws=3)
    assert grid.dims == ("layer", "position", "example")
    assert grid.coords["example"] == [fact.prompt for fact in FACTS]
    alone = [trace(model, tokenizer, f, prefix=PREFIX, draws=3, sigma=grid.about["sigma"]) for f in FACTS]
    effects = indirect(grid)
    for layer in range(4):
        each = []
        for fact in alone:
            last = fact.about["subject"][1] - 1
            each.append(fact.sel(layer=layer, position=last) - fact.references["corrupt"].item())
        mean = sum(each) / 3
        error = math.sqrt(sum((x - mean) ** 2 for x in each) / 2 / 3)
        at = {"layer": layer, "position": "last subject token"}
        assert effects.mean("example").sel(**at) == pytest.approx(mean, abs=1e-12)
        assert effects.stderr("example").sel(**at) == pytest.approx(error, abs=1e-12)
        assert effects.n("example").sel(**at) == 3
    total = [fact.references["clean"].item() - fact.references["corrupt"].item() for fact in alone]
    assert effects.references["clean"].tolist() == pytest.approx(total, abs=1e-12)
    assert effects.references["corrupt"].tolist() == [0, 0, 0]
    assert effects.n("example").sel(layer=0, position="middle subject tokens") == 2  # one has no middle


def test_the_same_seed_gives_the_same_table() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    first, again, other = (
        trace(model, tokenizer, FACTS, prefix=PREFIX, draws=2, seed=seed, engine=Engine(model)) for seed in (3, 3, 4)
    )
    assert first.equals(again)
    assert not np.allclose(first.values, other.values, equal_nan=True)
    # a fact's numbers do not depend on the facts beside it
    alone = trace(model, tokenizer, FACTS[1:2], prefix=PREFIX, draws=2, seed=3, sigma=first.about["sigma"])
    assert np.allclose(first.values[..., 1:2], alone.values, rtol=1e-6, atol=0, equal_nan=True)


def test_unknown_facts_are_skipped_and_counted() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    top = trace(model, tokenizer, PROMPT, "Mary", prefix=PREFIX, layers=[0], draws=1).about["answer"]
    told: list[str] = []
    facts = [Fact(PROMPT, "Mary", top), Fact(FACTS[1].prompt, "Mary", "he")]
    grid = trace(model, tokenizer, facts, prefix=PREFIX, layers=[0], draws=1, tell=told.append)
    assert grid.coords["example"] == [PROMPT]
    assert grid.about["facts"] == 2
    (why,) = grid.about["skipped"]
    assert why.startswith(f"after {FACTS[1].prompt!r} it says ")
    assert why.endswith("not 'he'")
    assert told[-1].startswith("skipped 1 of 2 facts that the model does not know: ")
    with pytest.raises(IITKitError, match="the model knows none of the 1 facts"):
        trace(model, tokenizer, facts[1:], prefix=PREFIX, layers=[0], draws=1)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_zero_and_mean_embeddings(kind: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    grid = trace(model, tokenizer, PROMPT, "Mary", prefix=PREFIX, corruption=kind)
    text = encode(tokenizer, Prompt(PROMPT, {"subject": "Mary"}), PREFIX)
    start, _ = text.spans["subject"]
    weights = embedding_of(model, "llama").weight.detach()
    noised = weights[text.ids][None].clone()  # type: ignore[index]
    noised[:, start] = 0 if kind == "zero" else weights.double().mean(0).float()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        top = int(model(torch.tensor([text.ids])).logits[0, -1].argmax())
    for layer in range(4):
        put = [(module_of(model, "llama", layer, "block_output"), start)]
        expected = float(hooked(model, "llama", text, noised, put).softmax(-1)[:, top].mean())
        assert grid.sel(layer=layer, position=start) == pytest.approx(expected, rel=1e-5)
    assert "draws" not in grid.about


def test_corruption_by_another_prompt() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    fact = Fact(PROMPT, "Mary", corrupt=PROMPT.replace("Mary", "John"), wrong="he")
    metrics = ["probability", "logit_difference"]
    grid = trace(model, tokenizer, fact, prefix=PREFIX, corruption="prompt", metrics=metrics)
    clean, corrupt = (encode(tokenizer, Prompt(text), PREFIX) for text in (PROMPT, str(fact.corrupt)))
    with torch.no_grad():
        top = int(model(torch.tensor([clean.ids])).logits[0, -1].argmax())
        weights = embedding_of(model, "gpt2").weight[corrupt.ids][None]  # type: ignore[index]
    (he,) = tokenizer(" he")["input_ids"]
    for layer, position in ((0, 3), (2, 3), (3, 6), (1, 2)):
        put = [(module_of(model, "gpt2", layer, "block_output"), position)]
        logits = hooked(model, "gpt2", clean, weights, put)[0]
        cell = grid.sel(layer=layer, position=position)
        assert cell.sel(metric="probability") == pytest.approx(float(logits.softmax(-1)[top]), rel=1e-5)
        assert cell.sel(metric="logit_difference") == pytest.approx(float(logits[top] - logits[he]), rel=1e-5)


def test_facts_are_checked_before_any_is_run(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    good = Fact(PROMPT, "Mary", corrupt=PROMPT.replace("Mary", "John"))
    for bad, says in (
        (Fact(PROMPT, "Mary", corrupt="John and Mary"), "'John and Mary' has 5 tokens"),
        (Fact(PROMPT, "Mary"), "has no corrupt prompt"),
        (Fact(f"{PROMPT} Mary ", "walked", "John", corrupt=f"{PROMPT} John "), "does not stand as tokens of its own"),
    ):
        with pytest.raises(IITKitError, match=says):
            trace(model, tokenizer, [good, bad], corruption="prompt", folder=tmp_path)
        assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_fact_keeps_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    whole = trace(model, tokenizer, PROMPT, "Mary", draws=2)
    run = Engine.table
    calls: list[int] = []

    def interrupted(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(cells))
        found = run(self, base, cells, *args, **kwargs)
        if len(calls) == 1:
            found.values[5:] = torch.nan
            found.interrupted = True
        return found

    monkeypatch.setattr(Engine, "table", interrupted)
    part = trace(model, tokenizer, PROMPT, "Mary", draws=2, folder=tmp_path)
    assert part.about["interrupted"] is True
    assert part.values.ravel()[:5].tolist() == whole.values.ravel()[:5].tolist()
    assert np.isnan(part.values.ravel()[5:]).all()
    again = trace(model, tokenizer, PROMPT, "Mary", draws=2, folder=tmp_path)
    assert calls == [4 * 6 + 2, 4 * 6 + 2 - 5]
    assert np.allclose(again.values, whole.values, rtol=1e-5)
    assert not [file for file in tmp_path.iterdir() if "part" in file.name]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):  # the rows of a fact would be averages of some of their tokens
        trace(model, tokenizer, [PROMPT], ["Mary"], draws=2, layers=[1, 2])


def test_a_trace_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    whole = trace(model, tokenizer, FACTS, prefix=PREFIX, draws=2)
    options: dict[str, Any] = {"prefix": PREFIX, "draws": 2, "folder": tmp_path}
    calls: list[int] = []
    run = Engine.table

    def interrupted(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(cells))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, base, cells, *args, **kwargs)

    monkeypatch.setattr(Engine, "table", interrupted)
    part = trace(model, tokenizer, FACTS, **options)
    assert part.about["interrupted"] is True
    assert part.coords["example"] == whole.coords["example"][:2]
    assert np.array_equal(part.values, whole.values[..., :2], equal_nan=True)
    again = trace(model, tokenizer, FACTS, **options)
    assert len(calls) == 4  # only the third fact was run
    assert np.array_equal(again.values, whole.values, equal_nan=True)
    assert "interrupted" not in again.about
    trace(model, tokenizer, FACTS, **{**options, "seed": 1})
    assert len(calls) == 7  # another seed is another measurement
    trace(tiny_model("gpt2", seed=1), tokenizer, FACTS, **{**options, "sigma": whole.about["sigma"]})
    assert len(calls) == 10  # and so are other weights


def test_a_failed_cell_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    run = Engine.table

    def failing(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, base, cells, *args, **kwargs)
        found.failed[9] = "no memory"
        found.values[9] = torch.nan
        return found

    monkeypatch.setattr(Engine, "table", failing)
    grid = trace(model, tokenizer, PROMPT, "Mary", prefix=PREFIX, draws=1)
    assert grid.failed == {(1, 2): "no memory"}  # 7 tokens a layer
    assert np.isnan(grid.values).sum() == 1

    def lost(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, base, cells, *args, **kwargs)
        found.failed[len(cells) - 1] = "no memory"
        return found

    monkeypatch.setattr(Engine, "table", lost)
    for prompts, subjects in ((PROMPT, "Mary"), ([PROMPT], ["Mary"])):
        grid = trace(model, tokenizer, prompts, subjects, prefix=PREFIX, draws=1)
        assert not grid.failed
        assert grid.about["failed_references"] == {"nothing": "no memory"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": PROMPT, "subjects": "Sarah"}, "subject 'Sarah' is not in the prompt"),
        ({"prompts": "Mary and Mary gave", "subjects": "Mary"}, "subject 'Mary' stands twice in the prompt"),
        ({"prompts": PROMPT}, f"prompt {PROMPT!r} has no subject"),
        ({"prompts": []}, "no prompts: expected a prompt with a subject"),
        ({"prompts": [PROMPT], "subjects": ["Mary", "Mary"]}, "subjects: expected one for each of 1 prompts, given 2"),
        ({"prompts": PROMPT, "subjects": (11, 99)}, "subjects: expected one for each of 1 prompts, given 2"),
        ({"prompts": Fact(PROMPT, (30, 40))}, "subject (30, 40): expected a substring, or [start, stop]"),
        ({"prompts": Fact(PROMPT, "Mary"), "components": "mlp_out"}, "trace: component 'mlp_out' is unknown."),
        ({"prompts": Fact(PROMPT, "Mary"), "layers": [1, 4]}, "layers 1, 4: GPT2LMHeadModel has layers 0 to 3"),
        ({"prompts": Fact(PROMPT, "Mary"), "window": 0}, "window 0: expected a number of layers"),
        ({"prompts": Fact(PROMPT, "Mary"), "components": []}, "components: expected one or several"),
        (
            {"prompts": Fact(PROMPT, "Mary"), "components": ["mlp_output", "mlp_output"]},
            "components: 'mlp_output' is named twice",
        ),
        ({"prompts": Fact(PROMPT, "Mary"), "sigma": -1.0}, "sigma -1.0: expected a standard deviation, more than 0"),
        (
            {"prompts": Fact(PROMPT, "Mary"), "sigma": 1.0, "corruption": "zero"},
            "sigma: corruption zero draws no noise: leave it out",
        ),
        ({"prompts": Fact(PROMPT, "Mary"), "noise": math.inf}, "noise inf: expected a multiple"),
        ({"prompts": [3], "subjects": ["Mary"]}, "prompts: 3: expected text or a Fact"),
        ({"prompts": Fact(PROMPT, "Mary"), "engine": Engine(tiny_model("gpt2"))}, "engine: it runs another network"),
        (
            {"prompts": Fact(PROMPT, "Mary", corrupt=PROMPT), "corruption": "prompt"},
            f"{PREFIX + PROMPT!r} and its corrupt prompt are the same",
        ),
        ({"prompts": Fact(PROMPT, "Mary"), "draws": 0}, "draws 0: expected 1 or more"),
        ({"prompts": Fact(PROMPT, "Mary"), "noise": 0.0}, "noise 0.0: expected a multiple"),
        ({"prompts": Fact(PROMPT, "Mary"), "corruption": "nois"}, "corruption 'nois': Did you mean 'noise'?"),
        ({"prompts": Fact(PROMPT, "Mary"), "corruption": "prompt"}, f"{PREFIX + PROMPT!r} has no corrupt prompt"),
        (
            {"prompts": Fact(PROMPT, "Mary", corrupt=" John and Mary"), "corruption": "prompt"},
            f"{PREFIX + ' John and Mary'!r} has 4 tokens, {PREFIX + PROMPT!r} has 7",
        ),
        (
            {"prompts": Fact(PROMPT, "Mary"), "metrics": ["probability", "logit_difference"]},
            "metric 'logit_difference' needs the wrong answer",
        ),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(IITKitError) as raised:
        trace(tiny_model("gpt2"), tiny_tokenizer(), **given, prefix=PREFIX)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_a_bar_shows_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, mininterval=0))  # however quick it is
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    told: list[str] = []
    trace(model, tokenizer, FACTS, prefix=PREFIX, draws=2, progress=True, tell=told.append)
    shown = capsys.readouterr().err
    assert "tracing   0%|" in shown
    assert re.search(r"tracing +[1-9]\d*%\|", shown)
    assert re.search(r"\d\d:\d\d<(\d\d:\d\d|\?)", shown)
    (cost,) = told
    assert re.fullmatch(
        r"3 facts: 28 cells each, 15 of them cannot change anything; 0\.00 million tokens × layers, "
        r"[\d.]+ times fewer than of whole runs; about \d+ s",
        cost,
    )
    trace(model, tokenizer, FACTS, prefix=PREFIX, draws=2, progress=False)
    assert capsys.readouterr().err == ""


def test_the_time_left_is_not_told_by_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    with Bar("tracing", 10, False) as quiet:
        quiet.kept(9)
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    with Bar("tracing", 10, True) as bar:
        inner: Any = bar._bar
        inner._time, inner.start_t, inner.last_print_t = (lambda: clock[0]), clock[0], clock[0]
        bar.kept(8)
        clock[0] += 60  # one example in a minute: one more to go
        bar.done()
        inner.refresh()
    assert re.search(r"tracing +90%.* 01:00<01:00", shown.getvalue())
