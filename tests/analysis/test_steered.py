"""What steering does to what is written: perplexity, divergence and answers worked out by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from byhand import logits_of
from ourtokenizers import adding as that_adds
from ourtokenizers import blanked
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from iitkit.analysis.steered import Strength, suggested, sweep, written
from iitkit.errors import IITKitError
from iitkit.interventions import Addition, SiteInfo
from iitkit.models.generation import intervening
from iitkit.models.sites import Site

TEXTS = ["Yesterday, Anna walked home because", "Paul was happy"]
NEW = 5


def adding(strength: float) -> Any:
    edit = Addition(SiteInfo(32)).requires_grad_(False)
    edit.edit.get_parameter("vector").copy_(torch.randn(32, generator=torch.Generator().manual_seed(3)))
    return intervening(tiny_model("gpt2"), {"x": (Site(2, position="last"), edit)}, strength=strength)


def tokens_of(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text)["input_ids"]
    return found


@torch.no_grad()
def greedy(model: Any, text: str, edit: Any = None) -> tuple[list[int], list[Tensor]]:
    """Tokens until the end of text or ``NEW``, with the logits of each step, one prompt at a time."""
    ids, steps = tokens_of(text), []
    start = len(ids)
    for _ in range(NEW):
        edits = [] if edit is None else [(model.transformer.h[2], [start - 1], edit)]
        steps.append(logits_of(model, ids, edits)[-1])
        ids.append(int(steps[-1].argmax()))
        if ids[-1] == 0:
            break
    return ids[start:], steps


def test_continuations_and_their_perplexity_under_the_plain_model() -> None:
    """A steered text is judged by the plain model, though the context is about the same network."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    edit = Addition(SiteInfo(32)).requires_grad_(False)
    edit.edit.get_parameter("vector").copy_(vector)
    context = intervening(model, {"x": (Site(2, position="last"), edit)}, strength=6.0)
    found = written(model, tokenizer, TEXTS, context, new_tokens=NEW)
    for i, text in enumerate(TEXTS):
        ids, steps = greedy(model, text, lambda h: h + 6 * vector)
        assert found.texts[i] == tokenizer.decode(ids, skip_special_tokens=True)
        start = len(tokens_of(text))
        with torch.no_grad():
            plain = logits_of(model, tokens_of(text) + ids)[start - 1 : -1].log_softmax(-1)
        nll = -plain[torch.arange(len(ids)), torch.tensor(ids)].mean()
        assert found.perplexity[i] == pytest.approx(float(nll.exp()), rel=1e-4)
        assert torch.allclose(found.first[i], steps[0].log_softmax(-1), atol=1e-4)


def test_a_text_that_ends_is_judged_up_to_its_end() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    ids, _ = greedy(model, TEXTS[0])
    model.generation_config.eos_token_id = ids[1]
    found = written(model, tokenizer, TEXTS[:1], nullcontext(), new_tokens=NEW)
    stop = ids.index(ids[1]) + 1
    with torch.no_grad():
        start = len(tokens_of(TEXTS[0]))
        plain = logits_of(model, tokens_of(TEXTS[0]) + ids[:stop])[start - 1 : -1].log_softmax(-1)
    nll = -plain[torch.arange(stop), torch.tensor(ids[:stop])].mean()
    assert found.perplexity == [pytest.approx(float(nll.exp()), rel=1e-4)]
    assert found.texts == [tokenizer.decode(ids[:stop], skip_special_tokens=True)]


