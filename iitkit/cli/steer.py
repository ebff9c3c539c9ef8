"""``iitkit steer ARTIFACT PROMPT``: what a model writes when a trained intervention steers it."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import yaml

import iitkit
from iitkit.analysis.steered import Strength, suggested, sweep, written
from iitkit.cli.measuring import loaded, parsed
from iitkit.errors import IITKitError

STRENGTHS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
"""What a sweep tries unless said."""
FLAGS = ("compare", "sweep_strength", "chat")
PAIRS = ("set", "span", "source_span")
"""Options that are given as ``--set name=value``, as often as needed."""


@dataclass
class Steer:
    """Steer what a model writes with trained interventions.

    Args:
        artifact: the trained interventions: a folder, the folder of a run, or user/repo[@revision] on the Hub.
        prompt: what is continued: a text or a list of texts.
        set: variable → value, e.g. --set gender=she; or a list with one for each prompt, null to leave it alone.
        source: a text that has what is to be set, instead of a value.
        source_span: span → what it is in the source, e.g. --source_span name=Paul.
        span: span → what it is in the prompt, e.g. --span name=Anna, or a list with one for each prompt; for artifacts
            trained at a span.
        strength: h + strength · (edit(h) − h).
        unit: what strength 1 is: edit (the trained edit), norm (as long as the activation) or largest (as long as the
            largest that training saw).
        where: which tokens: prompt, generated, all, last, f7+l7, an integer, a span; as trained unless said.
        steps: which generated tokens, [first, one behind the last], counted from 0; null for all that follow. All
            unless said.
        compare: print the plain continuation beside the steered one.
        sweep_strength: print effect and fluency at several strengths, with the range that is suggested.
        strengths: which strengths a sweep tries.
        expect: answer that steering should bring; a sweep then shows its probability against instead's.
        instead: the answer that should lose.
        new_tokens: tokens to write at most.
        seed: sample with it; greedy unless said.
        temperature: of sampling.
        chat: put each prompt into the tokenizer's chat template, as the user's message; as trained unless said.
        prefix: text before every prompt; what the interventions were trained with unless said.
        base: the model; the one that the interventions were trained on unless said.
        match: how alike model and recorded base must be: exact, architecture or width.
        dtype: of the model.
    """

    artifact: str
    prompt: str | list[str]
    set: dict[str, str | bool | int | float | list[str | bool | int | float | None]] | None = None
    source: str | None = None
    source_span: dict[str, str | list[str | None]] | None = None
    span: dict[str, str | list[str | None]] | None = None
    strength: float = 1.0
    unit: Literal["edit", "norm", "largest"] = "edit"
    where: int | str | list[int | str] | None = None
    steps: list[int | None] | None = None
    compare: bool = False
    sweep_strength: bool = False
    strengths: list[float] | None = None
    expect: str | None = None
    instead: str | None = None
    new_tokens: int = 40
    seed: int | None = None
    temperature: float = 1.0
    chat: bool | None = None
    prefix: str | None = None
    base: str | None = None
    match: Literal["exact", "architecture", "width"] = "architecture"
    dtype: str = "float32"


def run(command: str, arguments: Sequence[str]) -> None:
    """Steer, and print what is written.

    Args:
        command: ``steer``.
        arguments: what follows it; the first two may be the artifact and the prompt.

    Raises:
        IITKitError: see :meth:`iitkit.Artifact.steer`.
    """
    settings, _ = parsed(command, Steer, rewritten(arguments))
    _check(settings)
    found = iitkit.load(settings.artifact)
    model, tokenizer = loaded(settings.base or str(found.base["id"]), settings.dtype)
    prompts = [settings.prompt] if isinstance(settings.prompt, str) else settings.prompt
    trained = bool(found.config.get("chat"))
    settings = replace(settings, chat=trained if settings.chat is None else settings.chat)
    _check(settings)
    prefix = str(found.config.get("prefix") or "") if settings.prefix is None else settings.prefix
    if settings.chat:
        system = found.config.get("system")
        texts = [prefix * trained + _in_template(tokenizer, prompt, system) for prompt in prompts]
    else:
        texts = [prefix + prompt for prompt in prompts]

    def steering(strength: float) -> AbstractContextManager[Any]:
        return found.steer(
            *(model, tokenizer, settings.set),
            source=settings.source,
            source_spans=settings.source_span,
            strength=strength,
            unit=settings.unit,
            where=settings.where,
            steps=None if settings.steps is None else (settings.steps[0] or 0, settings.steps[1]),
            spans=settings.span,
            match=settings.match,
        )

    if settings.sweep_strength:
        _sweep(settings, model, tokenizer, texts, steering)
        return
    options: dict[str, Any] = {
        "new_tokens": settings.new_tokens,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "add_special_tokens": not settings.chat,
    }
    steered = written(model, tokenizer, texts, steering(settings.strength), **options)
    if not settings.compare:
        for prompt, text in zip(prompts, steered.texts, strict=True):
            print(prompt + ("\n" if settings.chat else "") + text, flush=True)
        return
    plain = written(model, tokenizer, texts, nullcontext(), **options)
    said = " ".join(f"{name}={value}" for name, value in (settings.set or {}).items())
    title = " ".join(part for part in (said, f"strength {settings.strength:g}") if part)
    for i, prompt in enumerate(prompts):
        heads = (f"plain (perplexity {plain.perplexity[i]:.1f})", f"{title} (perplexity {steered.perplexity[i]:.1f})")
        print(f"{prompt}\n{side_by_side(heads, (plain.texts[i], steered.texts[i]))}\n", flush=True)


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as the parser takes them: artifact and prompt named, flags and pairs with their values.

    >>> rewritten(["runs/a", "Anna said", "--set", "gender=he", "--compare"])
    ['--artifact=runs/a', '--prompt=Anna said', '--set.gender=he', '--compare=true']
    """
    rest, found = list(arguments), []
    if rest and not rest[0].startswith("-"):
        found.append(f"--artifact={rest.pop(0)}")
        if rest and (not rest[0].startswith("-") or re.match(r"-[^-=]*\s", rest[0])):  # "-5 degrees" is no option
            rest[0] = f"--prompt={rest[0]}"
    while rest:
        argument = rest.pop(0)
        name, given, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_") if argument.startswith("--") else ""
        if name == "prompt" and (given or rest):
            found.append(f"--prompt={_written(value if given else rest.pop(0), lists=_is_json)}")
        elif name in PAIRS and (given or (rest and not rest[0].startswith("--"))):
            pair = value if given else rest.pop(0)
            key, equals, chosen = pair.partition("=")
            if pair.startswith("{"):
                found.append(f"--{name}={pair}")
            elif not equals or not key.isidentifier():
                raise IITKitError(f"--{name} {pair}: expected name=value, e.g. --{name} {_example(name)}")
            else:
                found.append(f"--{name}.{key}={_written(chosen, lists=lambda text: text.startswith('['))}")
        elif name in FLAGS and not given:
            follows = bool(rest) and rest[0] in ("true", "false")
            found.append(f"--{name}={rest.pop(0) if follows else 'true'}")
        else:
            found.append(f"--{name}{given}{value}" if name else argument)
    return found


