"""How a module's batches are run: with what the frozen base computes alike in every step computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iitkit.errors import IITKitError
from iitkit.models.replay import Keeping, Replay, make_runner
from iitkit.models.runs import PlainRunner, Runner
from iitkit.models.stages import StagedRunner

if TYPE_CHECKING:
    from iitkit.modules.base import InterventionModule

log = logging.getLogger("iitkit")


def runner_for(module: InterventionModule) -> Runner:
    """Return what runs a module's batches: with replay where it holds and is wanted."""
    locations = list(module.locations.values())
    if module.stages:
        if module.replay != "off":
            log.info("replay is off: the sources of later stages are run with the edits of the earlier ones")
        return StagedRunner(module.base_model, locations)
    if getattr(module.base_model, "get_output_embeddings", lambda: None)() is None:
        log.info("replay is off: %s has no LM head", type(module.base_model).__name__)
        return PlainRunner(module.base_model, locations)
    memory = None if module.replay_memory is None else module.replay_memory * 2**30
    revision = str(module.identity["revision"])
    keeping = Keeping(memory, module.replay_folder, None if revision == "unknown" else revision)
    reading = [edit.needs_input for edit in module.edits]
    return make_runner(module.base_model, locations, module.replay, keeping, reading)


def keep_frozen(module: InterventionModule, splits: Sequence[str]) -> None:
    """Run the base on all prompts of some splits once, so that no step runs again what is always alike."""
    trainer: Any = module.trainer
    if not isinstance(module.runner, Replay) or not _whole(trainer):
        return  # a run of some batches needs some prompts only: they are kept when they come
    module.to(trainer.strategy.root_device)
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with trainer.precision_plugin.forward_context():
        module.runner.fill(trainer.datamodule.every_prompt(splits), progress=shown)


def keep_completions(module: InterventionModule, splits: Sequence[str]) -> None:
    """Run the base on all examples of some splits once, prompts and completions; the same in every run."""
    trainer: Any = module.trainer
    if not isinstance(module.runner, Replay) or not _whole(trainer):
        return
    module.to(trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context():
        batches = (batch for split in splits for batch in trainer.datamodule.every_pair(split))
        module.runner.keep(batch.to(module.device) for batch in batches)


def _whole(trainer: Any) -> bool:
    """Whether all batches are run."""
    limits = [getattr(trainer, f"limit_{stage}_batches") for stage in ("train", "val", "test", "predict")]
    return not trainer.fast_dev_run and all(isinstance(limit, float) and limit == 1.0 for limit in limits)  # 1 is one


def check_precision(precision: str | int | None) -> None:
    """Refuse a true precision of the trainer: interventions are fp32 or wider, whatever the base is.

    Raises:
        IITKitError: one that is not mixed, and not that of fp32.
    """
    name = _TRUE.get(str(precision))
    if name is not None:
        raise IITKitError(
            f"trainer.precision: {precision!r} would convert the interventions too: say model.dtype: {name}, for the "
            "base alone, or a mixed precision"
        )


_TRUE = {
    **dict.fromkeys(("bf16-true", "transformer-engine"), "bfloat16"),
    **dict.fromkeys(("16-true", "transformer-engine-float16"), "float16"),
    **dict.fromkeys(("64-true", "64"), "float64"),
}
