"""What every data module is: prompts made for the module that the trainer is about to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.errors import IITKitError


class PromptDataModule(pl.LightningDataModule):
    """Prompts in splits, tokenised for a network and its alignment."""

    batch_size: int
    eval_batch_size: int
    seed: int
    prefix: str
    _subject: object = None

    @property
    def splits(self) -> list[str]:
        """The splits there are."""
        raise NotImplementedError  # abstract

    @property
    def tested(self) -> list[str]:
        """The splits that ``test`` reports, in the order of its loaders."""
        return [*(split for split in self.splits if split.startswith("test")), "train", "validation"]

    def bind(self, subject: Any) -> None:
        """Make the prompts for a module: its tokenizer and its alignment's positions."""
        raise NotImplementedError  # abstract

    def setup(self, stage: str | None = None) -> None:
        """Make the prompts, for the module that the trainer is about to run."""
        if self.trainer is None:
            if self._subject is None:
                raise IITKitError("the data are made for a module: call bind(module), or hand both to a Trainer")
        elif self.trainer.lightning_module is not self._subject:  # another module may look elsewhere
            self.bind(self.trainer.lightning_module)

    def every_pair(self, split: str) -> Iterable[Any]:
        """A split's first batches, all of them in every process: what is fitted to them is the same in each."""
        raise NotImplementedError  # abstract

    def every_prompt(self, splits: Any) -> Iterator[tuple[Tokens, Tensor, Tensor]]:
        """Yield each split's prompts, the columns of every placement's site [N, P, n], and which of them exist."""
        raise NotImplementedError  # abstract
