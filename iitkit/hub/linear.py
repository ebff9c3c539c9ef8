"""From a site to the linear module whose own output or input it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.hub.affine import Affine
from iitkit.models.anatomy import Location, locate
from iitkit.models.families import is_linear, sizes
from iitkit.models.sites import Side, Site

ENDS = {"attention_output": "attention_value_output", "mlp_output": "mlp_hidden"}
"""Component → the component that is the input of the linear module whose output it is."""


@dataclass(frozen=True)
class Linear:
    """A linear module and what a site takes of its output or input.

    Args:
        module: the module.
        side: whether the site is its output or its input.
        entries: which entries of that side are the site's, in its order; None for all.
        heads: number of vectors that they are parted into.
        width: of one of these.
        input_width: of the module.
        own: whether the site is named as this module's, not as that of a larger one which ends in it.
    """

    module: nn.Module
    side: Side
    entries: list[int] | None
    heads: int
    width: int
    input_width: int
    own: bool

    def weight(self) -> Tensor:
        """Return the weight, [out, in]."""
        untyped: Any = self.module
        found: Tensor = untyped.weight.data
        return found if isinstance(self.module, nn.Linear) else found.T

    def bias(self) -> Tensor | None:
        """Return the bias, [out], fp64; None where there is none."""
        untyped: Any = self.module
        return None if untyped.bias is None else untyped.bias.data.double()

    def whole(self, edit: Affine, strength: float) -> Affine:
        """Return a site's edit, at a strength, as one of the whole side of the module, on its device."""
        device = self.weight().device
        size = self.weight().shape[0 if self.side == "output" else 1]
        at = torch.arange(size) if self.entries is None else torch.tensor(self.entries)
        shift = torch.zeros(size, dtype=torch.float64)
        shift[at] = strength * edit.shift.repeat(self.heads)
        linear = None
        if edit.linear is not None:
            one = torch.eye(self.width, dtype=torch.float64)
            block = torch.kron(torch.eye(self.heads, dtype=torch.float64), one + strength * (edit.linear - one))
            linear = torch.eye(size, dtype=torch.float64)
            linear[at[:, None], at] = block
        entering = None
        if edit.entering is not None:
            entering = torch.zeros(self.input_width, size, dtype=torch.float64)
            entering[:, at] = strength * edit.entering.repeat(1, self.heads)
        parts = (shift, linear, entering)
        return Affine(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def linear_at(model: nn.Module, site: Site, name: str) -> Linear:
    """Return the linear module whose own output or input a site is.

    Raises:
        IITKitError: none is, or one whose weights are quantised or used by another module too.
    """
    location = locate(model, site, name)
    side, found = location.side, location
    if site.module is None and site.component in ENDS and location.side == "output":
        found = _ending(model, site, name)
        side = "output"
    module = found.module
    if location.inside is not None or not is_linear(module):
        raise IITKitError(f"{name}: {site} is {_place(site)}, not a linear module's own output: it has no weights to "
                          f"merge into.{_instead(site)}")  # fmt: skip
    _check_weights(model, module, name, site)
    entering, leaving = sizes(module)
    view: Any = location.view
    entries = None if view is None else list(view.index)
    width, whole = location.width, leaving if side == "output" else entering
    if entering is None or whole is None or width is None or (entries is None and width * location.heads != whole):
        raise IITKitError(f"{name}: the sizes of {location.label} and of its linear module do not agree")
    return Linear(module, side, entries, location.heads, width, entering, module is location.module)


def _ending(model: nn.Module, site: Site, name: str) -> Location:
    """Return the location of the linear module in which attention or MLP end."""
    try:
        return locate(model, replace(site, component=ENDS[site.component], head=None), name)
    except IITKitError as error:
        raise IITKitError(f"{name}: {site} ends in no linear module: {error}") from error


def _place(site: Site) -> str:
    if site.component in ("block_input", "block_output", "embeddings") and site.module is None:
        return "the residual stream"
    if site.component in ("attention_input", "mlp_input", "final_norm", "logits") and site.module is None:
        return "what a norm or the whole network returns, or what several modules read"
    return "no linear module's output" if site.module is None else "the output of another module"


def _instead(site: Site) -> str:
    if site.component == "block_output" and site.module is None:
        return f" A vector that is added can be placed at mlp_output of layer {site.layer} instead, which adds the same"
    return ""


def _check_weights(model: nn.Module, module: nn.Module, name: str, site: Site) -> None:
    if nn.utils.parametrize.is_parametrized(module, "weight"):
        raise IITKitError(
            f"{name}: the weights at {site} are computed by a parametrization: remove it "
            "(torch.nn.utils.parametrize.remove_parametrizations) and merge then"
        )
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.is_floating_point()
    if not isinstance(weight, nn.Parameter) or not plain or weight.element_size() < 2:  # float8 has scales beside it
        raise IITKitError(f"{name}: the weights at {site} are quantised: merge into the model in full precision")
    if not isinstance(module, nn.Linear) and not hasattr(module, "nf"):  # transformers' Conv1D has [in, out]
        raise IITKitError(f"{name}: {type(module).__name__} at {site} is a linear module of a kind that is not known")
    if weight.is_meta:
        raise IITKitError(f"{name}: the model has no weights")
    own = {id(part) for part in module.modules()}
    users = [
        path
        for path, part in model.named_modules(remove_duplicate=False)
        if id(part) not in own and any(held is weight for held in part.parameters(recurse=False))
    ]
    places = [path for path, part in model.named_modules(remove_duplicate=False) if part is module]
    if users or len(places) > 1:
        other = users[0] if users else places[1]
        raise IITKitError(f"{name}: the weights at {site} are also those of {other}: an edit would change both")
