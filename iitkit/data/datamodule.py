"""The DataModule: counterfactual pairs of a task or a dataset, tokenised for a network and its alignment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from iitkit.batch import Tokens
from iitkit.causal import Symbols
from iitkit.causal.variables import Codes
from iitkit.data.base import PromptDataModule
from iitkit.data.cache import PromptCache
from iitkit.data.drawn import Drawing, TaskPairs
from iitkit.data.labelling import Asked, forms_of, labels_for
from iitkit.data.loader import Collator, Padding, PairLoader, TrainLoader
from iitkit.data.options import Dataset, Sizes, check_options
from iitkit.data.pairs import Design, Pairs
from iitkit.data.placed import PlacementLike, Subject, placed
from iitkit.data.pool import Pool, input_pool, new_numbers, text_pool
from iitkit.data.preflight import preflight
from iitkit.data.prompts import Arrays, symbols
from iitkit.data.recorded import Recorded
from iitkit.data.source import generator
from iitkit.data.valued import Target, targets
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError
from iitkit.positions import Position
from iitkit.tasks import Task

CHECKED = 200
"""Training prompts that the preflight looks at."""

__all__ = ["CounterfactualDataModule", "PlacementLike", "Subject"]


class CounterfactualDataModule(PromptDataModule):
    """Pairs (base, source) with counterfactual labels, drawn from a task's causal model or read from a dataset.

    Each split has inputs of its own and a fixed pool of prompts; every epoch of training pairs them anew from the seed
    (a dataset's pairs are shuffled).

    Args:
        task: the causal model with its prompt.
        sizes: number of pairs in each split.
        batch_size: pairs in a training batch.
        eval_batch_size: pairs in a batch of validation, test and predict; 4 × batch_size unless said.
        flipped: share of pairs whose label the interchange changes; null leaves it to chance.
        together: number of variables that a pair intervenes on at once.
        one_source: whether these all take their values from one source instead of one each.
        balance: output, for bases whose answers are equally frequent; variable, for sources whose values of the
            variable are; or both.
        differ_in: exogenous variables: base and source of a pair differ in no others.
        tell_apart: rivals whose prediction a pair's label must differ from: variables, output (the network copies the
            source's output), no_change, or Task.variable of one of the rivals.
        rivals: other hypotheses, tasks with the same inputs, for tell_apart and the data report.
        prompts: most prompts in each split's pool; as many as pairs unless said, and no more than there are.
        split_by: what the splits are disjoint in: variables (their words), lists of variables (combinations of their
            values), template; the task's own unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        chat: whether a prompt is a user's turn of a chat, by the tokenizer's own template; answers then begin without
            their space.
        system: the chat's system turn.
        shots: number of solved examples before every prompt, drawn from the training split.
        special_tokens: whether the tokenizer adds its own (BOS); as it does by itself unless said, and not in a chat.
        max_tokens: longer prompts lose tokens on the left, behind BOS and prefix; a span that would be cut is an error.
        only_correct: keep only prompts that the base model itself answers right.
        padding: side of the padding.
        shares: shares of the words that train, validation and test get.
        seed: of the splits and the pairs; the run's seed_everything unless said.
        dataset: instead of a task, recorded pairs: a .jsonl, .parquet or .csv file, a folder of these or a Hub dataset.
    """

    def __init__(
        self,
        task: Task | None = None,
        sizes: Sizes = Sizes(),  # noqa: B008 - it cannot be changed
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        flipped: float | None = 0.5,
        together: int = 1,
        one_source: bool = False,
        balance: Sequence[Literal["output", "variable"]] = (),
        differ_in: Sequence[str] = (),
        tell_apart: Sequence[str] = (),
        rivals: Sequence[Task] = (),
        prompts: int | None = None,
        split_by: Sequence[str | list[str]] | None = None,
        prefix: str = "",
        chat: bool = False,
        system: str | None = None,
        shots: int = 0,
        special_tokens: bool | None = None,
        max_tokens: int | None = None,
        only_correct: bool = False,
        padding: Padding = "right",
        shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        super().__init__()
        check_options(task, dataset, sizes, batch_size, eval_batch_size, flipped, together, prompts, shares, shots)
        self.task, self.together = task, together
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 4 * batch_size
        self.only_correct, self.padding, self.shots, self.prefix = only_correct, padding, shots, prefix
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.wording = _wording(prefix, chat, system, special_tokens, max_tokens)
        design = Design(
            [],
            flipped,
            together,
            one_source,
            balance=tuple(balance),
            differ_in=tuple(differ_in),
            tell_apart=tuple(tell_apart),
        )
        self.design = design
        self.source: TaskPairs | Recorded
        if task is not None:
            self.sizes = sizes.of_task()
            most = {split: min(prompts or n, n) for split, n in self.sizes.items()}
            self.source = TaskPairs(
                task, Drawing(most, (shares[0], shares[1], shares[2]), split_by, self.seed), design, rivals
            )
        else:
            assert dataset is not None
            unread = {
                "flipped": flipped != 0.5,
                "together": together != 1,
                "shares": tuple(shares) != (0.6, 0.2, 0.2),
                "one_source": one_source,
                "balance": balance,
                "differ_in": differ_in,
                "tell_apart": tell_apart,
                "rivals": rivals,
                "prompts": prompts,
                "split_by": split_by,
            }
            if given := [name for name, value in unread.items() if value]:
                raise IITKitError(
                    f"data.{given[0]} is of a task's pairs; those of a dataset are as they are: leave it out"
                )
            self.source = Recorded(dataset.path, dataset.revision, dataset.config, dataset.columns, self.seed)
            self.sizes = {split: n for split in self.source.splits() if (n := sizes.of_dataset(split)) is not None}
        self.pools: dict[str, Pool] = {}
        self.variables: list[str] = []
        self.judged: dict[str, float] = {}
        """The base model's accuracy on each split's prompts, where the data were filtered by it."""
        self._kept: dict[str, Codes] = {}
        self._targets: dict[str, list[Target | None]] = {}
        self._asked: Asked | None = None

    # --- making the pools ---

    def bind(self, subject: Subject, model: bool = True) -> None:
        """Make the pools for a module: its tokenizer and its alignment's variables and positions.

        Args:
            subject: the module.
            model: whether its base model may be run; without, a dataset's missing base labels stay unknown.

        Raises:
            IITKitError: a variable that the causal model does not have, a span that the prompt does not have, a split
                that is empty, candidates that no token tells apart.
        """
        found = placed(subject, self.source.spans, self.design, self.task)
        self.names, self.variables, self.placements = found.names, found.variables, found.placements
        self.stage = found.stage
        self.design = replace(self.design, variables=self.variables, stages=found.stages, isolate=subject.isolates)
        if isinstance(self.source, Recorded):
            self.source.check(len(found.stages), subject.isolates)
        else:
            self.source.design = replace(self.source.design, stages=found.stages, isolate=subject.isolates)
        self._subject, self.judged, self._kept = subject, {}, {}
        text = self.source.inputs("train") is None
        self.tokenizer = subject.tokenizer if text else None
        wording = replace(self.wording, shots=self._examples()) if text and self.shots else self.wording
        self.worded, self.answers = wording, labels_for(self.source, self.tokenizer, wording)
        self.pad_id = int(getattr(self.tokenizer, "pad_token_id", None) or 0)
        self._asked = Asked(subject.answer) if model and not getattr(self.source, "base_labels_known", True) else None
        self.pools, self._targets = {}, {}
        for split in self.splits:
            pool = self._pool(split, found.positions, wording)
            if self.only_correct:
                pool = self._filtered(pool, split, subject)
            self.pools[split] = replace(pool, first=new_numbers(len(pool)))
            pairs = self.pairs(split, 0)
            self.answers.choices(pool.prompts, pairs.base.tolist(), pairs.candidates)
        self._targets = targets(self, subject.alignment)

    def _pool(self, split: str, positions: Mapping[str, Position], wording: Wording) -> Pool:
        texts, templates, setting = self.source.prompts(split)
        inputs = self.source.inputs(split)
        if inputs is None:
            cache = PromptCache()
            return text_pool(texts, self.tokenizer, positions, wording, setting, templates, cache=cache)
        if inputs.ndim == 2 and inputs.dtype.kind == "i":
            model = self.task.model if self.task is not None else None
            names = model.encoding.vocabulary if model is not None and isinstance(model.encoding, Symbols) else None
            places: dict[str, Any] = {}
            if isinstance(self.source, TaskPairs):
                places = dict(self.source.places)
            elif texts:
                places = {name: np.asarray([text.spans[name] for text in texts]) for name in self.source.spans}
            return input_pool(symbols(inputs, places, names), positions, setting, templates)
        return input_pool(Arrays(inputs), positions, setting, templates)

    def _examples(self) -> list[tuple[str, str]]:
        """Solved training examples, the same before every prompt."""
        texts, _, _ = self.source.prompts("train")
        truths = self.source.truths("train")
        rows = [i for i, truth in enumerate(truths) if truth]
        if len(rows) < self.shots:
            raise IITKitError(
                f"data.shots: {self.shots} examples: only {len(rows)} training prompts have a known answer"
            )
        order = self._generator("shots").permutation(len(rows))[: self.shots].tolist()
        return [(texts[rows[i]].text, truths[rows[i]]) for i in order]

    def _filtered(self, pool: Pool, split: str, subject: Subject) -> Pool:
        right = self.judgements(pool, split, subject)
        self.judged[split] = float(right.mean())
        if right.sum() < 2:
            raise IITKitError(
                f"data.only_correct: the base model answers {right.sum()} of {len(pool)} {split} prompts right, so the "
                "split is empty: check prefix and task, or set only_correct to false"
            )
        rows = right.nonzero()[0].astype(np.int64)
        if isinstance(self.source, TaskPairs):
            rows = self.source.paired(split, rows)
            if len(rows) < 2:
                raise IITKitError(
                    f"data.only_correct leaves no two {split} prompts that differ in only the variables of "
                    "data.differ_in: name more of these, or raise data.sizes"
                )
        self._kept[split] = rows
        return pool.taken(rows)

    def judgements(self, pool: Pool, split: str, subject: Subject, most: int | None = None) -> npt.NDArray[np.bool_]:
        """Return on which prompts of a split's pool (the first ``most``) the base model answers right.

        Raises:
            IITKitError: a dataset that does not say what is right.
        """
        rows = np.arange(len(pool) if most is None else min(most, len(pool)))
        own = self._kept[split][rows] if split in self._kept and self.pools.get(split) is pool else rows
        every = self.source.truths(split)
        truths = [every[i] for i in own.tolist()]
        if not all(truths):
            raise IITKitError("the dataset has no base_label for some prompts, so nothing says what is right: add it")
        answers = self.source.competing(split, own)
        collate = Collator(pool, self.answers, self.placements, self.pad_id, self.padding)
        right = []
        starts = range(0, len(rows), self.eval_batch_size)
        for start in tqdm(starts, f"base model, {split} prompts", leave=False, disable=None):
            part = list(range(start, min(start + self.eval_batch_size, len(rows))))
            candidates, winners = collate.competing(part, [answers[i] for i in part])
            said = winners(subject.answer(collate.tokens(part), candidates).cpu())
            right.append(said == torch.tensor([answers[i].index(truths[i]) for i in part]))
        return torch.cat(right).numpy().astype(bool)

    def kept(self, split: str) -> Codes | None:
        """Return which of the source's prompts a split keeps; None for all."""
        return self._kept.get(split)

    def preflight(self) -> list[str]:
        """Return what the tokenizer does to prompts and answers that a user should know, worst first."""
        if self.tokenizer is None:
            return []
        pairs, forms = self.pairs("train"), {}
        for answer in dict.fromkeys(text for row in pairs.candidates for text in row):
            forms[answer] = forms_of(self.source, answer)
        texts = self.pools["train"].texts[:CHECKED]
        return [str(finding) for finding in preflight(self.tokenizer, texts, forms, self.worded)]

    @property
    def splits(self) -> list[str]:
        """The splits there are: ``test_templates`` only where the task holds templates out."""
        return self.source.splits()

    def _generator(self, *key: str | int) -> np.random.Generator:
        return generator(self.seed, *key)

    # --- pairs and loaders ---

    def pairs(self, split: str, epoch: int = 0) -> Pairs:
        """Return a split's pairs; other ones each epoch, the same in every process."""
        n = self.sizes.get(split)
        if isinstance(self.source, TaskPairs):
            return self.source.pairs(split, epoch, self.variables, n, self._kept.get(split))
        pairs = self.source.pairs(split, epoch, self.variables, None if split in self._kept else n)
        if self._asked is not None:
            pairs = self._asked.filled(pairs, split, self._collator(split))
        return pairs if split not in self._kept else kept_pairs(pairs, self._kept[split], n, split)

    def _collator(self, split: str) -> Collator:
        targets = self._targets.get(split, ())
        return Collator(
            self.pools[split], self.answers, self.placements, self.pad_id, self.padding, self.stage, targets
        )

    def size(self, split: str) -> int:
        """Return the number of a split's pairs."""
        return self.sizes[split] if split in self.sizes else len(self.pairs(split))

    def _loader(self, split: str, kind: type[PairLoader] = PairLoader, most: int | None = None) -> PairLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        length = self.size(split) if most is None else min(most, self.size(split))
        if kind is TrainLoader:
            length -= length % world  # every process must take as many steps
        batch_size = self.batch_size if kind is TrainLoader else self.eval_batch_size
        return kind(lambda epoch: self.pairs(split, epoch), self._collator(split), batch_size, length, rank, world)

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
        loader.rows = list(range(self.size(split)))
        return loader

    def every_prompt(self, splits: Sequence[str]) -> Iterator[tuple[Tokens, Tensor, Tensor]]:
        """Yield each split's prompts, the columns of every placement's site [N, P, n], and which of them exist."""
        for split in splits:
            collate = self._collator(split)
            rows = range(len(self.pools[split]))
            tokens = collate.tokens(rows)
            yield (tokens, *collate.positions(rows, tokens))

    def test_dataloader(self) -> list[PairLoader]:
        """Loaders of the splits of :attr:`tested`; of the training pairs no more than of validation pairs."""
        return [
            self._loader(split, most=self.size("validation") if split == "train" else None) for split in self.tested
        ]

    def predict_dataloader(self) -> PairLoader:
        """Test pairs."""
        return self._loader("test")


def kept_pairs(pairs: Pairs, kept: Codes, n: int | None, split: str) -> Pairs:
    """Return the pairs all of whose prompts are kept, as rows of what is kept."""
    number = np.full(int(max(pairs.base.max(), pairs.sources.max(), kept.max())) + 1, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    rows = ((number[pairs.base] >= 0) & (number[pairs.sources] >= 0).all(1)).nonzero()[0]
    if len(rows) < (n or 1):
        raise IITKitError(
            f"data.only_correct leaves {len(rows)} {split} pairs, {n or 1} are asked for: lower data.sizes"
        )
    chosen = pairs.taken(rows[:n])
    return replace(chosen, base=number[chosen.base], sources=number[chosen.sources])


def _wording(
    prefix: str, chat: bool, system: str | None, special_tokens: bool | None, max_tokens: int | None
) -> Wording:
    try:
        return Wording(prefix, chat, system, special_tokens=special_tokens, max_tokens=max_tokens)
    except IITKitError as error:
        raise IITKitError(str(error).replace("wording.", "data.")) from error
