"""Steering: a network's ``generate()`` and forward passes under an artifact's trained interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.hub.artifact import Artifact
from iitkit.hub.settings import Setting, Taken, taken
from iitkit.interventions import Intervention
from iitkit.interventions.steered import Unit, steered
from iitkit.models.generation import intervening
from iitkit.models.interchange import collect
from iitkit.models.passes import unedited
from iitkit.models.placed import Steps, Where
from iitkit.models.sites import Site
from iitkit.models.textspans import Given, TextSpans
from iitkit.positions import Position, check_spans, listed, resolve, span_name

Strength = float | Mapping[str, float]
Spans = Mapping[str, Given | Sequence[Given | None]]
TOKENS: dict[str, tuple[Position | None, Where]] = {
    "prompt": ("all", "prompt"),
    "generated": (None, "generated"),
    "all": ("all", "all"),
}
"""What ``where`` says of all tokens: the position in the prompt (None: as trained), and which tokens are edited."""


class Steering:
    """A network steered by an artifact, while it is attached; see :meth:`iitkit.Artifact.steer`.

    A context manager, and :meth:`attach` and :meth:`detach` where no ``with`` fits. Several may be attached at once:
    their edits apply in the order in which they were attached.
    """

    _attached: ClassVar[set[Steering]] = set()  # a network is steered until it is told otherwise, held or not

    def __init__(
        self,
        artifact: Artifact,
        model: nn.Module,
        tokenizer: Any,
        settings: Mapping[str, Setting] | None = None,
        *,
        source: str | Sequence[str] | Mapping[str, Any] | None = None,
        source_spans: Spans | None = None,
        strength: Strength = 1.0,
        unit: Unit = "edit",
        where: Position | None = None,
        steps: Steps | None = None,
        spans: Spans | None = None,
        match: str = "architecture",
    ) -> None:
        artifact.check(model, tokenizer, match)
        self._artifact, self._model, self._tokenizer = artifact, model, tokenizer
        self._stack: ExitStack | None = None
        found = taken(artifact, {} if settings is None else settings)
        self._placed = _placed(artifact, found, source is not None)
        self._spans = None if spans is None else TextSpans(tokenizer, spans)
        position, self._where = _tokens(where, artifact)
        self._steps = steps
        self._features: dict[str, Tensor] = {}
        self._active = {name: each.active for name, each in found.items() if each.active is not None}
        self._source: Mapping[str, Any] | None = None
        self.alignment: dict[str, tuple[Site, Intervention]] = {}
        """Placement name → where the edit is made and by which intervention."""
        sites = artifact.alignment(None)
        needing = []
        for name in self._placed:
            site, intervention = sites[name]
            each = found.get(name, Taken(None))
            if each.features is not None:
                self._features[name] = each.features
            elif intervention.needs_source:
                needing.append(name)
            largest = artifact.config["placements"][name].get("largest")
            edit = steered(intervention, unit, largest, each.coordinates)
            self.alignment[name] = (site if position is None else replace(site, position=position), edit)
            self._check_position(name, self.alignment[name][0])
        self._strength = _strengths(artifact, strength, self._placed)
        if self._spans is not None:
            at = [site.position for site, _ in sites.values()] if position is None else [position]
            _check_read(self._spans, [] if self._where == "generated" else at, "spans")
        if needing:
            assert source is not None
            self._collect(source, {name: sites[name][0] for name in needing}, source_spans, position is not None)
        elif source is not None or source_spans is not None:
            what = "source_spans" if source is None else "source"
            raise IITKitError(f"{what} given, and no placement takes anything from a source: leave it out")

    # --- what it was given ---

    def _check_position(self, name: str, site: Site) -> None:
        """Check that every span that is edited is known."""
        if self._where == "generated" or isinstance(site.position, Tensor):
            return
        if not any(span_name(item) for item in listed(site.position)):
            return
        if self._spans is None:
            spans = {span_name(item): "…" for item in listed(site.position) if span_name(item)}
            raise IITKitError(
                f"{name}: position {site.position!r} is a span of the task's prompts, and any text may come: say what "
                f"it is in yours, spans={spans}, or where='last' and the like"
            )
        check_spans(site.position, self._spans.names, name)

    def _collect(
        self,
        source: str | Sequence[str] | Mapping[str, Any],
        sites: Mapping[str, Site],
        spans: Spans | None,
        elsewhere: bool,
    ) -> None:
        """Take the source's activations at the trained positions; those of ``all`` are taken when it is attached."""
        inputs = _inputs(source, self._tokenizer, self._artifact.config.get("prefix") or "", self._model)
        finder = None if spans is None else TextSpans(self._tokenizer, spans)
        if finder is not None:
            trained = self._artifact.alignment(None).values()
            _check_read(finder, [site.position for site, _ in trained], "source_spans")
        whole = {n for n, site in sites.items() if not isinstance(site.position, Tensor) and site.position == "all"}
        if whole and elsewhere:
            raise IITKitError(
                f"{sorted(whole)[0]}: the artifact takes each token's own activation from the source (position 'all'), "
                "so it edits the prompt as it was trained: leave where out"
            )
        at = {
            name: replace(site, position=_columns(name, site, inputs, finder))
            for name, site in sites.items()
            if name not in whole
        }
        if at:
            with unedited(self._model):
                self._features |= collect(self._model, inputs, at)
        if whole:
            self._source = inputs

    # --- on and off ---

    @property
    def attached(self) -> bool:
        """Whether the network is being steered."""
        return self._stack is not None

    def attach(self) -> Steering:
        """Steer the network from now on.

        Raises:
            IITKitError: it is attached already.
        """
        if self._stack is not None:
            raise IITKitError("this steering is attached already: detach it first, or make another")
        stack = ExitStack()
        stack.enter_context(
            intervening(
                self._model,
                self.alignment,
                features=self._features,
                source=self._source,
                strength=self._strength,
                where=self._where,
                steps=self._steps,
                spans=self._spans,
                active=self._active,
            )
        )
        self._stack = stack
        self._attached.add(self)
        return self

    def detach(self) -> None:
        """Leave the network as it was; nothing happens where it is not attached."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Steering:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        self._attached.discard(self)
        if stack is not None:
            stack.__exit__(kind, error, trace)

    def __str__(self) -> str:
        lines = [f"steering of {type(self._model).__name__}, {'attached' if self.attached else 'not attached'}"]
        for name, (site, _) in self.alignment.items():
            strength = self._strength.get(name, 1.0) if isinstance(self._strength, Mapping) else self._strength
            at = "generated tokens" if self._where == "generated" else f"position {site.position}"
            also = " and generated tokens" if self._where == "all" else ""
            lines.append(f"  {name}: {site}, {at}{also}, strength {strength:g}")
        return "\n".join(lines)


def _tokens(where: Position | None, artifact: Artifact) -> tuple[Position | None, Where]:
    if where is None:  # as trained: ReFT may train edits of generated tokens too
        trained: Where = artifact.config.get("where", "prompt")
        return None, trained
    if isinstance(where, str) and where in TOKENS:
        return TOKENS[where]
    listed(where)  # refuses what is no position
    return where, "prompt"


def _placed(artifact: Artifact, found: Mapping[str, Taken], source: bool) -> list[str]:
    """Return the placements that are edited: those that are set, and those that need no setting."""
    placements = artifact.config["placements"]
    names = []
    for name, intervention in artifact.interventions.items():
        free = not intervention.needs_source and placements[name].get("value") is None
        if name in found or free or (source and intervention.needs_source):
            names.append(name)
    if not names:
        variables = list(dict.fromkeys(where["variable"] for where in placements.values()))
        values = {name: list(each.names) for name, each in artifact.values.items()}
        known = "; ".join(f"{name}: {choices(map(repr, names))}" for name, names in values.items())
        raise IITKitError(
            f"nothing is set: give a value of {choices(variables)}"
            + (f" ({known})" if known else "")
            + ", or source='…', a text that has it"
        )
    return names


def _check_read(spans: TextSpans, positions: Sequence[Any], what: str) -> None:
    """Check that every span that is given is named by a position, though it may be one that nothing is set for."""
    named = [span_name(item) for at in positions if not isinstance(at, Tensor) for item in listed(at)]
    if unread := [name for name in spans.names if name not in named]:
        raise IITKitError(
            f"{what} name {unread[0]!r}, and no position does: edits are at "
            f"{choices(list(dict.fromkeys(str(at) for at in positions))) or 'generated tokens'}. Leave it out"
        )


def _strengths(artifact: Artifact, strength: Strength, placed: Sequence[str]) -> Strength:
    """Return one strength for all, or each edited placement's own."""
    if not isinstance(strength, Mapping):
        return _number(strength)
    placements = artifact.config["placements"]
    known = list(dict.fromkeys([*placements, *(where["variable"] for where in placements.values())]))
    if unknown := [key for key in strength if key not in known]:
        raise IITKitError(
            f"strength names {unknown[0]!r}, which the artifact does not have.{did_you_mean(unknown[0], known)} "
            f"It has {choices(known)}"
        )
    edited = list(dict.fromkeys(each for name in placed for each in (name, placements[name]["variable"])))
    if unread := [key for key in strength if key not in edited]:
        raise IITKitError(
            f"the strength of {unread[0]!r}, which nothing is set for, is read by nothing: give those of "
            f"{choices(edited)}"
        )
    return {name: _number(strength.get(name, strength.get(placements[name]["variable"], 1.0))) for name in placed}


