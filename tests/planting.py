"""Short fits of IIT on networks from scratch, and what its terms are by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from training import adam

from iitkit.batch import Batch
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.models.scratch import GPT2, MLP, Network
from iitkit.modules import IIT
from iitkit.tasks import BooleanTree, HierarchicalEquality

QUIET = [
    pytest.mark.filterwarnings(f"ignore:.*{said}.*")
    for said in ("does not have many workers", "logging interval", "in eval mode at the start of training", "LeafSpec")
]
"""What Lightning says of short runs, as a module's ``pytestmark``."""


def neurons(layer: int, features: list[int], **more: Any) -> dict[str, Any]:
    return {"layer": layer, "intervention": {"name": "Vanilla", "features": features}, **more}


SIDES: dict[str, Any] = {"left_equal": neurons(1, [0, 1]), "right_equal": neurons(1, [2, 3, 4])}
MLP_SIZES = [8, 6, 7, 2]
PARTS: dict[str, Any] = {"ab": neurons(1, [0, 1, 2], position="last"), "cd": neurons(1, [3, 4], position="c")}


def equality(**options: Any) -> CounterfactualDataModule:
    task = HierarchicalEquality("vectors", entities=40, width=2)
    return CounterfactualDataModule(
        task, Sizes(train=48, validation=24, test=20), **{"batch_size": 16, "seed": 0, **options}
    )


def booleans(**options: Any) -> CounterfactualDataModule:
    return CounterfactualDataModule(
        BooleanTree(inputs="symbols"),
        Sizes(train=48, validation=24, test=20),
        **{"batch_size": 12, "seed": 0, **options},
    )


def made(alignment: dict[str, Any] | None = None, base: str | Network | None = None, **options: Any) -> IIT:
    return IIT(base or MLP(MLP_SIZES, seed=3), alignment or SIDES, **{"optimizer": adam(0.01), **options})


def small_gpt2(**options: Any) -> GPT2:
    return GPT2(3, **{"width": 16, "layers": 3, "heads": 2, "positions": 8, "seed": 1, **options})


def first(module: IIT, data: CounterfactualDataModule) -> Batch:
    module.configure_model()
    data.bind(module)
    return next(iter(data.train_dataloader()))


def fitted(module: Any, data: CounterfactualDataModule, *callbacks: Callback, epochs: int = 1, **options: Any) -> Any:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return module


def by_hand(model: nn.Module, inputs: Tensor, swap: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The MLP's own arithmetic; ``swap`` changes what leaves layer 1's activation."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hidden = torch.relu(inputs @ maps[0].weight.T + maps[0].bias)
    hidden = torch.relu(hidden @ maps[1].weight.T + maps[1].bias)
    if swap is not None:
        hidden = swap(hidden)
    return hidden @ maps[2].weight.T + maps[2].bias


def layer_one(model: nn.Module, inputs: Tensor) -> Tensor:
    kept: list[Tensor] = []
    by_hand(model, inputs, lambda hidden: kept.append(hidden) or hidden)  # type: ignore[func-returns-value]
    return kept[0]


def swapped(model: nn.Module, batch: Batch, detach: bool = False) -> Tensor:
    """The interchanged logits: each row's own neurons from the source."""
    source = layer_one(model, batch.sources[0].inputs)  # type: ignore[attr-defined]
    source = source.detach() if detach else source
    mask = torch.zeros(len(batch), 7, dtype=torch.bool)
    mask[batch.active[:, 0], 0:2] = True
    mask[batch.active[:, 1], 2:5] = True
    return by_hand(model, batch.base.inputs, lambda hidden: torch.where(mask, source, hidden))  # type: ignore[attr-defined]


def strictly(model: nn.Module, batch: Batch) -> Tensor:
    """The logits with the neurons that no variable has from the source."""
    source = layer_one(model, batch.sources[0].inputs)  # type: ignore[attr-defined]
    outside = torch.tensor([False] * 5 + [True] * 2)
    return by_hand(model, batch.base.inputs, lambda hidden: torch.where(outside, source, hidden))  # type: ignore[attr-defined]


class Gradients(Callback):
    """Keeps the gradients, the loss and the logged terms of every step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        assert not any(module.training for module in pl_module.base_model.modules())
        self.steps.append([p.grad.clone() for p in pl_module.base_model.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})


def one_step(**options: Any) -> tuple[float, list[Tensor], dict[str, float]]:
    watch = Gradients()
    fitted(made(**options), equality(), watch, limit_train_batches=1, limit_val_batches=0)
    return watch.losses[0], watch.steps[0], watch.logged[0]


OFF = {"w_behaviour": 0.0, "w_iit": 0.0, "w_strict": 0.0, "w_kl": 0.0}


def tensors(module: IIT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.base_model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def spied(model: nn.Module, inputs: Any, at: nn.Module, put: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of the last position with a hand-placed hook on a block's output."""
    handle = at.register_forward_hook(lambda module, args, output: put(output))
    try:
        logits: Tensor = model(input_ids=inputs.ids, attention_mask=inputs.mask).logits[:, -1]
    finally:
        handle.remove()
    return logits


def activation(model: Any, tokens: Any, layer: int) -> Tensor:
    kept: list[Tensor] = []
    spied(model, tokens, model.transformer.h[layer], lambda out: kept.append(out) or out)  # type: ignore[func-returns-value]
    return kept[0]
