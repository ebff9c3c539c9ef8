"""Names: what may be built from plain values, and how it says what it was built from."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices, did_you_mean

BUILT_FROM = ("site", "size")
"""Arguments that the site gives, not the user."""
OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def options_of(kind: type) -> dict[str, inspect.Parameter]:
    """Return the options of a class: the arguments of its ``__init__`` that a user gives.

    Where it ends in ``**kwargs``, those of the parent that these are handed on to are among them.
    """
    found: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        if "__init__" not in cls.__dict__:
            continue
        if "kind" in cls.__dict__:  # the class that begins a family of names: its arguments are no user's
            break
        _, *parameters = inspect.signature(cls.__dict__["__init__"]).parameters.values()
        for parameter in parameters:
            if parameter.kind not in OPEN and parameter.name not in BUILT_FROM:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


class Registered(nn.Module):
    """A module whose class is known by its name and that says what it was built from.

    A subclass hands its options to ``__init__`` of this class by name, or keeps each as an attribute of that name. It
    follows its network to other devices and to fp64, and is never narrower than fp32: in 16 bits a rotation is none,
    and small steps of training are lost.
    """

    kind: ClassVar[str] = "part"
    registry: ClassVar[dict[str, type[Any]]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:  # the class that begins a family of names
            cls.registry = {}
        elif not cls.__name__.startswith("_"):
            other = cls.registry.get(cls.__name__)
            # a notebook's cell may run twice
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise IITKitError(
                    f"{cls.kind} {cls.__name__!r} is already registered by {other.__module__}: choose another name"
                )
            cls.registry[cls.__name__] = cls

    def spec(self) -> dict[str, Any]:
        """Return the registered name and the options: what YAML says and an artifact stores.

        Options that were left at None or False are left out.

        Raises:
            IITKitError: a class that does not keep what it was built from.
        """
        said: dict[str, Any] = {"name": type(self).__name__}
        for name, parameter in options_of(type(self)).items():
            if name not in self.options and not hasattr(self, name):
                raise IITKitError(
                    f"{said['name']} does not keep its option {name!r}: hand it on, super().__init__(…, {name}={name}),"
                    f" or keep it as self.{name}"
                )
            value = self.options[name] if name in self.options else getattr(self, name)
            if value is not parameter.default or not (value is None or value is False):
                said[name] = copy.deepcopy(value)
        return said

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def wide(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            narrow = made.is_floating_point() and torch.promote_types(made.dtype, torch.float32) != made.dtype
            return tensor.to(made.device) if narrow else made

        found: Self = super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return found

    @property
    def title(self) -> str:
        """Name and options on one line, e.g. ``LowRankSubspace(rank=1)``."""
        spec = self.spec()
        name = spec.pop("name")
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in spec.items())})"

    @classmethod
    def named(cls, spec: dict[str, Any], *built_from: Any) -> Any:
        """Build what a spec names.

        Args:
            spec: name and options.
            built_from: what the site gives: the first arguments of ``__init__``.

        Raises:
            IITKitError: an unknown name or option, or one that is missing.
        """
        if not isinstance(spec, dict):
            raise IITKitError(
                f"{cls.kind} {spec!r}: expected a name and options, e.g. {{name: {next(iter(cls.registry))}}}"
            )
        given = dict(spec)
        name = given.pop("name", None)
        if name not in cls.registry:
            hint = did_you_mean(name, cls.registry)
            raise IITKitError(
                f"{cls.kind} {name!r} is not registered.{hint} Known: {choices(sorted(cls.registry), 40)}"
            )
        made = cls.registry[name]
        known = options_of(made)
        for option in given:
            if option not in known:
                has = f"It has: {choices(known)}" if known else "It has none"
                raise IITKitError(f"{name} has no option {option!r}.{did_you_mean(option, known)} {has}")
        for option, parameter in known.items():
            if parameter.default is parameter.empty and option not in given:
                raise IITKitError(f"{name} needs the option {option!r}: {parameter.annotation}")
        try:
            return made(*built_from, **given)
        except TypeError as error:
            if "multiple values for keyword argument" not in str(error):
                raise
            raise IITKitError(f"{error}: {name} gives its parent what it also takes: name it in __init__") from error
