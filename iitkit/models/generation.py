"""Editing whatever a language model runs while a context is open: ``generate()`` and plain forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import get_args

from torch import Tensor, nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions.checks import number
from iitkit.models.editing import visiting
from iitkit.models.interchange import Alignment, collect
from iitkit.models.passes import Passes, real_tokens, unedited
from iitkit.models.placed import Placed, Steps, Where
from iitkit.models.sources import Inputs, by_placement
from iitkit.models.textspans import TextSpans

__all__ = ["Where", "intervening"]


@contextmanager
def intervening(
    model: nn.Module,
    alignment: Alignment,
    *,
    features: Mapping[str, Tensor] | None = None,
    source: Inputs | Mapping[str, Inputs] | None = None,
    strength: float | Mapping[str, float] = 1.0,
    where: Where = "prompt",
    steps: Steps | None = None,
    spans: TextSpans | None = None,
    active: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Edit what the model runs inside the context: ``model.generate(…)`` and ``model(…)``, as often as wanted.

    Each call of ``generate`` begins a prompt, and so does each forward pass outside it that comes with no cache or an
    empty one; a pass with the cache of a prompt that was begun here goes on with it. A site's position counts among the
    *prompt's* real tokens, on whichever side it is padded: integers (negative from the prompt's end), ``last`` (the
    prompt's last token), ``all`` (every token of the prompt), ``f7+l7``, a list of these, or a tensor of columns
    [batch, k]. These tokens are edited whenever they are run: once, in the prefill, with a cache; in every pass
    without one. Row r of a batch in which beams or ``num_return_sequences`` repeat rows belongs to example
    r // (rows / examples).

    ``where="generated"`` edits instead each generated token as it is processed, whatever the site's position, and
    ``"all"`` edits both. The first generated token is chosen from the prefill, so edits at generated tokens change the
    second one first, and the last generated token is never processed: of n new tokens n − 1 are edited. ``steps``
    narrows that to some of them.

    Nested contexts and placements at one site apply in the order in which they were declared. The model is called as
    the caller calls it: ``generate`` numbers the tokens of left-padded prompts itself, a plain forward pass needs the
    ``position_ids`` from its caller. Gradients flow through plain forward passes.

    Args:
        model: a decoder-only language model; its parameters and hooks are left alone. While the context is open its
            forward is not compiled.
        alignment: placement name → (site, intervention).
        features: placement name → source activations [examples, n, (heads,) width], as :func:`collect` returns them;
            one example serves all rows, and n = 1 all positions. Otherwise n is the site's number of positions; for
            ``all`` it is the number of the prompt's columns, padding and all.
        source: inputs from which those that are not in ``features`` are collected once, unedited, at the sites' own
            positions; placement name → inputs where placements take theirs from different sources.
        strength: ``h + strength · (edit(h) − h)``; 0 installs nothing. Or placement name → strength.
        where: ``prompt``, ``generated`` or ``all``. Generated tokens take sourceless interventions, or one position's
            activation (n = 1).
        steps: which generated tokens, counted from 0: (first, one behind the last), None for all that follow. Tokens
            of the prompt are edited whatever it says.
        spans: substrings of the prompts that positions may name.
        active: placement name → which examples it edits, booleans [examples]; all unless said.

    Yields:
        Nothing; afterwards, also after an exception, the model is as it was.

    Raises:
        IITKitError: a site, position, source or batch that does not fit; here, or from the model's call. Also
            continuous batching, which packs prompts into one row, and a compiled model, which does not see hooks.
    """
    strengths = _strengths(strength, alignment)
    alignment = {name: placed for name, placed in alignment.items() if strengths[name] != 0}
    if not alignment:
        yield
        return
    _check_steps(steps, where)
    if where not in get_args(Where):
        raise IITKitError(f"where {where!r}:{did_you_mean(where, get_args(Where))} expected {choices(get_args(Where))}")
    _refuse(model)
    given = dict(features or {})
    _check_names("features name", given, strengths)
    _check_names("active names", active or {}, strengths)
    needing = [name for name, (_, edit) in alignment.items() if edit.needs_source and name not in given]
    masks: dict[str, Tensor] = {}
    with unedited(model):
        for inputs, names in by_placement(source, {}, list(strengths), needing):
            given |= collect(model, inputs, {name: alignment[name][0] for name in names})
            if isinstance(inputs, Mapping) and "input_ids" in inputs:
                masks |= dict.fromkeys(names, real_tokens(inputs.get("attention_mask"), *inputs["input_ids"].shape))
    placed = [
        Placed(
            *(model, name, site, edit, given.get(name), masks.get(name), strengths[name], where, steps, spans),
            (active or {}).get(name),
        )
        for name, (site, edit) in alignment.items()
    ]
    with ExitStack() as stack:
        passes = Passes.opened(model, stack)
        for each in placed:
            passes.listeners.append(each)
            stack.callback(passes.listeners.remove, each)
        stack.enter_context(visiting([(each.location, each.visitor(passes)) for each in placed]))
        yield
        for each in placed:
            each.check_ran()


def _strengths(strength: float | Mapping[str, float], alignment: Alignment) -> dict[str, float]:
    if not isinstance(strength, Mapping):
        return dict.fromkeys(alignment, number("strength", strength))
    _check_names("strength names", strength, alignment)
    return {name: number(f"strength of {name}", strength.get(name, 1.0)) for name in alignment}


def _check_names(what: str, given: Iterable[str], placed: Iterable[str]) -> None:
    known = list(placed)
    if unknown := [name for name in given if name not in known]:
        raise IITKitError(
            f"{what} {unknown[0]!r}, which the alignment does not place."
            f"{did_you_mean(unknown[0], known)} It has {choices(known)}"
        )


def _check_steps(steps: Steps | None, where: str) -> None:
    if steps is None:
        return
    first, stop = steps if isinstance(steps, Sequence) and len(steps) == 2 else (None, None)
    if type(first) is not int or first < 0 or (stop is not None and (type(stop) is not int or stop <= first)):
        raise IITKitError(f"steps {steps!r}: expected (first, one behind the last) of the generated tokens, from 0")
    if where == "prompt":
        raise IITKitError(f"steps {steps!r}: where='prompt' edits no generated token: say where='generated' or 'all'")


def _refuse(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise IITKitError(f"{type(model).__name__} is an encoder-decoder: a decoder-only language model is needed here")
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()) or hasattr(
        model, "_orig_mod"
    ):
        raise IITKitError(f"{type(model).__name__} is compiled and would not see the edits: give the model uncompiled")
