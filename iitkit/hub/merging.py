"""Merging edits into a model's weights, where that is exact.

An affine edit of a linear module's own output, or of its input, at every token is again a linear module: with
``y = W x + b`` and ``y ↦ M y + c + D x`` it has the weight ``M W + D`` and the bias ``M b + c``; with ``x ↦ M x + c``
the weight ``W M`` and the bias ``b + W c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.hub.affine import Affine, affine_of
from iitkit.hub.artifact import Artifact
from iitkit.hub.biases import with_bias
from iitkit.hub.linear import Linear, linear_at
from iitkit.interventions import Intervention
from iitkit.interventions.checks import number
from iitkit.models.generation import intervening
from iitkit.models.interchange import Alignment
from iitkit.models.sites import Site

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest relative difference of logits, by the weights' dtype: the law's, or what narrow weights can hold."""


@dataclass(frozen=True)
class _Change:
    module: nn.Module
    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def merge(model: nn.Module, found: Artifact | Alignment, *, strength: float = 1.0) -> nn.Module:
    """Make edits part of a model's weights; it then does by itself what it did under ``where="all"``.

    Only an affine edit of a linear module's own output (or input), at all tokens, can be merged. Components that end
    in such a module count as its output: ``attention_output``, ``mlp_output``, ``query_output``, … and, as its input,
    ``attention_value_output`` and ``mlp_hidden``. All is checked before anything is changed, and afterwards the merged
    model's logits are compared with the edited ones' on random tokens.

    Args:
        model: the model, changed in place: merge into a copy.deepcopy to keep it. A module that has no bias gets one
            where the edit needs it; where the model's config has a switch for that, its other modules get biases of 0,
            so that the model can be saved and loaded.
        found: an artifact, or placement name → (site, intervention). Several edits of one module apply in the order
            given, those of a larger module that ends in it after its own.
        strength: ``h + strength · (edit(h) − h)``.

    Returns:
        ``model``.

    Raises:
        IITKitError: an edit that cannot be merged, with the reason: it takes a source, is not affine, reaches some
            positions only, or lies in the residual stream or elsewhere than at a linear module; weights that are
            quantised, computed or used by another module too; logits that then differ (fp32: by more than 1e-5).
    """
    number("strength", strength)
    if isinstance(found, Artifact):
        found.check(model)
    alignment = found.alignment() if isinstance(found, Artifact) else dict(found)
    if not alignment:
        raise IITKitError("there is no intervention to merge")
    planned = [(name, linear_at(model, site, name), edit) for name, (site, edit) in alignment.items()]
    _check_together([(name, place) for name, place, _ in planned], [edit for _, _, edit in planned])
    for name, (site, edit) in alignment.items():
        _check_position(name, site, edit)
    changes: dict[int, _Change] = {}
    for name, place, edit in _as_merged(planned):
        if edit.needs_input and not place.own:
            raise IITKitError(
                f"{name}: {type(edit).__name__} reads what enters the whole module, not what enters the linear map "
                "that it ends in: name that one by its path (module)"
            )
        module = place.module
        now = changes.get(id(module)) or _Change(module, place.weight().double(), place.bias())
        shaped = place.whole(affine_of(name, edit, place.width, place.input_width), strength)
        changes[id(module)] = _merged(now, place, shaped)
    tokens = _tokens(model)
    expected = None
    if tokens is not None:
        with intervening(model, alignment, strength=strength, where="all"):
            expected = _logits(model, tokens)
    before = [_written(model, change) for change in changes.values()]
    if expected is not None and tokens is not None:
        dtype = planned[0][1].weight().dtype
        got = _logits(model, tokens)
        off = float((got - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE.get(dtype, 0.1):
            for undo in before:
                undo()
            raise IITKitError(
                f"the merged model's logits differ from the edited one's by {off:.2g} (relative): something between "
                f"the site and its linear module changes what passes, or {str(dtype).removeprefix('torch.')} is too "
                "narrow for this edit; the model is as it was"
            )
    return model


def _check_position(name: str, site: Site, edit: Intervention) -> None:
    if isinstance(site.position, Tensor) or site.position != "all":
        raise IITKitError(
            f"{name}: it edits position {site.position!r}: weights do the same at every token. If that is what you "
            "want, place it at 'all'"
        )
    if site.joint:
        raise IITKitError(f"{name}: it edits several positions as one vector: weights see one token at a time")


def _check_together(places: Sequence[tuple[str, Linear]], edits: Sequence[Intervention]) -> None:
    """Refuse what one module cannot do at once: an edit that reads an input which another edits."""
    for name, place in places:
        mine = [
            (other, theirs.side, edit.needs_input)
            for (other, theirs), edit in zip(places, edits, strict=True)
            if theirs.module is place.module
        ]
        readers = [other for other, side, reads in mine if side == "output" and reads]
        if place.side == "input" and readers:
            raise IITKitError(
                f"{readers[0]} reads the input of the module that {name} edits: merge one of them, and keep the other"
            )


def _as_merged(planned: Sequence[tuple[str, Linear, Intervention]]) -> list[tuple[str, Linear, Intervention]]:
    """Return edits in the order in which weights take them in.

    A linear module's own output is edited before that of the module that it ends. Of ``W e₂(e₁(x))`` the weights meet
    e₂ first.
    """
    inputs = [each for each in planned if each[1].side == "input"]
    outputs = [each for each in planned if each[1].side == "output"]
    return [*reversed(inputs), *sorted(outputs, key=lambda each: not each[1].own)]


def _merged(now: _Change, place: Linear, edit: Affine) -> _Change:
    """Return a module's weight [out, in] and bias [out] after one more edit, fp64."""
    weight, bias = now.weight, now.bias
    if place.side == "input":
        extra = weight @ edit.shift
        weight = weight if edit.linear is None else weight @ edit.linear.T
        bias = extra if bias is None else bias + extra
    else:
        if edit.linear is not None:
            weight = edit.linear.T @ weight
            bias = None if bias is None else bias @ edit.linear
        if edit.entering is not None:
            weight = weight + edit.entering.T
        bias = edit.shift if bias is None else bias + edit.shift
    return _Change(now.module, weight, bias)


def _written(model: nn.Module, change: _Change) -> Any:
    """Write a module's new weight and bias; return what puts the old ones back."""
    module: Any = change.module
    old_weight = module.weight.data
    weight = change.weight if isinstance(module, nn.Linear) else change.weight.T
    module.weight.data = weight.to(old_weight).contiguous()
    undo_bias = None
    if module.bias is not None:
        old_bias = module.bias.data
        assert change.bias is not None
        module.bias.data = change.bias.to(old_bias)
    elif change.bias is not None and bool(change.bias.any()):
        undo_bias, made = with_bias(model, module)
        made.data = change.bias.to(old_weight)

    def undo() -> None:
        module.weight.data = old_weight
        if undo_bias is not None:
            undo_bias()
        elif module.bias is not None:
            module.bias.data = old_bias

    return undo


def _tokens(model: nn.Module) -> Tensor | None:
    """Return random tokens to try a language model on, [2, 8]; None for another network."""
    config: Any = getattr(model, "config", None)
    size = getattr(config.get_text_config(), "vocab_size", None) if hasattr(config, "get_text_config") else None
    if not isinstance(size, int):
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size, (2, 8), generator=generator).to(next(model.parameters()).device)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    untyped: Any = model
    training = model.training
    model.eval()
    try:
        found: Tensor = untyped(input_ids=tokens)[0]  # the logits, or a headless network's last hidden state
    finally:
        model.train(training)
    return found.double()
