"""The DataModule: counterfactual pairs of a task, tokenised for a network and its alignment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.causal import sample_inputs
from iitkit.causal.sampling import take
from iitkit.data.loader import Collator, Padding, PairLoader, TrainLoader
from iitkit.data.pairs import Design, Pairs, candidate_answers, make_pairs
from iitkit.data.pool import Pool, make_pool, new_numbers
from iitkit.data.tokens import Answers
from iitkit.errors import IITKitError
from iitkit.positions import Position, check_spans
from iitkit.tasks import Task

Split = Literal["train", "validation", "test", "test_templates"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "test_templates")


class PlacementLike(Protocol):
    """What the data must know of a placement."""

    @property
    def variable(self) -> str | None:
        """The causal variable."""

    @property
    def position(self) -> Position:
        """Where in the prompt."""


class Subject(Protocol):
    """What the data must know of the module that it is made for."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer."""

    @property
    def alignment(self) -> Mapping[str, PlacementLike]:
        """Placement name → variable and position."""

    @property
    def stages(self) -> Sequence[Sequence[str]]:
        """Placements of each stage of source 0 → source 1 → … → base; empty for one stage."""

    @property
    def isolates(self) -> bool:
        """Whether pairs also need the label under another variable's interchange."""

    def judge(self, tokens: Tokens, candidates: Tensor, label: Tensor) -> Tensor:
        """Return on which rows the base model itself answers with the label, [B]."""


@dataclass(frozen=True)
class Sizes:
    """Number of pairs in each split.

    Args:
        train: pairs of one epoch.
        validation: pairs after each epoch; as many training pairs are tested in the end.
        test: pairs of words that training never saw.
        test_templates: pairs of such words in templates that training never saw.
    """

    train: int = 2000
    validation: int = 500
    test: int = 500
    test_templates: int = 200


