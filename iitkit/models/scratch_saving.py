"""A trained network as a folder that loads as any base does."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from iitkit.models.scratch_networks import PlainNetwork, save_plain


def save_network(
    model: nn.Module,
    folder: Path,
    tokenizer: Any = None,
    symbols: Sequence[Hashable] = (),
    prepare: Callable[[nn.Module], None] | None = None,
) -> Path:
    """Write a network with its tokenizer; the folder appears whole, or an earlier one stays.

    Args:
        model: the network; it stays as it is.
        folder: where.
        tokenizer: of a network that reads text.
        symbols: of one that reads symbols, in the order of their ids: it gets a tokenizer of these words.
        prepare: changes the copy that is saved.

    Returns:
        ``folder``.
    """
    made: Any = copy.deepcopy(model).requires_grad_(False).cpu()
    if prepare is not None:
        prepare(made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if isinstance(made, PlainNetwork):
            save_plain(made, scratch, made.state_dict())
        else:
            made.save_pretrained(scratch)
            own = tokenizer if tokenizer is not None else symbol_tokenizer(symbols)
            if own is not None:
                own.save_pretrained(scratch)
        scratch.chmod(0o777 & ~_umask())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def symbol_tokenizer(symbols: Sequence[Hashable]) -> PreTrainedTokenizerFast | None:
    """Return a tokenizer whose words, with blanks between them, are symbols; None where two are written alike."""
    written = [str(symbol) for symbol in symbols]
    if len(set(written)) < len(written) or not written or any(not word or word.split() != [word] for word in written):
        return None
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(written)}, unk_token=written[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made: Any = PreTrainedTokenizerFast
    found: PreTrainedTokenizerFast = made(tokenizer_object=backend, pad_token=written[0])
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
