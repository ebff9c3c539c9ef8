"""From examples to the texts that a network reads and should write: prefix, chat template, what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from iitkit.causal import Text
from iitkit.data.cells import Cells
from iitkit.data.examples import Example, Turn
from iitkit.data.spans import find_spans
from iitkit.data.tables import Table
from iitkit.errors import IITKitError, choices, did_you_mean


@dataclass(frozen=True)
class Telling:
    """How an example is told to the network.

    Args:
        chat: whether a prompt is a user's turn and its completion the assistant's; examples that are chats already are
            told as chats in any case.
        system: the chat's system turn.
        template: which of the tokenizer's chat templates, or a .jinja file; its default one unless said.
        stem: what messages of a template put before the options' names.

    Raises:
        IITKitError: an option of no use.
    """

    chat: bool = False
    system: str | None = None
    template: str | None = None
    stem: str = "data."

    def text(self, tokenizer: Any, turns: Sequence[Turn], at: str) -> str:
        """Return a chat's text up to where the answer would begin or, if it is there, to where its words end.

        Args:
            tokenizer: the tokenizer.
            turns: the chat; its last turn may be the assistant's.
            at: where it stands, for messages.

        Raises:
            IITKitError: a chat template that is missing, or that refuses these turns.
        """
        template, (*before, last) = self._template(tokenizer), turns
        if last["role"] != "assistant":
            return _applied(tokenizer, template, turns, at)
        prompt, behind = _told(tokenizer, template, before, last["content"], at, self.stem)
        words = last["content"].strip()
        return prompt + behind[: behind.index(words) + len(words)]

    def told(self, tokenizer: Any, examples: Sequence[Example]) -> tuple[list[Text], list[str]]:
        """Return the prompts with their spans, and the completions behind them.

        Raises:
            IITKitError: a chat template that is missing, or does not end a prompt where the answer begins; options that
                nothing reads; a span that is not in its prompt.
        """
        chats = not isinstance(examples[0].prompt, str)
        if chats and self.chat:
            raise IITKitError("data.chat is of prompts and completions; messages are chats as they are: leave it out")
        if chats and self.system is not None:
            raise IITKitError("data.system is of prompts and completions: write the system turn in the messages")
        if not chats and not self.chat:
            for option in ("system", "template"):
                if getattr(self, option) is not None:
                    raise IITKitError(f"data.{option} is of a chat: set data.chat to true, or give messages")
            prompts, completions = [str(example.prompt) for example in examples], [e.completion for e in examples]
        else:
            template = self._template(tokenizer)
            pairs = [
                _told(tokenizer, template, self._turns(example), example.completion, example.at, self.stem)
                for example in examples
            ]
            prompts, completions = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
        return [Text(text, spans) for text, spans in zip(prompts, _spans(examples, prompts), strict=True)], completions

    def _turns(self, example: Example) -> list[Turn]:
        if not isinstance(example.prompt, str):
            return example.turns
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": example.prompt}]

    def _template(self, tokenizer: Any) -> str | None:
        """Return the template's text, None for the tokenizer's own.

        Raises:
            IITKitError: a tokenizer without one, or a name that neither it nor a file has.
        """
        own = getattr(tokenizer, "chat_template", None)
        named = own if isinstance(own, dict) else {}
        if self.template is None:
            if named and "default" not in named:
                raise IITKitError(
                    f"the tokenizer has the chat templates {choices(named)}: say which, {self.stem}template"
                )
            if not own:
                raise IITKitError(
                    f"the tokenizer has no chat template: give one by {self.stem}template, a .jinja file, or take an "
                    "instruction-tuned model"
                )
            return None
        if self.template in named:
            return str(named[self.template])
        file = Path(self.template)
        if file.suffix in (".jinja", ".jinja2") and file.is_file():
            return file.read_text(encoding="utf-8")
        raise IITKitError(
            f"{self.stem}template: no chat template {self.template!r}.{did_you_mean(self.template, named)} Expected "
            + (f"one of the tokenizer's ({choices(named)}) or " if named else "")
            + "a .jinja file"
        )


def _told(
    tokenizer: Any, template: str | None, turns: list[Turn], completion: str, at: str, stem: str
) -> tuple[str, str]:
    """Return the text before the answer and the answer with all that the template writes behind it."""
    before = _applied(tokenizer, template, turns, at)
    whole = _applied(tokenizer, template, [*turns, {"role": "assistant", "content": completion}], at, False)
    if not whole.startswith(before) or completion.strip() not in whole[len(before) :]:
        raise IITKitError(
            f"{at}: the chat template does not end a prompt where it begins the answer: it writes {before!r}, "
            f"and with the answer {whole!r}; give another by {stem}template"
        )
    return before, whole[len(before) :]


def _applied(tokenizer: Any, template: str | None, turns: Sequence[Turn], at: str, opened: bool = True) -> str:
    """Return turns in the template's words; ``opened`` says whether the answer's turn is begun behind them."""
    given = {} if template is None else {"chat_template": template}
    try:
        found: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=opened, **given)
    except Exception as error:  # a template is a program of its own
        raise IITKitError(f"{at}: the chat template refuses these turns: {error}") from error
    return found


def _spans(examples: Sequence[Example], prompts: list[str]) -> list[dict[str, tuple[int, int]]]:
    """Return each prompt's spans in characters, after a check that all have the same."""
    found: list[dict[str, tuple[int, int]]] = []
    for table, rows in groupby(range(len(examples)), lambda i: examples[i].table):
        some = list(rows)
        if not any(examples[i].positions for i in some):
            found += [{} for _ in some]
            continue
        lines = Table(table.name, {}, [table.lines[examples[i].row] for i in some], table.unit)
        column: list[Any] = [dict(examples[i].positions) for i in some]
        cells = Cells(lines, {"base_positions": column}, {"base_positions": "positions"})
        found += [of_row[0] for of_row in find_spans(cells, [prompts[i] for i in some], [()] * len(some))]
    if wrong := next((i for i, spans in enumerate(found) if spans.keys() != found[0].keys()), None):
        raise IITKitError(
            f"{examples[wrong].at}: the prompt has the spans {choices(found[wrong]) or 'none'}, {examples[0].at} has "
            f"{choices(found[0]) or 'none'}: expected the same in every prompt"
        )
    return found
