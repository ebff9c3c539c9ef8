"""The intervention: a space, a mask and an edit, and the site it is built for."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions.edits import Edit
from iitkit.interventions.masks import Mask
from iitkit.interventions.spaces import Space


@dataclass(frozen=True)
class SiteInfo:
    """What an intervention may know of the site it is built for.

    Args:
        width: size of the activation.
        input_width: size of the module's input, where it differs in kind (a LoRA reads it).
        heads: number of heads at the site, 1 where there are none.
        positions: number of positions that the site edits in one row.
        generator: draws starting values; None uses torch's global one.
    """

    width: int
    input_width: int | None = None
    heads: int = 1
    positions: int = 1
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)


class Intervention(nn.Module):
    """Edits an activation: ``h + strength · decode(mask ⊙ edit)``, computed in fp32 or wider.

    A subclass is one of the field's named methods: its ``__init__`` takes a :class:`SiteInfo` and its options, keeps
    every option under its own name, and hands a space, a mask and an edit to this class. Its name is its spelling in
    YAML and in artifacts.

    Args:
        space: the coordinates.
        mask: which of them.
        edit: what to do with them.
    """

    registry: ClassVar[dict[str, type[Intervention]]] = {}

    def __init__(self, space: Space, mask: Mask, edit: Edit) -> None:
        super().__init__()
        self.space, self.mask, self.edit = space, mask, edit

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Intervention.registry[cls.__name__] = cls

    @property
    def needs_source(self) -> bool:
        """Whether the edit takes something from a source run."""
        return self.edit.needs_source

    def forward(self, base: Tensor, source: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Return the edited activation.

        Args:
            base: activation of the base run, [*, d].
            source: activation of the source run, [*, d]; None for an edit that takes none.
            strength: 0 leaves the base as it is, 1 is the trained edit.

        Returns:
            [*, d] in the base's dtype.

        Raises:
            IITKitError: a swap without a source, or a source of another shape.
        """
        if self.needs_source and (source is None or source.shape != base.shape):
            given = "none" if source is None else f"shape {tuple(source.shape)}"
            raise IITKitError(
                f"{type(self).__name__} needs a source activation of shape {tuple(base.shape)}, given {given}"
            )
        dtype = torch.promote_types(base.dtype, torch.float32)
        with torch.autocast(base.device.type, enabled=False):
            wide = base.to(dtype)
            chart = self.space.chart()
            delta = self.mask(self.edit.delta(chart, wide, None if source is None else source.to(dtype)))
            return (wide + strength * chart.decode(delta)).to(base.dtype)

    def spec(self) -> dict[str, Any]:
        """Return the registered name and every option: what YAML says and an artifact stores."""
        parameters = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {"name": type(self).__name__, **{name: getattr(self, name) for name in parameters if name != "site"}}

    @property
    def title(self) -> str:
        """Name and options on one line, e.g. ``LowRankSubspace(rank=1)``."""
        options = {key: value for key, value in self.spec().items() if key != "name"}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in options.items())})"

    def released(self) -> Intervention:
        """Return a copy as an artifact holds it: results instead of free parameters, nothing that trains."""
        with torch.inference_mode(False):
            clone = copy.deepcopy(self)
            clone.space.freeze()
            return clone.requires_grad_(False).cpu()

    @staticmethod
    def from_spec(spec: dict[str, Any], site: SiteInfo, tensors: dict[str, Tensor] | None = None) -> Intervention:
        """Build an intervention from its spec; with ``tensors``, as released with these.

        Args:
            spec: what :meth:`spec` returned.
            site: the site's sizes.
            tensors: the ``state_dict`` of a released intervention.

        Raises:
            IITKitError: an unknown name or option, or tensors that do not fit (missing, unexpected, another shape).
        """
        options = dict(spec)
        name = options.pop("name", None)
        if name not in Intervention.registry:
            hint = did_you_mean(name, Intervention.registry)
            raise IITKitError(
                f"intervention {name!r} is not registered.{hint} Known: {choices(sorted(Intervention.registry))}"
            )
        kind = Intervention.registry[name]
        known = [
            parameter for parameter in list(inspect.signature(kind.__init__).parameters)[1:] if parameter != "site"
        ]
        for option in options:
            if option not in known:
                raise IITKitError(
                    f"{name} has no option {option!r}.{did_you_mean(option, known)} It has: {choices(known)}"
                )
        if tensors is not None:  # what is drawn will be replaced: leave the global generator alone
            site = replace(site, generator=torch.Generator())
        made = kind(site, **options)  # type: ignore[arg-type]
        return made if tensors is None else made._filled(tensors)

    def _filled(self, tensors: dict[str, Tensor]) -> Intervention:
        prefix = "space."
        space = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            self.space.freeze(space)
            self.load_state_dict(tensors, strict=True)
        except (KeyError, RuntimeError) as error:
            raise IITKitError(
                f"{type(self).__name__}: stored tensors {choices(tensors)} do not fit: {error}"
            ) from error
        return self.requires_grad_(False)