def _written(text: str, lists: Callable[[str], bool]) -> str:
    """Return a text as the parser takes it for one: where YAML would see something else, as a list of this one.

    Args:
        text: what was given.
        lists: whether a list that it may be is meant as one.
    """
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    other = isinstance(read, dict) or (read is None and text != "") or (isinstance(read, list) and not lists(text))
    return json.dumps([text], ensure_ascii=False) if other else text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _example(name: str) -> str:
    return "gender=she" if name == "set" else "name=Anna"


def _check(settings: Steer) -> None:
    """Refuse what nothing would read."""
    prompts = [settings.prompt] if isinstance(settings.prompt, str) else settings.prompt
    if not prompts or not all(prompts):
        raise IITKitError(f"prompt {settings.prompt!r}: expected a text, or a list of texts")
    if settings.steps is not None and len(settings.steps) != 2:
        raise IITKitError(f"steps {settings.steps}: expected two numbers, [first, one behind the last]")
    if settings.strengths is not None and not settings.strengths:
        raise IITKitError("strengths []: expected one number or more, e.g. [0, 1, 2]")
    if settings.sweep_strength and settings.strength != Steer.strength:
        raise IITKitError(f"strength: a sweep tries those of strengths: give --strengths [0, {settings.strength:g}]")
    if settings.temperature <= 0:
        raise IITKitError(f"temperature {settings.temperature:g}: expected a number above 0")
    if settings.temperature != Steer.temperature and settings.seed is None:
        raise IITKitError("temperature: sampling alone has one: give a seed, or leave it out")
    if settings.new_tokens < 1:
        raise IITKitError(f"new_tokens {settings.new_tokens}: expected 1 or more")
    if settings.sweep_strength and settings.compare:
        raise IITKitError("compare and sweep_strength given: expected one of them")
    for name, of in (("strengths", "sweep_strength"), ("expect", "sweep_strength")):
        if getattr(settings, name) is not None and not settings.sweep_strength:
            raise IITKitError(f"{name} is read by {of} alone: give --sweep-strength, or leave it out")
    if (settings.expect is None) != (settings.instead is None):
        raise IITKitError("expect and instead are the two answers that are compared: give both")
    if settings.sweep_strength and settings.seed is not None:
        raise IITKitError("seed: a sweep compares greedy continuations: leave it out")
    if settings.chat and settings.prefix is not None:
        raise IITKitError("prefix: a chat template begins as it says itself: leave it out, or set chat to false")


