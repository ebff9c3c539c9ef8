"""ReFT by hand: the loss of the completions' tokens alone, which tokens are edited, what a step is the mean of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from byhand import logits_of, module_of, padded, relative
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from tiny import save_tiny
from torch import Tensor
from training import fitted

from iitkit.batch import IGNORED
from iitkit.data import CompletionDataModule, Dataset
from iitkit.data.ragged import Ragged
from iitkit.errors import IITKitError
from iitkit.models.generation import intervening
from iitkit.models.runs import PlainRunner, label_logits
from iitkit.modules import ReFT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

ROWS = [
    ("When Mary and John went to the park, John gave a book to", " Mary"),
    ("The boy", " is happy because he stayed home"),
    ("Yesterday, Anna walked home because", " she was late"),
    ("On Monday, Tom was", " sick"),
    ("The dog near the park", " is late"),
    ("This morning, John walked home", " because he was happy and late"),
    ("When", " she stayed"),
]
VECTOR: dict[str, Any] = {"layer": 1, "position": "last", "intervention": {"name": "Addition"}}
EVERY = ("train", "validation", "test")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / request.param, request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / "gpt2"))


def write(folder: Path, rows: Sequence[tuple[str, str]] = ROWS) -> Path:
    """The same rows as every split, each split with a mark of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in EVERY:
        mark = "" if split == "train" else f"{split}: "
        lines = [json.dumps({"prompt": mark + prompt, "completion": said}) for prompt, said in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def data_of(folder: Path, **options: Any) -> CompletionDataModule:
    return CompletionDataModule(Dataset(str(folder)), **{"batch_size": 4, "seed": 0, **options})


def made(base: str, alignment: dict[str, Any] | None = None, **options: Any) -> ReFT:
    module = ReFT(base, alignment or {"it": VECTOR}, **{"optimizer": sgd, **options})
    module.configure_model()
    return module


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def vectors(module: ReFT, scale: float = 3.0) -> dict[str, Tensor]:
    """Give every placement a vector, and return them."""
    found = {}
    generator = torch.Generator().manual_seed(1)
    for name in module.alignment:
        (parameter,) = module.intervention(name).parameters()
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        found[name] = parameter.detach().clone()
    return found


def by_hand(
    module: ReFT, family: str, prompt: list[int], said: list[int], edits: dict[str, tuple[int, list[int]]]
) -> Tensor:
    """The logits at a completion's tokens [T, V], of one unpadded row with vectors added by plain hooks."""
    vectors = {name: next(module.intervention(name).parameters()).detach() for name in edits}
    placed = [
        (module_of(module.base_model, family, layer, "block_output"), columns, lambda h, v=vectors[name]: h + v)  # type: ignore[misc, arg-type]
        for name, (layer, columns) in edits.items()
    ]
    with torch.no_grad():
        logits = logits_of(module.base_model, [*prompt, *said[:-1]], placed)
    return logits[len(prompt) - 1 :]


# --- the loss ---


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
@pytest.mark.parametrize("replay", ["auto", "off"])
def test_loss_is_of_the_completions_alone(base: str, tmp_path: Path, where: Any, padding: Any, replay: Any) -> None:
    alignment = {"ends": {**VECTOR, "position": "f2+l1"}, "last": {**VECTOR, "layer": 2}}
    module = made(base, alignment, where=where, replay=replay)
    vectors(module)
    data = data_of(write(tmp_path / "data"), padding=padding)
    data.bind(module)
    family = Path(base).name
    rows = [0, 1, 2, 6]
    batch = data.batch("train", rows)
    assert len(set(batch.base.mask.sum(1).tolist())) == 4  # ragged prompts
    assert len(set((batch.labels >= 0).sum(1).tolist())) > 1  # and completions
    expected = []
    for row in rows:
        prompt, said = (module.tokenizer(text)["input_ids"] for text in ROWS[row])
        said = [*said, module.tokenizer.eos_token_id]
        n, fed = len(prompt), list(range(len(prompt), len(prompt) + len(said) - 1))
        ends, last = sorted({0, min(1, n - 1), n - 1}), [n - 1]
        at = {
            "prompt": {"ends": (1, ends), "last": (2, last)},
            "generated": {"ends": (1, fed), "last": (2, fed)},
            "all": {"ends": (1, ends + fed), "last": (2, last + fed)},
        }[where]
        expected.append((by_hand(module, family, prompt, said, at), torch.tensor(said)))  # type: ignore[arg-type]
    prepared = module.runner.prepare(batch)
    loss, logits = module.loss(batch, prepared)
    for found, (theirs, said) in zip(logits, expected, strict=True):
        assert relative(found[: len(said)], theirs) <= 1e-5
    summed = sum(float(F.cross_entropy(theirs, said, reduction="sum")) for theirs, said in expected)
    assert float(loss.detach()) == pytest.approx(summed / sum(len(said) for _, said in expected), rel=1e-5)
    with torch.no_grad():
        plain = label_logits(prepared, None, batch.labels)
    assert relative(plain[batch.labels >= 0], logits[batch.labels >= 0].detach()) > 1e-2


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
def test_training_edits_what_steering_edits(base: str, tmp_path: Path, where: Any, use_cache: bool) -> None:
    """Teacher-forced logits are those that ``generate`` sees step by step under ``intervening``."""
    alignment: dict[str, Any] = {
        "low": {**VECTOR, "position": "f2+l2", "intervention": {"name": "LoReFT", "rank": 2}},
        "module": {**VECTOR, "component": "mlp_output", "position": "all", "intervention": {"name": "LoRA", "rank": 2}},
    }
    module = made(base, alignment, where=where)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.interventions.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    placed = {name: (module.alignment[name].site, module.intervention(name)) for name in alignment}
    rows = [0, 1, 4]
    tokens, mask = padded([module.tokenizer(ROWS[row][0])["input_ids"] for row in rows], "left")
    model: Any = module.base_model
    with torch.no_grad(), intervening(model, placed, where=where):
        out = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=5000,
            pad_token_id=0, use_cache=use_cache, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    steps = torch.stack(out.logits, 1)  # [3, 5, V]
    data = data_of(write(tmp_path / "data"))  # padded on the right
    data.bind(module)
    said = [[0]] * len(ROWS)
    for row, ids in zip(rows, out.sequences[:, -5:].tolist(), strict=True):
        said[row] = ids  # what was written, as the completions
    data.told["train"] = replace(data.told["train"], completions=Ragged.of(said))
    batch = data.batch("train", rows)
    with torch.no_grad():
        logits = label_logits(module.runner.prepare(batch), module.edits, batch.labels)
        plain = label_logits(module.runner.prepare(batch), None, batch.labels)
    assert relative(logits, steps) <= 1e-5
    assert relative(plain, steps) > 1e-2
    if where == "generated":  # the first token is chosen before anything is edited
        assert relative(plain[:, 0], steps[:, 0]) <= 1e-5


def test_writing_is_greedy_and_edited(base: str, tmp_path: Path) -> None:
    module = made(base, {"it": {**VECTOR, "position": "f2+l1"}})
    vectors(module)
    data = data_of(write(tmp_path / "data"))
    data.bind(module)
    rows = list(range(len(ROWS)))  # "When" has one token, so one position; the others have three
    found = {edited: module.write(data.batch("train", rows), 4, edited) for edited in (True, False)}
    assert found[True] != found[False]
    for row, (prompt, _) in enumerate(ROWS):
        ids = module.tokenizer(prompt)["input_ids"]
        n = len(ids)
        for edited, at in ((True, sorted({0, min(1, n - 1), n - 1})), (False, [])):
            said: list[int] = []
            for _ in range(4):
                end = by_hand(module, Path(base).name, ids, [*said, 0], {"it": (1, at)})[-1]
                said.append(int(end.argmax()))
                if said[-1] == module.tokenizer.eos_token_id:
                    break
            assert found[edited][row] == said


def test_writing_ends_with_the_end_of_text(gpt2: str, tmp_path: Path) -> None:
    module = made(gpt2)
    data = data_of(write(tmp_path / "data"))
    data.bind(module)
    rows = list(range(len(ROWS)))
    whole = module.write(data.batch("train", rows), 5, edited=False)
    end = whole[0][1]  # as if this token ended a text
    module.tokenizer.eos_token = module.tokenizer.convert_ids_to_tokens(end)
    assert module.tokenizer.eos_token_id == end
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]
    assert module.write(data.batch("train", rows), 5, edited=False) == expected
    assert expected[0][-1] == end
    assert len(expected[0]) <= 2


