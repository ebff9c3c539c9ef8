"""Counterfactual pairs from a user's own file or Hub dataset; no causal model is needed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal import Setting, Text
from iitkit.causal.variables import Codes
from iitkit.data.cells import COLUMNS, UNREAD
from iitkit.data.dividing import divided
from iitkit.data.numbers import arrays
from iitkit.data.pairs import Pairs
from iitkit.data.recorded_split import RecordedSplit
from iitkit.data.rows import Row, read_rows
from iitkit.data.sharing import fetch, is_repo_id
from iitkit.data.source import SPLITS, generator
from iitkit.data.tables import SUFFIXES, find_files, read_table
from iitkit.errors import IITKitError, choices, did_you_mean

MOST_ANSWERS = 1000
"""As many answers compete at most where the file names no candidates."""


class Recorded:
    """Counterfactual pairs from a file, a folder or a Hub dataset.

    Columns: ``base``, ``source`` (or ``sources``, a list) and ``label``, the answer on the base under the interchange.
    Optional: ``base_label``; ``candidates``, the answers that compete (else all answers of the data do, up to 1000);
    ``variable`` (or ``variables``, one for each source, or all from the one); ``template``; and the spans that
    positions may name, as substrings or as offsets [start, stop]: ``base_positions`` and ``source_positions`` (a list
    of them for several sources), or ``positions`` for substrings of both. Instead of text, prompts may be lists of
    numbers: integers are symbols, anything else is a vector or an image; answers are then integers.

    Splits are train, validation, test and test_templates. Those of the first three that the data lack are taken from
    train in the proportions 60 : 20 : 20, such that no prompt of train is in two of them.

    Args:
        path: a .jsonl, .parquet or .csv file; a folder of such files named by split, or with a README whose
            ``configs:`` names them; or a Hub dataset, user/name.
        revision: a Hub dataset's branch, tag or commit.
        config: which of the README's ``configs:``.
        columns: name above → the file's name for it; null leaves a column unread.
        seed: of the division into splits and of the order of pairs.

    Raises:
        IITKitError: naming file, line and column: what was given and what was expected.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        revision: str | None = None,
        config: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        seed: int = 0,
    ) -> None:
        self.path, self.revision, self.config, self.seed = os.fspath(path), revision, config, seed
        columns = dict(columns or {})
        if unknown := [name for name in columns if name not in COLUMNS]:
            hint = did_you_mean(unknown[0], COLUMNS)
            raise IITKitError(f"columns: unknown name {unknown[0]!r}.{hint} Expected one of {choices(COLUMNS, 30)}")
        self.columns = columns
        with _uncollected():
            self._load(columns)

    def _load(self, columns: Mapping[str, str | None]) -> None:
        self.name, self.files = found_files(self.path, self.revision, self.config)
        tables = {
            split: [read_table(file, name, UNREAD) for file, name in files] for split, files in self.files.items()
        }
        rows = {split: [row for table in tables[split] for row in read_rows(table, columns)] for split in tables}
        every = [row for of_split in rows.values() for row in of_split]
        _check_alike(every)
        shared, rows = self._shared(every), divided(rows, self.name, self.seed)
        codes: dict[str | int, int] = {}
        self._data = {split: RecordedSplit.of(rows[split], shared, codes) for split in SPLITS if split in rows}
        self.spans = list(every[0].base.spans)
        """Names that positions may use."""
        self.base_labels_known = every[0].base_label is not None
        """False: base labels are -1 and flipped is False until someone has asked the base model."""
        self.numbers = every[0].numbers
        """Whether the prompts are no text; see :meth:`inputs`."""
        self.sources = len(every[0].sources)
        """Number of sources of a pair."""
        self._twice = next((row.at for row in every if len(set(row.variables)) < len(row.variables)), None)
        self._isolates = all(row.other is not None for row in every)
        named = [name for row in every for name in (*row.variables, *(row.other or ())[:1])]
        self._variables = list(dict.fromkeys(named)) or None

    def _shared(self, rows: Sequence[Row]) -> tuple[str, ...] | None:
        """Return the answers that compete in every pair, where the file names none."""
        if rows[0].candidates is not None:
            return None
        answers = [answer for row in rows for answer in (row.label, row.base_label) if answer is not None]
        shared = tuple(dict.fromkeys(answers))
        if not 2 <= len(shared) <= MOST_ANSWERS:
            raise IITKitError(
                f"{self.name} has {len(shared)} different answers and no column 'candidates': expected 2 to "
                f"{MOST_ANSWERS}, which then all compete. Add a column with the list of answers that compete"
            )
        return shared

    # --- what the data module asks ---

    def check(self, stages: int, isolates: bool) -> None:
        """Check that the pairs are such as a module asks for.

        Args:
            stages: number of stages of source 0 → source 1 → … → base; 0 for none.
            isolates: whether it needs the label under another variable's interchange.

        Raises:
            IITKitError: another number of sources, a variable of two sources outside stages, no other variable's label.
        """
        if stages and self.sources != stages:
            raise IITKitError(f"model.stages: {stages} stages: the pairs of {self.name} have {self.sources} sources")
        if not stages and self._twice is not None:
            raise IITKitError(f"{self._twice}: a variable takes its value from two sources: expected each once")
        if isolates and not self._isolates:
            raise IITKitError(f"{self.name} has no columns other_variable and other_label, which isolating needs")

    def splits(self) -> list[str]:
        """Return the splits there are."""
        return list(self._data)

    def variables(self) -> list[str] | None:
        """Return the variables that pairs intervene on; None where the file names none, so that any name will do."""
        return self._variables

    def prompts(self, split: str) -> tuple[list[Text], Codes, Setting]:
        """Return a split's distinct prompts and the template of each, [N]; there is no causal model, so no codes."""
        data = self._of(split)
        return data.texts, data.templates, {}

    def inputs(self, split: str) -> npt.NDArray[Any] | None:
        """Return a split's distinct prompts where they are no text, [N, …]; None where they are.

        Lists of integers are symbols, int64 [N, S], and their spans are ranges of places; others are float32.
        """
        return arrays(self._of(split).texts) if self.numbers else None

    def places(self, split: str) -> Mapping[str, Codes]:
        """Return, of prompts that are symbols, each span's first place and one behind the last, [N, 2]."""
        texts = self._of(split).texts
        return {name: np.asarray([text.spans[name] for text in texts], dtype=np.int64) for name in self.spans}

    def truths(self, split: str) -> list[str]:
        """Return each prompt's label without intervention, empty where the file does not say."""
        return self._of(split).truths

    def competing(self, split: str, rows: Codes) -> list[list[str]]:
        """Return the answers that compete behind each of these prompts: those of the first pair that it is the base of.

        Of a prompt that is only a source, they are those of its first pair, and its own.
        """
        answers = self._of(split).answers
        return [answers[row] for row in rows.tolist()]

    def size(self, split: str, variables: Sequence[str]) -> int:
        """Return how many of a split's pairs intervene on the given variables only."""
        return len(self._chosen(split, variables))

    def pairs(self, split: str, epoch: int, variables: Sequence[str], n: int | None = None) -> Pairs:
        """Return a split's pairs that intervene on the given variables only.

        Args:
            split: the split.
            epoch: epoch 0 has the pairs in the file's order; later ones in another, the same in any process.
            variables: the variables that are placed. In a file that names none, pairs are of all of them at once.
            n: number of pairs, all unless said: a random choice, another each epoch, each pair at most once.

        Raises:
            IITKitError: fewer pairs than ``n``, or none.
        """
        data, rows = self._of(split), self._chosen(split, variables)
        if n is not None and not 0 < n <= len(rows):
            raise IITKitError(
                f"{n} {split} pairs: {self.name} has {len(rows)} of {choices(variables)}; no pair is used twice. "
                "Lower the size of the split"
            )
        drawn = generator(self.seed, "pairs", split, epoch)
        if n is not None and n < len(rows):
            rows = np.sort(drawn.permutation(rows)[:n])
        if epoch:
            rows = drawn.permutation(rows)
        kept = rows.tolist()
        index = {name: k for k, name in enumerate(variables)}
        named = [data.variables[i] or tuple(variables) for i in kept]
        most = max(map(len, named))
        named = [(*names, *names[:1] * (most - len(names))) for names in named]  # of one source, once more is no more
        others = [data.other[i] for i in kept]
        apart = [(index[other[0]], other[1]) for other in others if other is not None and other[0] in index]
        known = len(apart) == len(kept)
        return Pairs(
            base=data.base[rows],
            sources=data.sources[rows],
            variables=np.asarray([[index[name] for name in names] for names in named], dtype=np.int64),
            flipped=data.flipped[rows],
            candidates=[data.candidates[i] for i in kept],
            label=[data.label[i] for i in kept],
            base_label=[data.base_label[i] for i in kept],
            other=np.asarray([v for v, _ in apart], dtype=np.int64) if known else None,
            other_label=[label for _, label in apart] if known else None,
        )

    def shared_prompts(self) -> dict[tuple[str, str], int]:
        """Return how many prompts each two splits share, where they share any: the test is then no test."""
        texts = {split: {text.text for text in data.texts} for split, data in self._data.items()}
        names = list(texts)
        found = {(a, b): len(texts[a] & texts[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
        return {both: n for both, n in found.items() if n}

    def _of(self, split: str) -> RecordedSplit:
        if split not in self._data:
            hint = did_you_mean(split, self._data)
            raise IITKitError(f"{self.name} has no split {split!r}.{hint} It has {choices(self._data)}")
        return self._data[split]

    def _chosen(self, split: str, variables: Sequence[str]) -> Codes:
        data, wanted = self._of(split), frozenset(variables)
        if self._variables is None:
            return np.arange(len(data.base))
        if wrong := [name for name in variables if name not in self._variables]:
            hint = did_you_mean(wrong[0], self._variables)
            raise IITKitError(
                f"{self.name} has no pairs of variable {wrong[0]!r}.{hint} It has {choices(self._variables)}"
            )
        fits = {names: wanted.issuperset(names) for names in set(data.variables)}
        rows = np.asarray([i for i, names in enumerate(data.variables) if fits[names]], dtype=np.int64)
        if not len(rows):
            raise IITKitError(f"{self.name}: no {split} pair is of {choices(variables)} alone: place more variables")
        return rows


# --- reading ---


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector: of millions of new cells, none is in a cycle, yet it looks at all again and again.

    It takes three fifths of the time otherwise. What is loaded must be gone when it goes on: load in a function.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def found_files(path: str, revision: str | None, config: str | None) -> tuple[str, dict[str, list[tuple[Path, str]]]]:
    """Return the data's name and the files of each split, with what messages call them."""
    place = Path(path).expanduser()
    if path.strip() and place.exists():
        if revision is not None:
            raise IITKitError(f"revision {revision!r}: {path} is on this machine; revisions are for Hub datasets")
        if place.is_file():
            if config is not None:
                raise IITKitError(f"config {config!r}: {path} is one file; configs are for folders with a README")
            return path, {"train": [(place, place.name)]}
        name = path
    elif is_repo_id(path):
        place = fetch(path, revision, config)
        name = f"{path}@{place.name[:12]}"
    else:
        raise IITKitError(
            f"{path!r}: no such file or folder. Expected a {choices(SUFFIXES)} file, a folder of them, "
            "or a Hub dataset user/name"
        )
    files = find_files(place, config, name)
    return name, {
        split: [(file, file.relative_to(place).as_posix()) for file in of_split] for split, of_split in files.items()
    }


def _check_alike(rows: Sequence[Row]) -> None:
    """Check that the files of a dataset have the same columns, spans and number of sources."""
    first = rows[0]
    table = first.table
    for row in rows:
        if row.table is table:
            continue
        table = row.table  # a file's rows are alike already
        for what, given, expected in (
            ("sources a pair", len(row.sources), len(first.sources)),
            ("a base_label", row.base_label is not None, first.base_label is not None),
            ("candidates", row.candidates is not None, first.candidates is not None),
            ("a variable", bool(row.variables), bool(first.variables)),
            ("kind of prompt", _kind(row), _kind(first)),
            ("spans", set(row.base.spans), set(first.base.spans)),
        ):
            if given != expected:
                one, other = (
                    ("yes" if x else "no") if isinstance(x, bool) else choices(sorted(x)) if isinstance(x, set) else x
                    for x in (given, expected)
                )
                raise IITKitError(
                    f"{table.name} and {first.table.name} differ in {what} ({one or 'none'}, {other or 'none'}): "
                    "expected the same columns in every file"
                )


def _kind(row: Row) -> str:
    return f"numbers of shape {list(arrays([row.base]).shape[1:])}" if row.numbers else "text"
