"""The DataModule of completions: prompts, and what the network should say behind them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from iitkit.batch import IGNORED, Completions, Tokens
from iitkit.causal.variables import Codes
from iitkit.data.answers import Classes
from iitkit.data.base import PromptDataModule
from iitkit.data.completion_tokens import Limits, completion_tokens
from iitkit.data.dividing import divided
from iitkit.data.examples import Example, example_tables, read_examples
from iitkit.data.loader import Collator, Padding, PairLoader, TrainLoader
from iitkit.data.options import Dataset, Sizes
from iitkit.data.placed import PlacementLike
from iitkit.data.pool import Pool, new_numbers, text_pool
from iitkit.data.prompts import Prompts
from iitkit.data.ragged import Ragged
from iitkit.data.source import SPLITS, generator
from iitkit.data.turns import Telling
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError, choices
from iitkit.positions import check_spans

Where = Literal["prompt", "generated", "all"]


class Trainee(Protocol):
    """What the data must know of the module that they are made for."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer."""

    @property
    def alignment(self) -> Mapping[str, PlacementLike]:
        """Placement name → position."""

    @property
    def where(self) -> Where:
        """Which tokens are edited."""

    @property
    def context(self) -> int | None:
        """Most tokens that the network takes, None where it does not say."""


@dataclass(frozen=True)
class Told:
    """A split's examples, tokenised.

    Args:
        pool: the prompts.
        completions: the tokens that follow each, their end among them.
    """

    pool: Pool
    completions: Ragged

    def __len__(self) -> int:
        return len(self.pool)


