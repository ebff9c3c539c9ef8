"""A trained network as a folder that loads as any base does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from iitkit.models.gguf import quiet
from iitkit.models.scratch_networks import PlainNetwork, save_plain


def save_network(
    model: nn.Module,
    folder: Path,
    tokenizer: Any = None,
    symbols: Sequence[Hashable] = (),
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a network with its tokenizer; the folder appears whole, or an earlier one stays.

    Args:
        model: the network.
        folder: where.
        tokenizer: of a network that reads text.
        symbols: of one that reads symbols, in the order of their ids: it gets a tokenizer of these words.
        tensors: its weights, where they are not those of its ``state_dict``.

    Returns:
        ``folder``.
    """
    made: Any = model
    state = {key: value.detach().cpu() for key, value in (model.state_dict() if tensors is None else tensors).items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if isinstance(made, PlainNetwork):
            save_plain(made, scratch, state)
        else:
            with quiet():
                made.save_pretrained(scratch, state_dict=state)
            own = tokenizer if tokenizer is not None else symbol_tokenizer(symbols)
            if own is not None:
                own.save_pretrained(scratch)
        scratch.chmod(0o777 & ~_umask())
        _take_the_place_of(folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _take_the_place_of(folder: Path, scratch: Path) -> None:
    """Give a finished folder its name; one that has it goes, and stays where that fails."""
    if not folder.exists():
        scratch.rename(folder)
        return
    old = scratch.with_name(scratch.name + "-old")
    folder.rename(old)
    try:
        scratch.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
