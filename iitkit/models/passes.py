"""Where in its sequence each pass of a language model stands, while contexts edit what it runs.

A decode pass sees one token and knows nothing of the prompt, blocks get no positions that could be trusted, and beams
repeat rows: all of it is worked out once a pass, as the network itself is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a generation, or a pass that goes on with nothing, begins with.

    Args:
        real: where its tokens are, [rows, columns], on the CPU.
        ids: its tokens, [rows, columns], where another pass must begin with them too.
        cached: how many of its columns a cache held already.
        tokens: its tokens, [rows, columns], where they are known.
    """

    real: Tensor
    ids: Tensor | None
    cached: int
    tokens: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of columns, padding included."""
        return self.real.shape[1]


@dataclass(eq=False)
class Generation:
    """A running call of ``generate``: the columns, mask and tokens that it was given, the prompt once that is run."""

    columns: int | None
    mask: Tensor | None
    tokens: Tensor | None = None
    prompt: Prompt | None = None
    drafting: bool = False


@dataclass(eq=False)
class Pass:
    """One call of the network: columns ``start`` to ``stop`` of the sequence. No prompt: the cache is a stranger's."""

    prompt: Prompt | None
    rows: int
    start: int
    stop: int
    drafting: bool
    ended: bool = False
    succeeded: bool = False


class Listener(Protocol):
    """Is told of each pass."""

    def begin(self, now: Pass) -> None:
        """Note a pass that begins."""

    def check_ran(self) -> None:
        """Check that the last pass did what it should."""


class Passes:
    """Follows a network's passes while any context is open on it, and tells the placements of each."""

    _of: ClassVar[dict[nn.Module, Passes]] = {}

    def __init__(self, model: nn.Module, stack: ExitStack) -> None:
        self.listeners: list[Listener] = []
        self.now: Pass | None = None
        self.paused = False
        self.users = 0
        self._model: Any = model
        self._names = list(inspect.signature(model.forward).parameters)
        self._generation: Generation | None = None
        self._begun: WeakKeyDictionary[Any, Prompt] = WeakKeyDictionary()
        self._stack = stack
        stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(self._end, always_call=True).remove)
        for name, wrap in (
            ("generate", self._generating),
            ("init_continuous_batching", _refusing_batches),
            ("get_compiled_call", lambda original: lambda *_, **__: self._model.__call__),
        ):
            original = getattr(model, name, None)
            if original is not None:
                self._replace(name, functools.wraps(original)(wrap(original)))

    @classmethod
    def opened(cls, model: nn.Module, stack: ExitStack) -> Passes:
        """Return the network's, opened for the first context; the last one that leaves closes it."""
        if model not in cls._of:
            cls._of[model] = cls(model, ExitStack())
        passes = cls._of[model]
        passes.users += 1

        def leave() -> None:
            passes.users -= 1
            if not passes.users:
                del cls._of[model]
                passes._stack.close()

        stack.callback(leave)
        return passes

    @classmethod
    def open_on(cls, model: nn.Module) -> Passes | None:
        """Return the network's, if a context is open on it."""
        return cls._of.get(model)

    def _replace(self, name: str, new: Callable[..., Any]) -> None:
        own = vars(self._model)
        before = own.get(name)
        setattr(self._model, name, new)

        def restore() -> None:
            if own.get(name) is not new:  # replaced by the caller meanwhile
                return
            if before is None:
                delattr(self._model, name)
            else:
                setattr(self._model, name, before)

        self._stack.callback(restore)

    def _generating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Any:
            outer = self._generation
            if outer is None:
                self._generation = _generation(args, kwargs)
            else:  # the model drafts for itself (assisted decoding by early exit)
                self._generation = replace(outer, drafting=True)
            try:
                return original(*args, **kwargs)
            finally:
                self._generation = outer

        return generate

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.now = None
        if self.paused:
            return
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
        tokens = embedded if ids is None else ids
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            raise IITKitError(
                f"{type(module).__name__} was called without input_ids [batch, sequence]: intervening() edits language "
                "models; use interchange() for other networks"
            )
        if "cu_seq_lens_q" in given:
            raise IITKitError(_PACKED)
        cache = given.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        rows, stop = tokens.shape[0], start + tokens.shape[1]
        generation = self._generation
        if generation is not None:
            if generation.prompt is None:
                generation.prompt = _generated_from(generation, ids, given.get("attention_mask"), rows, start, stop)
            elif start == 0 and not _begins(ids, generation.prompt):
                raise IITKitError(
                    "generate() ran tokens that do not begin with its prompt, as classifier-free guidance does: "
                    "intervening() cannot tell what to edit in them"
                )
            prompt: Prompt | None = generation.prompt
        elif start == 0:
            prompt = Prompt(real_tokens(given.get("attention_mask"), rows, stop), None, 0, ids)
        else:
            prompt = self._begun.get(cache)
        for each in self.listeners:
            each.check_ran()
        now = Pass(prompt, rows, start, stop, generation is not None and generation.drafting)
        for each in self.listeners:
            each.begin(now)
        self.now = now

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.now is None:
            return
        self.now.ended, self.now.succeeded = True, output is not None
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        for value in values:
            if hasattr(value, "get_seq_length") and self.now.prompt is not None:
                self._begun[value] = self.now.prompt