def test_writing_stops_where_the_context_ends(base: str, tmp_path: Path) -> None:
    """An example fits alone; it is asked to write as much as the longest answer that stands beside it."""
    module = made(base)
    assert module.context == 128
    rows = [("The boy", " is late" * 20), ("The dog " * 50 + "The", " is"), ("When Mary", " is")]
    vectors(module)
    data = data_of(write(tmp_path / "data", rows))
    data.bind(module)
    batch = data.batch("train", [0, 1, 2])
    most, n = batch.labels.shape[1], int(batch.base.mask[1].sum())
    assert n + most > 128
    for edited in (True, False):
        found = module.write(batch, most, edited)
        assert len(found[1]) <= 128 - n
        for row, ids in enumerate(found):  # each as alone
            alone = module.write(data.batch("train", [row]), min(most, 128 - n) if row == 1 else most, edited)
            assert alone == [ids]


def test_predictions_do_not_hang_on_which_prompts_are_asked_together(gpt2: str, tmp_path: Path) -> None:
    module = made(gpt2)
    found = []
    for size in (1, 3):
        data = data_of(write(tmp_path / "data"), eval_batch_size=size)
        trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
        batches = trainer.predict(module, datamodule=data)
        assert batches is not None
        found.append([ids for batch in batches for ids in batch["plain"]])  # type: ignore[call-overload]
    assert found[0] == found[1]
    assert len(found[0]) == len(ROWS)