class CompletionDataModule(PromptDataModule):
    """Prompts and completions from a file, a folder or a Hub dataset: what the network should say.

    Columns: ``prompt`` and ``completion``, texts; or ``messages``, a chat as a list of turns {role, content}, whose
    last turn is the completion. Optional: ``positions``, span → substring of the prompt (of the whole text of a chat)
    or offsets [start, stop], which positions may name. Splits that the data lack are taken from train, 60 : 20 : 20, no
    prompt in two of them.

    The prompt is tokenised alone, as ``generate`` sees it, and the completion's tokens follow it: those of the
    completion, then the tokenizer's end of text, up to which a chat's template writes the answer's turn. The loss is of
    these alone. One step of the optimizer is the mean over the completions' tokens of all batches (and processes) that
    it accumulates, so 4 batches of 8 train as 1 of 32 does.

    Args:
        dataset: a .jsonl, .parquet or .csv file, a folder of these, a Hub dataset, or a data folder of iitkit's own.
        sizes: number of examples of each split, its first; all unless said.
        batch_size: examples in a training batch.
        eval_batch_size: examples in a batch of validation, test and predict; 4 × batch_size unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        chat: whether a prompt is a user's turn and its completion the assistant's, by the tokenizer's chat template.
        system: the chat's system turn.
        template: which of the tokenizer's chat templates, or a .jinja file; its default one unless said.
        special_tokens: whether the tokenizer adds its own (BOS); as it does by itself unless said, and not in a chat.
        max_tokens: longer prompts lose tokens on the left, behind the prefix; a span that would be cut is an error.
        max_completion: longer completions lose their end, and with it the end of text; no limit unless said.
        eos: whether a completion ends with the tokenizer's end of text.
        padding: side of the padding.
        seed: of the order of training and of the division into splits; the run's seed_everything unless said.

    Raises:
        IITKitError: naming file, line and column, or the option: what was given and what was expected.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: Sizes = Sizes(),  # noqa: B008 - it cannot be changed
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        prefix: str = "",
        chat: bool = False,
        system: str | None = None,
        template: str | None = None,
        special_tokens: bool | None = None,
        max_tokens: int | None = None,
        max_completion: int | None = None,
        eos: bool = True,
        padding: Padding = "right",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for key, n in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("max_completion", max_completion),
        ):
            if n is not None and n < 1:
                raise IITKitError(f"data.{key}: {n}: expected 1 or more")
        if padding not in get_args(Padding):
            raise IITKitError(f"data.padding: {padding!r}: expected 'left' or 'right'")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 4 * batch_size
        self.prefix, self.padding, self.sizes = prefix, padding, sizes
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.telling = Telling(chat, system, template)
        self.max_completion, self.eos = max_completion, eos
        self.name, self.examples = _examples(dataset, sizes, self.seed)
        self.is_chat = chat or not isinstance(self.examples["train"][0].prompt, str)
        special = not self.is_chat if special_tokens is None else special_tokens
        self.wording = Wording(prefix, special_tokens=special, max_tokens=max_tokens)
        self.told: dict[str, Told] = {}

    @property
    def splits(self) -> list[str]:
        """The splits there are."""
        return list(self.examples)

    def bind(self, subject: Trainee) -> None:
        """Tokenise the examples for a module and find its positions in the prompts.

        Raises:
            IITKitError: a chat template that is missing or unknown, a span that the prompts do not have, an example
                that is longer than the network's context.
        """
        tokenizer = subject.tokenizer
        self.tokenizer, self.where = tokenizer, subject.where
        self.pad_id = int(getattr(tokenizer, "pad_token_id", None) or 0)
        self.names = list(subject.alignment)
        limits = Limits(subject.context, self.max_completion, self.eos, fed=self.where == "generated")
        positions = {name: placement.position for name, placement in subject.alignment.items()}
        self.told = {}
        for split, examples in self.examples.items():
            texts, said = self.telling.told(tokenizer, examples)
            for name, position in positions.items():
                check_spans(position, list(texts[0].spans), f"alignment.{name}")
            pool = text_pool(texts, tokenizer, positions, self.wording)
            pool = replace(pool, first=new_numbers(len(pool)))
            ids = completion_tokens(tokenizer, pool, texts, said, self.wording, examples, limits)
            self.told[split] = Told(pool, ids)
        self._subject = subject

    # --- batches ---

    def batch(self, split: str, rows: Sequence[int]) -> Completions:
        """Return examples of a split; outside a training epoch its ``share`` makes their tokens' mean."""
        told = self.told[split]
        collate = Collator(told.pool, Classes(), range(len(self.names)), self.pad_id, self.padding)
        base = collate.tokens(rows)
        assert isinstance(base, Tokens)
        columns, there = collate.positions(rows, base)
        ids, real = told.completions.padded(rows, IGNORED)
        labels = torch.from_numpy(ids)
        # the last token is never fed back
        fed = torch.from_numpy(real)[:, None, 1:].expand(-1, len(self.names), -1)
        behind = (base.last[:, None, None] + 1 + torch.arange(fed.shape[2])).expand(fed.shape)
        if self.where == "generated":
            columns, there = behind, fed
        elif self.where == "all":
            columns, there = torch.cat([columns, behind], 2), torch.cat([there, fed], 2)
        columns = columns.where(there, 0)
        active = torch.ones(there.shape[:2], dtype=torch.bool)
        return Completions(
            base=base,
            sources=(),
            active=active,
            source_of=torch.zeros_like(active, dtype=torch.long),
            base_positions=columns,
            source_positions=torch.zeros_like(columns),
            position_mask=there,
            labels=labels,
            rows=torch.tensor(rows),
            share=1 / int(real.sum()),
        )

    def order(self, split: str, epoch: int) -> Codes:
        """Return a split's examples in the order of an epoch, the same in every process."""
        return generator(self.seed, "order", split, epoch).permutation(len(self.told[split]))

    def _train_batch(self, order: Codes, chosen: Sequence[int]) -> Completions:
        return replace(self.batch("train", order[list(chosen)].tolist()), share=self._share(order, chosen[0]))

    def _share(self, order: Codes, first: int) -> float:
        """Return what makes an optimizer's step the mean over the tokens of all that it accumulates.

        Lightning divides a batch's loss by the number of batches of a step, and averages over processes.
        """
        trainer: Any = self.trainer
        together, world = (trainer.accumulate_grad_batches, trainer.world_size) if trainer is not None else (1, 1)
        rows = self.batch_size * world
        batches = -(-len(order) // rows)
        if trainer is not None and trainer.num_training_batches < batches:
            batches = int(trainer.num_training_batches)
        step = first // rows // together
        within = order[step * together * rows : min((step + 1) * together, batches) * rows]
        return together * world / int(self.told["train"].completions.lengths[within].sum())

    # --- loaders ---

    def _loader(self, split: str, most: int | None = None) -> PairLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        n = len(self.told[split]) if most is None else min(most, len(self.told[split]))

        def collate(order: Codes, chosen: Sequence[int]) -> Completions:
            return self.batch(split, order[list(chosen)].tolist())

        return PairLoader(lambda epoch: np.arange(n), collate, self.eval_batch_size, n, rank, world)

    def train_dataloader(self) -> TrainLoader:
        """Training examples, in another order each epoch; stateful."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        n = len(self.told["train"])
        n -= n % world  # every process must take as many steps
        loader = TrainLoader(lambda e: self.order("train", e)[:n], self._train_batch, self.batch_size, n, rank, world)
        if self.trainer is not None and self.trainer.training:
            # Lightning gives a loader its state back within an epoch, but not at an epoch's end
            loader.epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> PairLoader:
        """Validation examples."""
        return self._loader("validation")

    def test_dataloader(self) -> list[PairLoader]:
        """Loaders of the splits of :attr:`tested`; of training no more than of validation."""
        most = len(self.told["validation"])
        return [self._loader(split, most if split == "train" else None) for split in self.tested]

    def predict_dataloader(self) -> PairLoader:
        """Test examples."""
        return self._loader("test")

    def every_pair(self, split: str) -> PairLoader:
        """A split's examples, all of them in every process."""
        loader = self._loader(split)
        loader.rows = list(range(len(self.told[split])))
        return loader

    # --- for people ---

    def texts(self, split: str, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Return the prompts as the network reads them, and the completions without the end of text."""
        told = self.told[split]
        wanted = self.decoded([told.completions[row] for row in rows])
        return [(told.pool.prompts[row].text, said) for row, said in zip(rows, wanted, strict=True)]

    def decoded(self, written: Sequence[Sequence[int]]) -> list[str]:
        """Return what was written as text, without the end of text."""
        found: list[str] = self.tokenizer.batch_decode(list(written), skip_special_tokens=True)
        return found

    def report(self) -> str:
        """Return what there is to train on: counts, lengths, and the first example as the network sees it."""
        lines = [f"data: {self.name}"]
        for split, told in self.told.items():
            assert isinstance(told.pool.prompts, Prompts)
            prompts, ends = told.pool.prompts.ids.lengths, told.completions.lengths
            lines.append(
                f"  {split}: {len(told)} examples; prompts of {prompts.min()} to {prompts.max()} tokens, completions "
                f"of {ends.min()} to {ends.max()} ({int(ends.sum())} in all)"
            )
        prompts_of = {split: {example.base.text for example in examples} for split, examples in self.examples.items()}
        for one, other in combinations(prompts_of, 2):
            if n := len(prompts_of[one] & prompts_of[other]):
                lines.append(f"  warning: {one} and {other} share {n} prompts: neither is new to the other")
        told = self.told["train"]
        prompt, ids = told.pool.prompts[0], told.completions[0]
        lines.append(f"  first: {prompt.text!r} → {self.tokenizer.decode(ids)!r}")
        for name, positions in zip(self.names, told.pool.positions, strict=True):
            at = choices(repr(self.tokenizer.decode([prompt.ids[i]])) for i in positions[0])
            behind = {"prompt": at, "generated": "each generated token", "all": f"{at}, each generated token"}
            lines.append(f"  {name} edits {behind[self.where]}")
        return "\n".join(lines)


def _examples(dataset: Dataset, sizes: Sizes, seed: int) -> tuple[str, dict[str, list[Example]]]:
    name, tables = example_tables(dataset.path, dataset.revision, dataset.config)
    columns = dict(dataset.columns or {})
    rows = {split: [row for table in of for row in read_examples(table, columns)] for split, of in tables.items()}
    first = next(iter(rows.values()))[0]
    for row in (row for of_split in rows.values() for row in of_split):
        if isinstance(row.prompt, str) != isinstance(first.prompt, str):
            raise IITKitError(f"{row.table.name} and {first.table.name}: one has messages, the other prompts")
    found = divided(rows, name, seed)
    kept: dict[str, list[Example]] = {}
    for split in (split for split in SPLITS if split in found):
        n = sizes.of_dataset(split)
        if n is not None and not 0 < n <= len(found[split]):
            raise IITKitError(
                f"data.sizes.{split}: {n} examples: {name} has {len(found[split])}; expected 1 to that many"
            )
        kept[split] = found[split][:n]
    return name, kept
