"""The tokens of completions, as they follow their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.causal import Text
from iitkit.data.examples import Example
from iitkit.data.pool import Pool
from iitkit.data.prompts import Prompts
from iitkit.data.ragged import Ragged
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError


@dataclass(frozen=True)
class Limits:
    """How a completion ends.

    Args:
        context: most tokens of prompt and completion that the network takes; None for any number.
        most: most tokens of a completion; None for any number.
        eos: whether the end of text is the last of them.
        fed: whether only tokens that are fed back are edited: all of a completion but the last.
    """

    context: int | None
    most: int | None
    eos: bool
    fed: bool = False


def completion_tokens(
    tokenizer: Any,
    pool: Pool,
    texts: Sequence[Text],
    said: Sequence[str],
    wording: Wording,
    examples: Sequence[Example],
    limits: Limits,
) -> Ragged:
    """Return the tokens that should follow each prompt.

    Args:
        tokenizer: the tokenizer.
        pool: the tokenised prompts, of which some may have lost tokens on the left.
        texts: the prompts.
        said: the completions.
        wording: what stands around the prompts.
        examples: where they stand, for messages.
        limits: how they end.

    Raises:
        IITKitError: a completion that merges with its prompt, one without a token, one that goes on behind its end of
            text, a tokenizer without one, an example that is longer than the context, or that has no token to edit.
    """
    end = getattr(tokenizer, "eos_token_id", None)
    if limits.eos and end is None:
        raise IITKitError("the tokenizer has no end of text, so no completion would end: set data.eos to false")
    before = wording.apply(tokenizer, [text.text for text in texts]).texts
    special = wording.adds_special_tokens
    prompts: list[list[int]] = tokenizer(before, add_special_tokens=special)["input_ids"]
    joints = tokenizer([a + b for a, b in zip(before, said, strict=True)], add_special_tokens=special)["input_ids"]
    found = []
    assert isinstance(pool.prompts, Prompts)
    lengths = pool.prompts.ids.lengths.tolist()
    for prompt, joint, text, example, length in zip(prompts, joints, said, examples, lengths, strict=True):
        if joint[: len(prompt)] != prompt:
            raise IITKitError(
                f"{example.at}: completion {text!r} does not stand as tokens of its own behind its prompt: begin it "
                "with a space or a line, and end the prompt without one"
                + ("; or the tokenizer puts a token behind every text: set data.special_tokens to false" * special)
            )
        ids = joint[len(prompt) :]
        if end in ids:  # the line that a chat's template writes behind it is never generated
            ids, behind = ids[: ids.index(end)], tokenizer.decode(ids[ids.index(end) :], skip_special_tokens=True)
            if behind.strip():
                raise IITKitError(
                    f"{example.at}: completion {text!r} goes on behind the end of text, where nothing is generated: "
                    "end it there"
                )
        if not ids:
            raise IITKitError(f"{example.at}: completion {text!r} has no token: leave the row out")
        ids = [*ids, end] if limits.eos else ids
        ids = ids[: limits.most]
        if limits.context is not None and length + len(ids) > limits.context:
            raise IITKitError(
                f"{example.at}: {length} tokens of prompt and {len(ids)} of completion, the network takes "
                f"{limits.context}: set data.max_tokens (prompts) or data.max_completion, or leave the row out"
            )
        if limits.fed and len(ids) == 1:
            raise IITKitError(
                f"{example.at}: completion {text!r} is one token, which is not fed back, so model.where: generated "
                "edits nothing: leave the row out, or set model.where to all"
            )
        found.append(ids)
    return Ragged.of(found)
