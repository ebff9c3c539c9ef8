"""Hooks: reading and replacing what flows through a module, and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.models.catching import Watcher, watch
from iitkit.models.location import Location

Visit = Callable[[Tensor, Tensor | None], Tensor | None]
"""Sees an activation and its module's input; returns a replacement of the activation, or None to leave it.

The activation is [batch, sequence, width], or [batch, sequence, heads, width] where several heads are selected. The
module's own input [batch, sequence, input width] comes with a module's output, and is None otherwise.
"""


class Stopped(Exception):  # noqa: N818 - no error: the run went as far as it was needed
    """Raised by a visit to end a forward pass early; see :func:`stopping`."""


@contextmanager
def visiting(visits: Sequence[tuple[Location, Visit]]) -> Iterator[None]:
    """Run ``visits`` inside the context, several at one location in the order given; afterwards nothing is left.

    Inside the context a block that a visit enters is not recomputed by gradient checkpointing: its activations are
    kept, so the edit happens once. Where attention probabilities are visited, the whole network computes them, and no
    block is recomputed.
    """
    with ExitStack() as stack:
        for location, visit in visits:
            if location.holder is not None:
                _keep_activations(location.holder, stack)
            _compute_eagerly(location, stack)
            _install(location, visit, stack)
        yield


@contextmanager
def stopping() -> Iterator[None]:
    """Swallow the :class:`Stopped` with which a visit ended the forward pass."""
    with suppress(Stopped):
        yield


def _keep_activations(holder: nn.Module, stack: ExitStack) -> None:
    """Exempt a module from gradient checkpointing: it recomputes in backward, when what we changed is as before."""
    if not holder.training:
        return
    for module in holder.modules():
        _set_meanwhile(module, "gradient_checkpointing", False, stack)


def _compute_eagerly(location: Location, stack: ExitStack) -> None:
    if location.eager is not None and _set_meanwhile(location.eager.config, "_attn_implementation", "eager", stack):
        _keep_activations(location.eager.network, stack)


_MEANWHILE: dict[tuple[int, str], tuple[int, Any]] = {}
"""What contexts have set: (object, attribute) → how many of them did, and what it was before the first."""


def _set_meanwhile(owner: Any, name: str, value: Any, stack: ExitStack) -> bool:
    """Set an attribute until the last context that wants it so has ended, in whatever order they do.

    Returns:
        Whether it would be something else otherwise.
    """
    key = (id(owner), name)
    users, before = _MEANWHILE.get(key, (0, getattr(owner, name, value)))
    if before == value:
        return False
    _MEANWHILE[key] = (users + 1, before)
    setattr(owner, name, value)

    def leave() -> None:
        users, before = _MEANWHILE.pop(key)
        if users > 1:
            _MEANWHILE[key] = (users - 1, before)
        else:
            setattr(owner, name, before)

    stack.callback(leave)
    return True


def _install(location: Location, visit: Visit, stack: ExitStack) -> None:
    shape: list[int] = []
    if location.flat and location.holder is not None:

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape[:] = _tensor(args, kwargs, location)[1].shape[:2]

        stack.callback(location.holder.register_forward_pre_hook(note, with_kwargs=True).remove)

    def seen(tensor: Tensor, inputs: Tensor | None) -> Tensor | None:
        flat = bool(shape) and tensor.dim() == 2 and tensor.shape[0] == shape[0] * shape[1]
        if flat:
            tensor = tensor.reshape(*shape, -1)
            inputs = inputs if inputs is None else inputs.reshape(*shape, -1)
        new = visit(tensor if location.view is None else location.view.read(tensor), inputs)
        if new is None:
            return None
        if location.view is not None:
            new = location.view.write(tensor, new)
        return new.flatten(0, 1) if flat else new

    if location.inside is not None:
        stack.callback(watch(location.module, Watcher(location.inside, location.side, seen, location.label)))
    elif location.side == "output":

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            new = seen(_first(output, location), _entering(args, kwargs))
            return None if new is None else with_first(output, new, location.field)

        _before_reports(location.module, stack)
        stack.callback(location.module.register_forward_hook(after, with_kwargs=True).remove)
        _reports_last(location.module)
    else:

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key, tensor = _tensor(args, kwargs, location)
            new = seen(tensor, None)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})

        stack.callback(location.module.register_forward_pre_hook(before, with_kwargs=True).remove)


def _is_report(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def _before_reports(module: nn.Module, stack: ExitStack) -> None:
    """Restore the order of a module's hooks afterwards."""
    hooks: Any = module._forward_hooks  # an OrderedDict
    order = list(hooks)
    if any(_is_report(hook) for hook in hooks.values()):

        def restore() -> None:
            for key in [key for key in order if key in hooks]:
                hooks.move_to_end(key)

        stack.callback(restore)


def _reports_last(module: nn.Module) -> None:
    """Let the hooks behind transformers' ``output_hidden_states`` see what leaves the module, edits and all."""
    hooks: Any = module._forward_hooks
    for key in [key for key, hook in hooks.items() if _is_report(hook)]:
        hooks.move_to_end(key)


def _tensor(args: tuple[Any, ...], kwargs: dict[str, Any], location: Location) -> tuple[str | None, Tensor]:
    """Return a call's activation and, where it came by keyword, its name: hidden_states, else the first tensor."""
    if args:
        return None, _first(args, location)
    tensors = [key for key, value in kwargs.items() if isinstance(value, Tensor)]
    key = "hidden_states" if "hidden_states" in kwargs else tensors[0] if tensors else None
    if key is None:
        raise IITKitError(f"{location.label}: the module was called without a tensor")
    return key, kwargs[key]


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return a call's activation; None where it is none, e.g. token ids."""
    given = (*args[:1], kwargs.get("hidden_states"), *kwargs.values())
    found = next((value for value in given if isinstance(value, Tensor)), None)
    return found if found is not None and found.is_floating_point() else None


def _first(value: Any, location: Location) -> Tensor:
    if location.field is not None and isinstance(value, Mapping) and location.field in value:
        value = value[location.field]
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise IITKitError(f"{location.label}: expected a tensor at the site, found {type(value).__name__}")
    return value


def with_first(output: Any, tensor: Tensor, field: str | None = None) -> Any:
    """Return ``output`` with its first tensor (or its ``field``) replaced.

    A bare tensor is replaced whole, as the block returned it.

    Raises:
        IITKitError: an output with a loss, which the model took from what is replaced.
    """
    if field is not None and isinstance(output, Mapping):
        if output.get("loss") is not None:
            raise IITKitError(f"{field}: the model's own loss is of the {field} before the edit: run it without labels")
        fields: dict[str, Any] = {**output, field: tensor}
        return type(output)(**fields)
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
