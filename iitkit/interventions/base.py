"""The intervention: a space, a mask and an edit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.interventions.charts import Chart, Known
from iitkit.interventions.edits import Edit
from iitkit.interventions.masks import All, Mask
from iitkit.interventions.parts import Part
from iitkit.interventions.registered import Registered
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Identity, Space

__all__ = ["Intervention", "SiteInfo"]


class Intervention(Registered):
    """Edits an activation: ``h + strength · decode(mask ⊙ edit)``, computed in fp32 or wider.

    A subclass is one of the field's named methods: its ``__init__`` takes a :class:`SiteInfo` and its options, and
    hands a space, a mask, an edit and the options, by name, to this class. Its name is its spelling in YAML and in
    artifacts.

    Args:
        space: the coordinates; one object may serve several interventions.
        mask: which of them.
        edit: what to do with them.
        options: what the subclass was built from.

    Raises:
        IITKitError: a mask or an edit made for another number of coordinates.
    """

    kind = "intervention"

    def __init__(self, space: Space, mask: Mask, edit: Edit, /, **options: Any) -> None:
        super().__init__(**options)
        for what, part in (("mask", mask), ("edit", edit)):
            if part.size is not None and part.size != space.size:
                has = "takes any number: build it for a site" if space.size is None else f"has {space.size}"
                raise IITKitError(
                    f"{what} {type(part).__name__} for {part.size} coordinates: the space {type(space).__name__} {has}"
                )
        edit.bind(space)
        self.space, self.mask, self.edit = space, mask, edit

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """The space, the mask and the edit."""
        return self.space, self.mask, self.edit

    @property
    def needs_source(self) -> bool:
        """Whether the edit takes something from a source run."""
        return self.edit.needs_source

    @property
    def needs_input(self) -> bool:
        """Whether the edit reads the module's input."""
        return self.edit.needs_input

    @property
    def source_width(self) -> int | None:
        """Size of what is taken from a source, where that is not an activation of the site's own width."""
        return None

    @property
    def blocks(self) -> tuple[str, ...] | None:
        """Names of the blocks of which a forward pass must name one; None where there are none."""
        return self.mask.blocks

    # --- editing ---

    def forward(
        self,
        base: Tensor,
        source: Tensor | None = None,
        strength: float = 1.0,
        *,
        inputs: Tensor | None = None,
        block: str | None = None,
    ) -> Tensor:
        """Return the edited activation.

        Args:
            base: activation of the base run, [*, d].
            source: activation of the source run, [*, d]; None for an edit that takes none.
            strength: 0 leaves the base as it is, bit for bit; 1 is the trained edit.
            inputs: the module's input, [*, input width]; None for an edit that reads none.
            block: the block that is meant, where the mask has several.

        Returns:
            [*, d] in the base's dtype.

        Raises:
            IITKitError: a source, an input or a block that is missing or does not fit, or an intervention that must
                see data first.
        """
        self._check(base, source, inputs)
        return self._edited(self.space.now(), base, source, strength, inputs, block)

    def toward(
        self,
        base: Tensor,
        coordinates: Tensor,
        strength: float = 1.0,
        *,
        inputs: Tensor | None = None,
        block: str | None = None,
    ) -> Tensor:
        """Return the activation, edited as by a source that has these coordinates.

        Args:
            base: as for :meth:`forward`.
            coordinates: the source's, [*, k], e.g. the mean of :meth:`coordinates` over many sources.
            strength: as for :meth:`forward`.
            inputs: as for :meth:`forward`.
            block: as for :meth:`forward`.

        Returns:
            [*, d] in the base's dtype.

        Raises:
            IITKitError: an edit that takes no source, coordinates of another size, and what :meth:`forward` refuses.
        """
        if not self.needs_source:
            raise IITKitError(f"{type(self).__name__} takes nothing from a source: it has no coordinates to go to")
        expected = (*base.shape[:-1], self.space.size or base.shape[-1])
        if coordinates.shape != expected:
            raise IITKitError(
                f"{type(self).__name__}: coordinates of shape {tuple(coordinates.shape)} given, expected {expected}"
            )
        self._check(base, base, inputs)
        given = coordinates.to(torch.promote_types(base.dtype, torch.float32))
        return self._edited(Known(self.space.now(), given), base, given, strength, inputs, block)

    def _edited(
        self,
        chart: Chart,
        base: Tensor,
        source: Tensor | None,
        strength: float,
        inputs: Tensor | None,
        block: str | None,
    ) -> Tensor:
        dtype = torch.promote_types(base.dtype, torch.float32)
        with torch.autocast(base.device.type, enabled=False):
            wide = base.to(dtype)
            delta = self.edit.delta(
                chart,
                wide,
                None if source is None else source.to(dtype),
                None if inputs is None else inputs.to(dtype),
            )
            delta = self.mask(delta, block)
            if strength == 0:
                return base.clone()
            return (wide + strength * chart.decode(delta)).to(base.dtype)

    def coordinates(self, activation: Tensor) -> Tensor:
        """Return an activation's coordinates in the intervention's space: [*, d] → [*, k], in fp32 or wider.

        Raises:
            IITKitError: another width, or an intervention that must see data first.
        """
        self._check_width(activation)
        with torch.autocast(activation.device.type, enabled=False):
            return self.space.now().encode(activation.to(torch.promote_types(activation.dtype, torch.float32)))

    def _check_width(self, base: Tensor) -> None:
        name = type(self).__name__
        if self.space.width is not None and base.shape[-1] != self.space.width:
            raise IITKitError(f"{name} was built for width {self.space.width}, given {base.shape[-1]}")
        if self.unfitted:
            raise IITKitError(
                f"{name} must see data first: let `iitkit fit` do it, or call observe() on activations and finish()"
            )

    def _check(self, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> None:
        self._check_width(base)
        name = type(self).__name__
        if self.needs_source and (source is None or source.shape != base.shape):
            given = "none" if source is None else f"shape {tuple(source.shape)}"
            raise IITKitError(f"{name} needs a source activation of shape {tuple(base.shape)}, given {given}")
        if self.needs_input:
            expected = (*base.shape[:-1], self.edit.input_width or base.shape[-1])
            if inputs is None or tuple(inputs.shape) != expected:
                given = "none" if inputs is None else f"shape {tuple(inputs.shape)}"
                raise IITKitError(f"{name} needs the module's input of shape {expected}, given {given}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute the space's map and the mask, with its random draw, once inside this context.

        Around one training step: one QR, however many sites the object serves. Parameters must not change inside.
        """
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.held())
            yield

    # --- data ---

    @property
    def unfitted(self) -> bool:
        """Whether it must see data first: ``while x.unfitted:`` observe all, finish."""
        return any(part.unfitted for part in self.parts)

    def observe(self, activations: Tensor) -> None:
        """See activations [n, d] of the data, in one pass; nothing is kept of them but sums."""
        self.space.observe(activations)
        self.edit.observe(activations, self.space)

    def finish(self) -> None:
        """End a pass over the data. Where it is still ``unfitted`` then, another pass is needed.

        Raises:
            IITKitError: too few activations were seen.
        """
        waiting = self.space.unfitted
        self.space.finish()
        if not waiting or self.space.affine:
            self.edit.finish()

    # --- the mask ---

    def penalty(self) -> Tensor:
        """Return what a loss may be charged for the mask's size, 0-dim and differentiable; 0 where it has none.

        β of a boundary, Σ m of sigmoid gates (L1), Σ P(m > 0) of hard-concrete gates (L0).
        """
        return self.mask.penalty()

    def effective_size(self) -> float | None:
        """Return the number of coordinates that the hardened mask leaves; None where the size is no question."""
        if isinstance(self.mask, All):
            return None if isinstance(self.space, Identity) or self.space.size is None else float(self.space.size)
        return self.mask.effective_size()

    @property
    def temperature(self) -> float | None:
        """How soft the mask is in training; None where it has no temperature. A schedule sets it, nothing trains it.

        Raises:
            IITKitError: on setting one of 0 or less, or where the mask has none.
        """
        return self.mask.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.mask.temperature = value

    # --- plain values and results ---

    def spec(self) -> dict[str, Any]:
        """Return the registered name and the options: what YAML says and an artifact stores.

        Options that were left at None or False are left out. One put together of parts is a ``Composed``.
        """
        if type(self) is Intervention:
            return {"name": "Composed", **{kind: getattr(self, kind).spec() for kind in ("space", "mask", "edit")}}
        return super().spec()

    def released(self) -> Intervention:
        """Return a copy as an artifact holds it: results instead of free parameters, hard masks, in eval mode.

        Raises:
            IITKitError: one that has not seen its data.
        """
        if self.unfitted:
            raise IITKitError(f"{type(self).__name__} must see data before there is a result to release")
        with torch.inference_mode(False), torch.no_grad():
            clone = copy.deepcopy(self)
            for part in clone.parts:
                part.freeze()
            return clone.requires_grad_(False).eval().cpu()

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
        if tensors is None:
            made: Intervention = Intervention.named(spec, site)
            return made
        # what is drawn will be replaced: leave the global generator alone
        site = replace(site, generator=torch.Generator(), stored=tensors)
        name = spec.get("name")
        try:
            made = Intervention.named(spec, site)
            for prefix, part in zip(("space", "mask", "edit"), made.parts, strict=True):
                own = {key: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
                part.freeze({key.removeprefix(f"{prefix}."): value for key, value in own.items()})
            made.load_state_dict(tensors, strict=True)
        except (KeyError, RuntimeError) as error:
            raise IITKitError(f"{name}: stored tensors {choices(tensors)} do not fit: {error}") from error
        if made.unfitted:
            raise IITKitError(f"{name}: stored tensors {choices(tensors)} do not fit: they hold NaN")
        return made.requires_grad_(False).eval()
