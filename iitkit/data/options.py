"""What a user may say of the data, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from iitkit.data.source import SPLITS
from iitkit.errors import IITKitError
from iitkit.tasks import Task

DEFAULT = {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}


@dataclass(frozen=True)
class Sizes:
    """Number of pairs in each split; of a dataset all that it has, unless said.

    Args:
        train: pairs of one epoch; 2000 unless said.
        validation: pairs after each epoch; as many training pairs are tested in the end. 500 unless said.
        test: pairs of words that training never saw; 500 unless said.
        test_templates: pairs of such words in templates that training never saw; 200 unless said.
    """

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    test_templates: int | None = None

    def of_task(self) -> dict[str, int]:
        """Return the number of each split's pairs, of a task."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {split: DEFAULT[split] if n is None else n for split, n in given.items()}

    def of_dataset(self, split: str) -> int | None:
        """Return the number of a split's pairs, of a dataset; None for all that it has."""
        n: int | None = getattr(self, split)
        return n


@dataclass(frozen=True)
class Dataset:
    """Recorded pairs; see ``iitkit.data.recorded`` for the columns.

    Args:
        path: a .jsonl, .parquet or .csv file, a folder of such files named by split, or a Hub dataset user/name.
        revision: a Hub dataset's branch, tag or commit.
        config: which of the README's configs.
        columns: our name of a column → the file's; null leaves it unread.
    """

    path: str
    revision: str | None = None
    config: str | None = None
    columns: Mapping[str, str | None] | None = None


def check_options(
    task: Task | None,
    dataset: Dataset | None,
    sizes: Sizes,
    batch_size: int,
    eval_batch_size: int | None,
    flipped: float | None,
    together: int,
    prompts: int | None,
    shares: tuple[float, float, float],
    shots: int,
) -> None:
    """Check the numbers that a user gives.

    Raises:
        IITKitError: naming the option, what was given and what was expected.
    """
    if (task is None) == (dataset is None):
        raise IITKitError("data: give either a task or a dataset" + (", not both" if task is not None else ""))
    for split in SPLITS:
        n = getattr(sizes, split)
        if n is not None and n < (0 if split == "test_templates" else 1):
            raise IITKitError(f"data.sizes.{split}: {n} pairs: expected 1 or more")
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
    if shots < 0:
        raise IITKitError(f"data.shots: {shots}: expected 0 or more")