def _number(strength: Any) -> float:
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) < float("inf"):
        raise IITKitError(f"strength {strength!r}: expected a finite number, or one for each placement")
    return strength


def _inputs(source: Any, tokenizer: Any, prefix: str, model: nn.Module) -> dict[str, Any]:
    """Return source texts as tokens, with the prefix that the artifact was trained with."""
    # of an offloaded network they are nowhere until they are needed; inputs are then moved by its own hooks
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    if isinstance(source, Mapping):
        ids = source.get("input_ids")
        if ids is None:
            raise IITKitError(f"a source without input_ids, of {choices(source)}: give what the tokenizer returns")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise IITKitError(
                "the source's input_ids: expected a tensor [rows, tokens]: call the tokenizer with return_tensors='pt'"
            )
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in source.items()}
    if not isinstance(source, str | Sequence):
        raise IITKitError(f"source {source!r}: expected a text, a list of texts, or what the tokenizer returns")
    texts = [source] if isinstance(source, str) else list(source)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise IITKitError(f"source {source!r}: expected a text, a list of texts, or what the tokenizer returns")
    if tokenizer is None:
        raise IITKitError("source is a text and no tokenizer was given: give the model's")
    rows = [tokenizer(prefix + text)["input_ids"] for text in texts]
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _columns(name: str, site: Site, inputs: Mapping[str, Any], spans: TextSpans | None) -> Tensor:
    """Return the columns of a trained position in the source, [rows, k]."""
    at = site.position
    if isinstance(at, Tensor):
        return at
    named = [item for item in listed(at) if span_name(item)]
    if named and spans is None:
        raise IITKitError(
            f"{name}: position {at!r} is a span of the task's prompts: say what it is in the source, "
            f"source_spans={ {span_name(item): '…' for item in named} }"
        )
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows = []
    for row in range(len(ids)):
        real = torch.arange(ids.shape[1]) if mask is None else mask[row].nonzero()[:, 0].cpu()
        found = spans.find(ids[row][real.to(ids.device)].tolist(), row) if spans is not None and named else None
        try:
            rows.append(real[resolve(at, len(real), found)])
        except IITKitError as error:
            raise IITKitError(f"{name}: source: {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise IITKitError(f"{name}: position {at!r} has another number of tokens in different sources: give one source")
    return torch.stack(rows).to(ids.device)