def _in_template(tokenizer: Any, prompt: str, system: str | None) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise IITKitError("chat: the tokenizer has no chat template: leave it out")
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": prompt})
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def side_by_side(heads: tuple[str, str], texts: tuple[str, str], width: int | None = None) -> str:
    """Return two texts in columns.

    >>> print(side_by_side(("plain", "steered"), ("a b", "c"), width=13))
    plain | steered
    ----- | -----
    a b   | c
    """
    each = max(5, ((width or min(160, shutil.get_terminal_size((120, 24)).columns)) - 3) // 2)
    columns = [
        [head, "-" * each, *(line for part in text.splitlines() for line in textwrap.wrap(part, each) or [""])]
        for head, text in zip(heads, texts, strict=True)
    ]
    lines = zip_longest(*columns, fillvalue="")
    return "\n".join(f"{left:<{each}} | {right}".rstrip() for left, right in lines)


def _sweep(settings: Steer, model: Any, tokenizer: Any, texts: list[str], steering: Any) -> None:
    """Print effect and fluency at each strength, and the range that is suggested."""
    answers = None
    if settings.expect is not None and settings.instead is not None:
        answers = (settings.expect, settings.instead)
    head = f"{'strength':>8}  {'KL, nats':>8}"
    if answers is not None:
        head += f"  {'p(' + answers[0].strip() + ')':>8}"
    print(f"{head}  {'perplexity':>10}  continuation", flush=True)

    def tell(row: Strength) -> None:
        line = f"{row.strength:>8g}  {row.divergence:>8.3f}"
        if row.expected is not None:
            line += f"  {row.expected:>8.3f}"
        text = " ".join(row.text.split())
        print(f"{line}  {row.perplexity:>10.1f}  {text if len(text) <= 60 else text[:59] + '…'}", flush=True)

    tried = settings.strengths or STRENGTHS
    rows = sweep(
        *(model, tokenizer, texts, steering, tried),
        answers=answers,
        new_tokens=settings.new_tokens,
        tell=tell,
        add_special_tokens=not settings.chat,
    )
    found = suggested(rows)
    print(
        "no strength has an effect and stays fluent"
        if found is None
        else f"suggested: strength {found[0]:g} to {found[1]:g}"
        " (at least half of the effect, at most twice the plain perplexity)",
        flush=True,
    )
