"""The artifact: trained interventions as they are released, loaded and used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.hub.matching import Match, check_match, check_tokenizer
from iitkit.hub.values import Values
from iitkit.interventions import Intervention
from iitkit.models.sites import Site

if TYPE_CHECKING:
    from iitkit.hub.push import Pushed
    from iitkit.hub.settings import Setting
    from iitkit.hub.steering import Steering
    from iitkit.interventions.steered import Unit
    from iitkit.models.placed import Steps
    from iitkit.models.textspans import Given


@dataclass(frozen=True)
class Artifact:
    """Trained interventions as they are released: nothing in them trains.

    Args:
        config: what config.json says.
        interventions: placement name → intervention.
        values: placement name → its variable's values and what they look like there; only placements that take a
            source and whose variable has few values have them.
        metrics: what the test measured, ``group/rate`` → number, None for a rate of no pairs.
        card: the README, where somebody wrote it by hand.
    """

    config: dict[str, Any]
    interventions: dict[str, Intervention]
    values: dict[str, Values] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    card: str | None = None

    @property
    def base(self) -> dict[str, Any]:
        """The base model: id, revision, architecture, width, layers, dtype, and what stands for its weights."""
        return dict(self.config["base"])

    def alignment(
        self, positions: Mapping[str, int | str | Sequence[int | str] | Tensor] | None = None
    ) -> dict[str, tuple[Site, Intervention]]:
        """Return site and intervention of every placement, as :func:`iitkit.interchange` takes them.

        Args:
            positions: placement name → position, instead of the trained one. A trained position that names a span of
                the task's prompt means nothing in other text, so it must be given here.

        Raises:
            IITKitError: a placement that the artifact does not have.
        """
        given = dict(positions or {})
        if unknown := [name for name in given if name not in self.interventions]:
            raise IITKitError(f"the artifact has no placement {unknown[0]!r}: it has {choices(self.interventions)}")
        placed = {}
        for name, intervention in self.interventions.items():
            where = self.config["placements"][name]
            keys = ("layer", "component", "module", "side", "head", "joint", "variable")
            site = {key: where[key] for key in keys if key in where}
            placed[name] = (Site(**{**site, "position": given.get(name, where["position"])}), intervention)
        return placed

    def steer(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        settings: Mapping[str, Setting] | None = None,
        *,
        source: str | Sequence[str] | Mapping[str, Any] | None = None,
        source_spans: Mapping[str, Given | Sequence[Given | None]] | None = None,
        strength: float | Mapping[str, float] = 1.0,
        unit: Unit = "edit",
        where: int | str | Sequence[int | str] | None = None,
        steps: Steps | None = None,
        spans: Mapping[str, Given | Sequence[Given | None]] | None = None,
        match: str = "architecture",
    ) -> Steering:
        """Steer what a model generates and runs: ``with found.steer(model, tokenizer, {"gender": "female"}): …``.

        Inside the context, or between ``attach()`` and ``detach()``, ``model.generate(…)`` and ``model(…)`` run with
        the trained edits: pipelines, streaming, sampling, beams and assisted decoding too, with and without a cache;
        see :func:`iitkit.intervening`. Afterwards, also after an exception, the model is as it was.

        Each call of ``generate`` is a prompt, and positions count among its own tokens. Edits of the prompt are made
        in the prefill, from which the *first* generated token is chosen; edits of generated tokens are made as each of
        them is processed, so they change the second one first, and of n new tokens n − 1 are edited.

        Args:
            model: the base model, or another that ``match`` lets through.
            tokenizer: the model's; needed for ``spans`` and for a source that is a text.
            settings: variable (or placement) → what it is set to: one of its values, as text or by the answer that it
                leads to; a list with one value for each row of the batch (None leaves a row alone); or a vector
                [width] or [rows, width] that is taken as the source's activation. A value is what the training
                sources that had it have in common: the mean of their coordinates. What takes nothing from a source
                (an addition, an ablation) needs no setting.
            source: a text, texts, or what the tokenizer returns, from which what is not set is taken, at the trained
                positions. The prefix of the training prompts is put before texts.
            source_spans: what the spans that trained positions name are in the source.
            strength: ``h + strength · (edit(h) − h)``; 0 installs nothing. Or placement or variable → strength.
            unit: what strength 1 is: ``edit``, the trained edit; ``norm``, an edit as long as the vector that it
                changes; ``largest``, an edit as long as the largest source vector that training saw, in the
                intervention's coordinates.
            where: where the edit is made; the trained position in the prompt unless said. ``prompt``: every token of
                the prompt; ``generated``: every generated token that is processed; ``all``: both; or a position of the
                prompt: ``last``, an integer, ``f7+l7`` (of a shorter prompt each token once), a span, a list of these.
            steps: which generated tokens, counted from 0: (first, one behind the last), None for all that follow.
            spans: what the spans that positions name are in the prompts: substrings that stand there once, or offsets
                (first character, one behind the last) in the text as the tokenizer decodes it, special tokens left
                out; or lists of these, one for each prompt, None where a prompt has no such span: nothing is edited
                there.
            match: how alike model and base must be; see :meth:`check`.

        Returns:
            The steering, not yet attached: a context manager.

        Raises:
            IITKitError: what the artifact does not have, what does not fit, and, when the model runs, a prompt that
                has no such position.
        """
        from iitkit.hub.steering import Steering  # it needs this class

        return Steering(
            *(self, model, tokenizer, settings),
            source=source,
            source_spans=source_spans,
            strength=strength,
            unit=unit,
            where=where,
            steps=steps,
            spans=spans,
            match=match,
        )

    def check(self, model: nn.Module, tokenizer: Any = None, match: str = "architecture") -> Match:
        """Return how well a model fits the artifact; warn where it is not the very base, or of another tokenizer.

        Args:
            model: the model.
            tokenizer: its tokenizer; not compared unless given.
            match: the least that will do. ``exact``: the weights that the artifact was trained on, in fp64, fp32 or
                bf16, from wherever they were loaded. ``architecture``: the same class, width and number of layers.
                ``width``: the width alone.

        Raises:
            IITKitError: a model that fits less well than that.
        """
        found = check_match(self.config["base"], model, match)
        if tokenizer is not None and "tokenizer" in self.config:
            check_tokenizer(self.config["tokenizer"], tokenizer)
        return found

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the artifact to a folder; an artifact that is there is replaced.

        Raises:
            IITKitError: where it cannot be written, or another thing of that name.
        """
        from iitkit.hub.saving import write_folder

        return write_folder(folder, self)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
        token: str | None = None,
        message: str | None = None,
    ) -> Pushed:
        """Push the artifact to the Hugging Face Hub, in one commit; see :func:`iitkit.hub.push.push`.

        Raises:
            IITKitError: no token, or a Hub that refuses or cannot be reached.
        """
        from iitkit.hub.push import push

        return push(
            self,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            subfolder=subfolder,
            token=token,
            message=message,
        )

    def __str__(self) -> str:
        lines = [f"artifact of {self.config['base']['id']} ({self.config.get('task') or 'no task'})"]
        lines += [
            f"  {name}: {where['variable']} at {_place(where)}, "
            + (f"shared with {where['shared_with']}" if "shared_with" in where else where["intervention"]["name"])
            for name, where in self.config["placements"].items()
        ]
        return "\n".join(lines)


def _place(where: Mapping[str, Any]) -> str:
    layer = "" if where.get("layer") is None else f"layer {where['layer']} "
    return f"{where.get('module') or layer + where['component']}, position {where['position']}"