def test_samples_are_the_seeds_and_leave_the_global_generator_alone() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    before = torch.get_rng_state()
    first, again, other = (
        written(model, tokenizer, TEXTS, nullcontext(), new_tokens=NEW, seed=seed).texts for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sweep_measures_divergence_and_answers() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    edit = Addition(SiteInfo(32)).requires_grad_(False)
    edit.edit.get_parameter("vector").copy_(vector)

    def at(strength: float) -> Any:
        return intervening(model, {"x": (Site(2, position="last"), edit)}, strength=strength)

    told: list[Strength] = []
    rows = sweep(model, tokenizer, TEXTS, at, [0.0, 2.0], answers=("she", "he"), new_tokens=NEW, tell=told.append)
    assert told == rows
    she, he = tokens_of(" she")[0], tokens_of(" he")[0]
    for row, strength in zip(rows, (0.0, 2.0), strict=True):
        divergence, expected, perplexity = [], [], []
        for text in TEXTS:
            _, plain = greedy(model, text)
            ids, steps = greedy(model, text, lambda h, s=strength: h + s * vector)
            p, q = steps[0].log_softmax(-1), plain[0].log_softmax(-1)
            divergence.append(float((p.exp() * (p - q)).sum()))
            expected.append(float(torch.sigmoid(steps[0][she] - steps[0][he])))
            with torch.no_grad():
                judged = logits_of(model, tokens_of(text) + ids)[len(tokens_of(text)) - 1 : -1].log_softmax(-1)
            perplexity.append(float(-judged[torch.arange(len(ids)), torch.tensor(ids)].mean()))
        assert row.divergence == pytest.approx(sum(divergence) / 2, abs=1e-5)
        assert row.expected == pytest.approx(sum(expected) / 2, abs=1e-5)
        assert row.perplexity == pytest.approx(float(torch.tensor(perplexity).mean().exp()), rel=1e-4)
    assert rows[0].divergence == pytest.approx(0, abs=1e-6)
    assert rows[1].divergence > 0.01
    for answers in (("she", " she"), ("she", "she was")):
        with pytest.raises(IITKitError, match="begin with the same token behind 'Yesterday, Anna"):
            sweep(model, tokenizer, TEXTS, at, [1.0], answers=answers)
    with pytest.raises(IITKitError, match="no prompt given"):
        written(model, tokenizer, [], nullcontext())


def test_answers_are_tokens_behind_their_prompts() -> None:
    """Where a prompt ends in a space, or begins a line, an answer has none of its own."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    texts = ["Yesterday, Anna walked home because", "Paul was happy.\n"]
    rows = sweep(model, tokenizer, texts, lambda s: nullcontext(), [0.0], answers=("she", "he"), new_tokens=1)
    shares = []
    for text, she, he in zip(texts, (" she", "she"), (" he", "he"), strict=True):
        behind = [tokens_of(text + answer)[len(tokens_of(text))] for answer in (she, he)]
        with torch.no_grad():
            logits = logits_of(model, tokens_of(text))[-1]
        shares.append(float(logits[behind].softmax(-1)[0]))
    assert tokens_of("she")[0] != tokens_of(" she")[0]
    assert rows[0].expected == pytest.approx(sum(shares) / 2, abs=1e-5)
    with pytest.raises(IITKitError, match="answer '' does not stand as tokens"):
        sweep(model, tokenizer, texts, lambda s: nullcontext(), [0.0], answers=("she", ""))


def test_answers_of_tokenizers_that_begin_words_with_a_blank() -> None:
    tokenizer = blanked(legacy=True)  # " she" by itself is two blanks
    model = tiny_model("gpt2")
    text = "Mary saw John"
    ids = tokenizer(text)["input_ids"]
    rows = sweep(model, tokenizer, [text], lambda s: nullcontext(), [0.0], answers=("she", "he"), new_tokens=1)
    behind = [tokenizer(f"{text} {answer}")["input_ids"][len(ids)] for answer in ("she", "he")]
    assert behind[0] != behind[1]
    with torch.no_grad():
        logits = logits_of(model, ids)[-1]
    assert rows[0].expected == pytest.approx(float(logits[behind].softmax(-1)[0]), abs=1e-5)


def test_what_a_tokenizer_adds_may_be_there_already() -> None:
    """A chat template writes the first token itself: it is not put there twice."""
    model, tokenizer = tiny_model("gpt2"), that_adds("<|endoftext|>")
    for text, special in (("Paul was happy", True), ("<|endoftext|>Paul was happy", False)):
        found = written(model, tokenizer, [text], nullcontext(), new_tokens=1, add_special_tokens=special)
        with torch.no_grad():
            logits = logits_of(model, [0, *tokens_of("Paul was happy")])[-1]
        assert torch.allclose(found.first[0], logits.log_softmax(-1), atol=1e-4)


def test_beams_of_the_models_own_settings_are_left_out() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    expected = written(model, tokenizer, TEXTS, nullcontext(), new_tokens=NEW)
    model.generation_config.num_beams, model.generation_config.num_return_sequences = 3, 2
    found = written(model, tokenizer, TEXTS, nullcontext(), new_tokens=NEW)
    assert (found.texts, found.perplexity) == (expected.texts, expected.perplexity)


def row(strength: float, divergence: float, perplexity: float, expected: float | None = None) -> Strength:
    return Strength(strength, divergence, expected, perplexity, "")


def test_the_suggested_range_is_fluent_and_does_half_of_what_can_be_done() -> None:
    rows = [row(0, 0, 10), row(1, 0.3, 11), row(2, 0.6, 12), row(3, 1.0, 19.9), row(4, 5.0, 21)]
    assert suggested(rows) == (2, 3)  # 4 is no longer fluent, so the most is 1.0
    rows = [row(0, 0, 10, 0.2), row(1, 9, 10, 0.3), row(2, 0, 10, 0.9), row(-1, 9, 10, 0.0)]
    assert suggested(rows) == (2, 2)
    assert suggested([row(0, 0, 10), row(1, 0, 10)]) is None
    assert suggested([row(0, 0, 10), row(1, 5, float("nan")), row(2, 1, float("inf"))]) is None


def test_the_suggested_range_has_nothing_in_it_that_does_not_do() -> None:
    """Strengths on both sides of 0 work and 0 itself does nothing; one between two others may not be fluent."""
    both = [row(-2, 1.0, 11), row(-1, 0.6, 10), row(0, 0, 10), row(1, 0.5, 10), row(2, 0.8, 11)]
    assert suggested(both) == (-2, -1)
    assert suggested(both[::-1]) == (-2, -1)  # in whatever order they were tried
    gap = [row(0, 0, 10), row(1, 0.7, 10), row(2, 0.8, 99), row(3, 1.0, 12), row(4, 0.9, 12)]
    assert suggested(gap) == (3, 4)
    tied = [row(-3, 1.0, 10), row(0, 0, 10), row(1, 1.0, 10), row(2, 1.0, 10)]
    assert suggested(tied) == (1, 2)  # of two that do as much, the weaker