_PACKED = (
    "continuous batching packs several prompts into one row, so that positions and sources have no rows of their own: "
    "use generate() inside intervening()"
)


def _refusing_batches(original: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise IITKitError(_PACKED)

    return refuse


@contextmanager
def unedited(model: nn.Module) -> Iterator[None]:
    """Run the model without the edits of contexts that are open on it."""
    passes = Passes.open_on(model)
    if passes is None:
        yield
        return
    before, passes.paused = (passes.paused, passes.now), True
    try:
        yield
    finally:
        passes.paused, passes.now = before


def _generation(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generation:
    tokens = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]]
    found = [each for each in tokens if isinstance(each, Tensor) and each.dim() > 1 and each.shape[1]]
    ids = next((each for each in found if each.dim() == 2 and not each.is_floating_point()), None)
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:  # counts also what a cache holds
        return Generation(mask.shape[1], mask, ids)
    return Generation(found[0].shape[1] if found else None, None, ids)


def _generated_from(generation: Generation, ids: Tensor | None, mask: Any, rows: int, start: int, stop: int) -> Prompt:
    columns = stop if generation.columns is None else generation.columns
    if generation.mask is None:
        real = real_tokens(mask, rows, columns, start)
    else:
        real = real_tokens(generation.mask, generation.mask.shape[0], columns)
        real = real.repeat_interleave(rows // len(real), 0)
    # a first pass may be longer (assisted decoding) or shorter (a chunk of the prompt)
    whole = ids[:, :columns] if ids is not None and start == 0 and stop >= columns else None
    tokens = whole
    if tokens is None and generation.tokens is not None and generation.tokens.shape[1] == columns:
        tokens = generation.tokens.repeat_interleave(rows // len(generation.tokens), 0)
    return Prompt(real, whole, start, tokens)


def _begins(ids: Tensor | None, prompt: Prompt) -> bool:
    """Return whether a pass begins with a prompt's tokens, as far as they are known."""
    return ids is not None and (prompt.ids is None or torch.equal(ids[:, : prompt.length], prompt.ids))


def real_tokens(mask: Any, rows: int, columns: int, start: int = 0) -> Tensor:
    """Return where the real tokens are, [rows, columns], from an attention mask of any kind.

    Raises:
        IITKitError: a mask that does not say so.
    """
    if isinstance(mask, Mapping):  # one for each kind of attention
        mask = next((each for each in mask.values() if each is not None), None)
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool)
    if mask.dim() == 2 and mask.shape[1] >= columns:
        found: Tensor = mask[:, :columns] != 0
        return found.cpu()
    if mask.dim() == 4 and start == 0 and mask.shape[2] >= columns:
        # generate() made it for a static cache, [batch, 1, queries, keys]: only a real token sees itself
        own: Tensor = mask[:, 0].diagonal(dim1=-2, dim2=-1)[:, :columns]
        return (own if own.dtype == torch.bool else own == 0).expand(rows, -1).cpu()
    raise IITKitError(
        f"attention_mask {tuple(mask.shape)} does not say which of {columns} tokens are padding: "
        "give one of shape [batch, sequence]"
    )
