"""How a task's prompt becomes the text that the network reads: prefix, examples before it, a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.errors import IITKitError

_MARK = "iitkitPROMPTiitkit"
"""Stands for the prompt while a chat template is looked at."""


@dataclass(frozen=True)
class Worded:
    """Prompts with everything around them.

    Args:
        texts: the whole texts.
        before: what stands before the prompt in each.
        after: what stands behind it.
        kept: number of characters at the start that stay where a prompt is too long.
    """

    texts: list[str]
    before: str
    after: str
    kept: int


@dataclass(frozen=True)
class Wording:
    """What stands around a prompt.

    Args:
        prefix: text before everything else, e.g. <|endoftext|> for a model that needs an attention sink.
        chat: whether the prompt is a user's turn of a chat, by the tokenizer's own template; answers then begin
            without their space.
        system: the chat's system turn; the template's own unless said.
        shots: examples before the prompt, pairs of prompt and answer (in a chat: earlier turns).
        separator: text behind each example, outside a chat.
        special_tokens: whether the tokenizer adds what it adds by itself (BOS); in a chat, whose template writes such
            tokens, it does not unless said.
        max_tokens: longer prompts lose tokens on the left, behind BOS and prefix (in a chat: behind all that stands
            before the prompt); a span that would be cut is an error.

    Raises:
        IITKitError: an option of another type or of no use.
    """

    prefix: str = ""
    chat: bool = False
    system: str | None = None
    shots: Sequence[tuple[str, str]] = ()
    separator: str = "\n"
    special_tokens: bool | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise IITKitError("data.system: there is a system turn only in a chat: set chat to true, or use prefix")
        for i, shot in enumerate(self.shots):
            if isinstance(shot, str) or len(shot) != 2 or not all(isinstance(part, str) for part in shot):
                raise IITKitError(f"data.shots[{i}]: {shot!r}: expected two texts, a prompt and its answer")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise IITKitError(f"data.max_tokens: {self.max_tokens}: expected 1 or more")

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds its own tokens."""
        return not self.chat if self.special_tokens is None else self.special_tokens

    def answer(self, answer: str) -> str:
        """Return an answer as it stands behind the prompt: a turn of a chat begins without a space."""
        return answer.lstrip(" ") if self.chat else answer

    def frame(self, tokenizer: Any) -> tuple[str, str]:
        """Return what stands before and behind every prompt.

        Raises:
            IITKitError: no chat template, one that refuses these turns, or one that does not write the prompt once.
        """
        if not self.chat:
            return self.prefix + "".join(prompt + answer + self.separator for prompt, answer in self.shots), ""
        before, *after = self._chats(tokenizer, [_MARK])[0].split(_MARK)
        if len(after) != 1:
            raise IITKitError(
                f"data.chat: the tokenizer's template writes the prompt as it is {len(after)} times, not once"
            )
        return self.prefix + before, after[0]

    def opens_answer(self, tokenizer: Any) -> bool:
        """Return whether a chat's template writes the head of the answer's turn."""
        return self._chats(tokenizer, [_MARK]) != self._chats(tokenizer, [_MARK], opened=False)

    def apply(self, tokenizer: Any, prompts: Sequence[str]) -> Worded:
        """Return prompts with what stands around them.

        Raises:
            IITKitError: a chat template that alters a prompt; see also :meth:`frame`.
        """
        before, after = self.frame(tokenizer)
        texts = [f"{before}{prompt}{after}" for prompt in prompts]
        if self.chat:
            for prompt, text, chat in zip(prompts, texts, self._chats(tokenizer, prompts), strict=True):
                if self.prefix + chat != text:
                    raise IITKitError(
                        f"data.chat: the tokenizer's template alters the prompt {prompt!r}, so its spans are lost: "
                        "write it without blanks at its ends, or set chat to false"
                    )
        return Worded(texts, before, after, len(before) if self.chat else len(self.prefix))

    def _chats(self, tokenizer: Any, prompts: Sequence[str], opened: bool = True) -> list[str]:
        if not getattr(tokenizer, "chat_template", None):
            raise IITKitError(
                "data.chat: the tokenizer has no chat template: use an instruction-tuned model, or set chat to false"
            )
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        for prompt, answer in self.shots:
            turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": self.answer(answer)}]
        chats = [[*turns, {"role": "user", "content": prompt}] for prompt in prompts]
        try:
            found: list[str] = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=opened)
        except Exception as error:  # a template is a program of its own
            raise IITKitError(f"data.chat: the tokenizer's template refuses these turns: {error}") from error
        return found