class CounterfactualDataModule(pl.LightningDataModule):
    """Pairs (base, source) of a task with counterfactual labels from its causal model.

    Each split has words of its own and a fixed pool of prompts; every epoch of training pairs them anew from the seed.

    Args:
        task: the causal model with its prompt.
        sizes: number of pairs in each split.
        batch_size: pairs in a training batch.
        eval_batch_size: pairs in a batch of validation, test and predict; 4 × batch_size unless said.
        flipped: share of pairs whose label the interchange changes; null leaves it to chance.
        together: number of variables that a pair intervenes on at once, each with a source of its own.
        prompts: most prompts in each split's pool; as many as pairs unless said, and no more than there are.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        only_correct: keep only prompts that the base model itself answers right.
        padding: side of the padding.
        shares: shares of the words that train, validation and test get.
        seed: of the splits and the pairs; the run's seed_everything unless said.
    """

    def __init__(
        self,
        task: Task,
        sizes: Sizes = Sizes(),
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        flipped: float | None = 0.5,
        together: int = 1,
        prompts: int | None = None,
        prefix: str = "",
        only_correct: bool = False,
        padding: Padding = "right",
        shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for split in SPLITS:
            if getattr(sizes, split) < (0 if split == "test_templates" else 1):
                raise IITKitError(f"data.sizes.{split}: {getattr(sizes, split)} pairs: expected 1 or more")
        for key, rows in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if rows is not None and rows < 1:
                raise IITKitError(f"data.{key}: {rows}: expected 1 or more")
        if flipped is not None and not 0 <= flipped <= 1:
            raise IITKitError(f"data.flipped: {flipped}: expected a share from 0 to 1, or null")
        if together < 1:
            raise IITKitError(f"data.together: {together}: expected 1 or more variables")
        if prompts is not None and prompts < 2:
            raise IITKitError(f"data.prompts: {prompts}: expected 2 or more")
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise IITKitError(f"data.shares: {shares}: expected three positive shares whose sum is 1")
        self.task, self.sizes, self.flipped, self.prompts, self.together = task, sizes, flipped, prompts, together
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 4 * batch_size
        self.prefix, self.only_correct, self.padding, self.shares = prefix, only_correct, padding, shares
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.pools: dict[str, Pool] = {}
        self._subject: object = None
        self.variables: list[str] = []
        self.judged: dict[str, float] = {}
        """The base model's accuracy on each split's prompts, where the data were filtered by it."""

    # --- making the pools ---

    def setup(self, stage: str | None = None) -> None:
        """Make the pools, for the module that the trainer is about to run."""
        if self.trainer is None:
            if not self.pools:
                raise IITKitError("the data are made for a module: call bind(module), or hand both to a Trainer")
        elif self.trainer.lightning_module is not self._subject:  # another module may look elsewhere
            self.bind(self.trainer.lightning_module)  # type: ignore[arg-type]

    def bind(self, subject: Subject) -> None:
        """Make the pools for a module: its tokenizer and its alignment's variables and positions.

        Raises:
            IITKitError: a variable that the causal model does not have, a span that the prompt does not have, a split
                that is empty, candidates that no token tells apart.
        """
        model = self.task.model
        positions: dict[str, Position] = {}
        placed: list[str] = []
        for name, placement in subject.alignment.items():
            variable = placement.variable or name
            model.check_variable(variable, f"alignment.{name}: variable")
            check_spans(placement.position, model.slots, f"alignment.{name}")
            positions[name] = placement.position
            placed.append(variable)
        self.variables = list(dict.fromkeys(placed))
        self.placements = [self.variables.index(variable) for variable in placed]
        self.names = list(positions)
        stage_of = {name: k for k, stage in enumerate(subject.stages) for name in stage}
        self.stage = [stage_of[name] for name in self.names] if stage_of else []
        if self.together > len(self.variables) or (self.together > 1 and (stage_of or subject.isolates)):
            raise IITKitError(
                f"data.together: {self.together} variables at once: the alignment places {len(self.variables)}"
                + (", and model.stages or mdas take one" if stage_of or subject.isolates else "")
            )
        stages = [list(dict.fromkeys(subject.alignment[name].variable or name for name in s)) for s in subject.stages]
        self.design = Design(self.variables, self.flipped, self.together, stages, subject.isolates)
        self._subject, self.judged = subject, {}
        tokenizer = subject.tokenizer
        self.tokenizer, self.answers = tokenizer, Answers(tokenizer)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        words = self.task.split(self._generator("words"), self.shares)
        self.pools = {}
        for split in self.splits:
            templates = self.task.templates(held_out=split == "test_templates")
            among = words["test" if split == "test_templates" else split]
            n = max(2, min(self.prompts or getattr(self.sizes, split), getattr(self.sizes, split)))
            drawn, used = sample_inputs(model, n, self._generator("prompts", split), templates, among)
            pool = make_pool(model, drawn, used, tokenizer, positions, self.prefix)
            if self.only_correct:
                pool = self._filtered(pool, split, subject.judge)
            pool = replace(pool, first=new_numbers(len(pool)))
            self.pools[split] = pool
            pairs = self.pairs(split, 0)
            for base, candidates in zip(pairs.base.tolist(), pairs.candidates, strict=True):
                self.answers.candidates(pool.prompts[base], candidates)

    def _filtered(self, pool: Pool, split: str, judge: Callable[[Tokens, Tensor, Tensor], Tensor]) -> Pool:
        right = self.judgements(pool, judge)
        self.judged[split] = float(right.mean())
        if right.sum() < 2:
            raise IITKitError(
                f"data.only_correct: the base model answers {right.sum()} of {len(pool)} {split} prompts right, so the "
                "split is empty: check prefix and task, or set only_correct to false"
            )
        return pool.taken(right.nonzero()[0].astype(np.int64))

    def judgements(
        self, pool: Pool, judge: Callable[[Tokens, Tensor, Tensor], Tensor], most: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return on which prompts of a pool (the first ``most``) the base model answers right."""
        rows = np.arange(len(pool) if most is None else min(most, len(pool)))
        model = self.task.model
        chosen = take(pool.setting, rows)
        truth = [str(value) for value in model.values(chosen, model.output)]
        answers = candidate_answers(model, chosen, [truth])
        collate = Collator(pool, self.answers, self.placements, self.pad_id, self.padding)
        right = []
        for start in range(0, len(rows), self.eval_batch_size):
            part = list(range(start, min(start + self.eval_batch_size, len(rows))))
            label = torch.tensor([answers[i].index(truth[i]) for i in part])
            right.append(judge(collate.tokens(part), collate.candidates(part, [answers[i] for i in part]), label).cpu())
        return torch.cat(right).numpy().astype(bool)

    @property
    def splits(self) -> list[Split]:
        """The splits there are: ``test_templates`` only where the task holds templates out."""
        held_out = bool(self.task.held_out_templates) and self.sizes.test_templates > 0
        return [split for split in SPLITS if split != "test_templates" or held_out]

    def _generator(self, *key: str | int) -> np.random.Generator:
        """A generator of its own for each purpose, the same in every process."""
        numbers = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in key]
        return np.random.default_rng([self.seed, *numbers])

    # --- pairs and loaders ---

    def pairs(self, split: str, epoch: int = 0) -> Pairs:
        """Return a split's pairs; other ones each epoch, the same in every process."""
        generator = self._generator("pairs", split, epoch)
        return make_pairs(self.task.model, self.pools[split], self.design, getattr(self.sizes, split), generator)

    def _loader(self, split: str, kind: type[PairLoader] = PairLoader, most: int | None = None) -> PairLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        length = getattr(self.sizes, split) if most is None else min(most, getattr(self.sizes, split))
        if kind is TrainLoader:
            length -= length % world  # every process must take as many steps
        collate = Collator(self.pools[split], self.answers, self.placements, self.pad_id, self.padding, self.stage)
        batch_size = self.batch_size if kind is TrainLoader else self.eval_batch_size
        return kind(lambda epoch: self.pairs(split, epoch), collate, batch_size, length, rank, world)

    def train_dataloader(self) -> PairLoader:
        """Training pairs, other ones each epoch; stateful."""
        loader = self._loader("train", TrainLoader)
        if self.trainer is not None and self.trainer.training:
            # Lightning gives a loader its state back within an epoch, but not at an epoch's end
            loader.epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> PairLoader:
        """Validation pairs."""
        return self._loader("validation")

    def every_pair(self, split: str) -> PairLoader:
        """A split's first pairs, all of them in every process: what is fitted to them is the same in each."""
        loader = self._loader(split)
        loader.rows = list(range(getattr(self.sizes, split)))
        return loader

    def every_prompt(self, splits: Sequence[str]) -> Iterator[tuple[Tokens, Tensor, Tensor]]:
        """Yield each split's prompts, the columns of every placement's site [N, P, n], and which of them exist."""
        for split in splits:
            pool = self.pools[split]
            collate = Collator(pool, self.answers, self.placements, self.pad_id, self.padding)
            rows = range(len(pool))
            tokens = collate.tokens(rows)
            yield (tokens, *collate.positions(rows, tokens))

    @property
    def tested(self) -> list[str]:
        """The splits that ``test`` reports, in the order of its loaders."""
        return [*(split for split in self.splits if split.startswith("test")), "train", "validation"]

    def test_dataloader(self) -> list[PairLoader]:
        """Loaders of the splits of :attr:`tested`; of the training pairs no more than of validation pairs."""
        return [self._loader(split, most=self.sizes.validation if split == "train" else None) for split in self.tested]

    def predict_dataloader(self) -> PairLoader:
        """Test pairs."""
        return self._loader("test")