# --- a step ---


class Steps(Callback):
    """Keeps the parameters after each step, and the logged loss of each batch."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.losses: list[float] = []
        self.last = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if trainer.global_step > self.last:
            self.last = trainer.global_step
            self.values.append(next(pl_module.interventions.parameters()).detach().clone())


def test_a_step_is_the_mean_over_the_tokens_that_it_accumulates(gpt2: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    module = made(gpt2)
    steps = Steps()
    fitted(module, data_of(folder, batch_size=2), steps, accumulate_grad_batches=3)  # type: ignore[arg-type]
    assert len(steps.values) == 2  # 7 rows: batches of 2, 2, 2 and of 1
    other, together = made(gpt2), Steps()
    fitted(other, data_of(folder, batch_size=6), together)  # type: ignore[arg-type]
    assert len(together.values) == 2
    for ours, theirs in zip(steps.values, together.values, strict=True):
        assert relative(ours, theirs) <= 1e-5
    # by hand: the first step from 0, of a learning rate of 1
    data = data_of(folder)
    data.bind(fresh := made(gpt2))
    vector = next(fresh.interventions.parameters())
    order = data.order("train", 0).tolist()
    total = torch.zeros(())
    tokens = 0
    alone: list[tuple[float, int]] = []
    for row in order[:6]:
        prompt, said = (fresh.tokenizer(text)["input_ids"] for text in ROWS[row])
        said = [*said, fresh.tokenizer.eos_token_id]
        block = module_of(fresh.base_model, "gpt2", 1, "block_output")  # type: ignore[arg-type]
        logits = logits_of(fresh.base_model, [*prompt, *said[:-1]], [(block, [len(prompt) - 1], lambda h: h + vector)])
        summed = F.cross_entropy(logits[len(prompt) - 1 :], torch.tensor(said), reduction="sum")
        alone.append((float(summed.detach()), len(said)))
        total = total + summed
        tokens += len(said)
    (gradient,) = torch.autograd.grad(total / tokens, vector)
    assert relative(steps.values[0], -gradient) <= 1e-4
    # what is logged is each batch's mean over its own tokens
    for i, logged in enumerate(steps.losses[:3]):
        (one, n), (other, m) = alone[2 * i : 2 * i + 2]
        assert logged == pytest.approx((one + other) / (n + m), rel=1e-5)
    # and not the mean of the batches' means
    lengths = [len(fresh.tokenizer(ROWS[row][1])["input_ids"]) + 1 for row in order[:6]]
    assert len({sum(lengths[i : i + 2]) for i in (0, 2, 4)}) > 1


def test_a_schedule_of_accumulation_is_followed(gpt2: str, tmp_path: Path) -> None:
    """By hand: epochs of 1, 2 and 4 batches of two to a step, 7 rows, each step the mean over its tokens."""
    folder = write(tmp_path / "data")
    steps = Steps()
    schedule = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    fitted(made(gpt2), data_of(folder, batch_size=2), steps, schedule, epochs=3)  # type: ignore[arg-type]
    module, data = made(gpt2), data_of(folder)
    data.bind(module)
    block, vector = module_of(module.base_model, "gpt2", 1, "block_output"), torch.zeros(32, requires_grad=True)  # type: ignore[arg-type]
    expected = []
    for epoch, together in ((0, 1), (1, 2), (2, 4)):
        order = data.order("train", epoch).tolist()
        for start in range(0, len(ROWS), 2 * together):
            total, tokens = torch.zeros(()), 0
            for row in order[start : start + 2 * together]:
                prompt, said = (module.tokenizer(text)["input_ids"] for text in ROWS[row])
                said = [*said, module.tokenizer.eos_token_id]
                placed = [(block, [len(prompt) - 1], lambda h, v=vector: h + v)]  # type: ignore[misc]
                logits = logits_of(module.base_model, [*prompt, *said[:-1]], placed)[len(prompt) - 1 :]
                total = total + F.cross_entropy(logits, torch.tensor(said), reduction="sum")
                tokens += len(said)
            (gradient,) = torch.autograd.grad(total / tokens, vector)
            vector = (vector - gradient).detach().requires_grad_()
            expected.append(vector.detach())
    assert len(steps.values) == len(expected) == 4 + 2 + 1
    for ours, theirs in zip(steps.values, expected, strict=True):
        assert relative(ours, theirs) <= 1e-4


def test_a_limited_epoch_ends_its_last_step_early(gpt2: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    one, other = Steps(), Steps()
    limited = {"accumulate_grad_batches": 2, "limit_train_batches": 3}
    fitted(made(gpt2), data_of(folder, batch_size=1), one, **limited)  # type: ignore[arg-type]
    fitted(made(gpt2), data_of(folder, batch_size=2), other, limit_train_batches=1)  # type: ignore[arg-type]
    assert len(one.values) == 2
    assert relative(one.values[0], other.values[0]) <= 1e-5


@pytest.mark.parametrize("padding", ["left", "right"])
def test_training_is_a_loop_by_hand(gpt2: str, tmp_path: Path, padding: Any) -> None:
    """LoReFT and a vector above it under Adam, three epochs of two steps: the losses of every step, in fp64."""
    alignment = {"low": {**VECTOR, "position": "f1+l1", "intervention": {"name": "LoReFT", "rank": 2}}, "add": {
        **VECTOR, "layer": 2}}  # fmt: skip
    options: dict[str, Any] = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.1), "where": "all", "dtype": "float64"}
    folder = write(tmp_path / "data")
    module = made(gpt2, alignment, **options)
    own = {name: p.detach().clone().requires_grad_() for name, p in module.interventions.named_parameters()}
    free, vector = own["low.space.free"], own["add.edit.vector"]
    weight, bias = own["low.edit.weight"], own["low.edit.bias"]
    assert len(own) == 4
    data = data_of(folder, padding=padding)
    data.bind(module)
    blocks = [module_of(module.base_model, "gpt2", layer, "block_output") for layer in (1, 2)]  # type: ignore[arg-type]
    optimizer, expected = torch.optim.Adam(list(own.values()), lr=0.1), []
    for epoch in range(3):
        order = data.order("train", epoch).tolist()
        for chosen in (order[:4], order[4:]):
            first = free[:, 0] / free[:, 0].norm()  # Gram-Schmidt
            second = free[:, 1] - (first @ free[:, 1]) * first
            basis = torch.stack([first, second / second.norm()], 1).double()

            def low(h: Tensor, basis: Tensor = basis) -> Tensor:
                return h + basis @ (weight.double() @ h + bias.double() - h @ basis)

            total, tokens = torch.zeros((), dtype=torch.float64), 0
            for row in chosen:
                prompt, said = (module.tokenizer(text)["input_ids"] for text in ROWS[row])
                said = [*said, module.tokenizer.eos_token_id]
                n, fed = len(prompt), list(range(len(prompt), len(prompt) + len(said) - 1))
                placed = [(blocks[0], [0, n - 1, *fed], low), (blocks[1], [n - 1, *fed], lambda h: h + vector.double())]
                logits = logits_of(module.base_model, [*prompt, *said[:-1]], placed)[n - 1 :]
                total = total + F.cross_entropy(logits, torch.tensor(said), reduction="sum")
                tokens += len(said)
            optimizer.zero_grad()
            (total / tokens).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            expected.append(float(total.detach()) / tokens)
    found: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            found.append(float(trainer.callback_metrics["train/loss"]))

    fitted(module, data_of(folder, padding=padding), Watch(), epochs=3)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(found[0] - found[-1]) > 0.3


def test_fit_trains_the_interventions_and_leaves_the_base_bit_identical(gpt2: str, tmp_path: Path) -> None:
    alignment = {
        "a": {**VECTOR, "layer": 3, "intervention": {"name": "LoReFT", "rank": 2}},
        "b": {**VECTOR, "layer": 3},
    }
    module = made(gpt2, alignment, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.5), where="all")
    module.train()
    before = {name: t.clone() for name, t in module.base_model.state_dict().items()}
    assert module.trained == 32 * 2 + 2 * 32 + 2 + 32
    data = data_of(write(tmp_path / "data"))
    losses: list[float] = []
    trained: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            trained.append(float(trainer.callback_metrics["train/loss"]))

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            assert not any(part.training for part in pl_module.base_model.modules())
            assert all(p.grad is None for p in pl_module.base_model.parameters())
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pl_module.interventions.parameters())

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            losses.append(float(trainer.callback_metrics["val/loss"]))

    fitted(module, data, Watch(), epochs=40)  # type: ignore[arg-type]
    # what is trained on is learned (uniform guesses are at 7.7); the same rows behind another word, a little
    assert sum(trained[:2]) / 2 > 7.5
    assert sum(trained[-2:]) / 2 < 5.0
    assert losses[-1] < losses[0] - 0.4
    after = module.base_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    rotation = module.intervention("a").space.now().matrix  # type: ignore[attr-defined]
    assert (rotation.T @ rotation - torch.eye(2)).abs().max() < 1e-5


def test_validation_is_the_mean_over_all_tokens(gpt2: str, tmp_path: Path) -> None:
    module = made(gpt2)
    data = data_of(write(tmp_path / "data"), eval_batch_size=3)
    data.bind(module)
    for batch in data.val_dataloader():
        module.validation_step(batch, 0)
    values = module.val_scores.compute()
    losses, right, exact, tokens = 0.0, 0, 0, 0
    for prompt, said in ROWS:
        ids, ends = module.tokenizer(f"validation: {prompt}")["input_ids"], module.tokenizer(said)["input_ids"]
        ends = [*ends, module.tokenizer.eos_token_id]
        logits = by_hand(module, "gpt2", ids, ends, {})
        losses += float(F.cross_entropy(logits, torch.tensor(ends), reduction="sum"))
        hits = logits.argmax(-1) == torch.tensor(ends)
        right, exact, tokens = right + int(hits.sum()), exact + int(hits.all()), tokens + len(ends)
    assert float(values["loss"]) == pytest.approx(losses / tokens, rel=1e-5)
    assert float(values["token_accuracy"]) == pytest.approx(right / tokens)
    assert float(values["exact"]) == exact / len(ROWS)
    assert values["n"] == len(ROWS)


# --- checkpoints and errors ---


def test_a_checkpoint_of_other_tokens_is_refused(gpt2: str) -> None:
    checkpoint: dict[str, Any] = {}
    module = made(gpt2, where="all")
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["hyper_parameters"]["where"] == "all"
    made(gpt2, where="all").on_load_checkpoint(checkpoint)
    with pytest.raises(IITKitError, match=r"model\.where is 'all', expected 'prompt'"):
        made(gpt2).on_load_checkpoint(checkpoint)


def test_what_completions_cannot_train_is_refused(gpt2: str) -> None:
    for name, why in (
        ("LowRankSubspace", "takes a source"),
        ("Vanilla", "takes a source"),
        ("Mean", "must see data first"),
    ):
        with pytest.raises(IITKitError, match=rf"alignment\.it\.intervention: {name} {why}.*choose Addition, LoRA"):
            made(gpt2, {"it": {**VECTOR, "intervention": {"name": name}}})
    with pytest.raises(IITKitError, match="nothing to train in Zero"):
        made(gpt2, {"it": {**VECTOR, "intervention": {"name": "Zero"}}}).configure_optimizers()
    with pytest.raises(IITKitError, match=r"model\.where: 'behind': expected 'prompt', 'generated', 'all'"):
        ReFT(gpt2, {"it": VECTOR}, where="behind")  # type: ignore[arg-type, dict-item]
    with pytest.raises(IITKitError, match=r"alignment\.it: a joint site .* not with model\.where: all"):
        ReFT(gpt2, {"it": {**VECTOR, "position": "f2+l2", "joint": True}}, where="all")  # type: ignore[dict-item]


def test_replay_is_the_plain_run(gpt2: str, tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "data"))
    module = made(gpt2, {"it": {**VECTOR, "layer": 2}})
    data.bind(module)
    vectors(module)
    batch = data.batch("train", [0, 1, 2])
    plain = PlainRunner(module.base_model, list(module.locations.values())).prepare(batch)
    with torch.no_grad():
        ours = label_logits(module.runner.prepare(batch), module.edits, batch.labels)
        theirs = label_logits(plain, module.edits, batch.labels)
    assert type(module.runner.prepare(batch)).__name__ == "ReplayPrepared"
    real = batch.labels != IGNORED
    assert relative(ours[real], theirs[real]) <= 1e-5
