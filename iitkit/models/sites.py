"""Sites and placements: how a user says where in a network a variable might live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo

Side = Literal["input", "output"]
Head = int | list[int] | None

OUTSIDE = ("embeddings", "final_norm", "logits")
"""Components outside the blocks: they have no layer."""


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a network: a layer's component, or any module by path, at positions of the sequence.

    Args:
        layer: index of the block, from 0.
        component: which part of the block; see :data:`iitkit.models.anatomy.COMPONENTS`.
        position: an integer (negative from the end), ``"last"``, ``"all"``, ``"f7+l7"``, a list of these, or an
            integer tensor of columns, [batch, k]. A task's prompts also know their spans by name.
        module: path of any module, e.g. ``"transformer.h.8.mlp"``, instead of layer and component.
        side: which side of that module.
        head: index of a head, or several; None takes all heads of a component that has them.
        joint: edit all positions (and heads) as one long vector, instead of each by itself.
        variable: whose block of a rotation that variables share is edited; the name it is placed under unless said.
    """

    layer: int | None = None
    component: str = "block_output"
    position: int | str | Sequence[int | str] | Tensor = -1
    module: str | None = None
    side: Side = "output"
    head: Head = None
    joint: bool = False
    variable: str | None = None

    def __str__(self) -> str:
        if self.module is not None:
            return f"{self.module} ({self.side})"
        where = self.component if self.layer is None else f"layer {self.layer} {self.component}"
        return where if self.head is None else f"{where} head {self.head}"


@dataclass(frozen=True)
class Placement:
    """Where a variable lives, and the intervention that is trained there.

    Args:
        layer: index of the block, from 0.
        component: which part of the block, e.g. block_output (the residual stream that leaves it).
        position: where in the sequence: a span of the prompt template (``name``: its last token; ``name.first``,
            ``name.last``, ``name.all``), ``last``, ``all``, an integer (negative from the end), ``f7+l7``, or a list.
        intervention: what is trained at the site; a low-rank rotation unless said.
        variable: the causal variable; the placement's own name unless said.
        module: path of any module of the network, instead of layer and component.
        side: which side of that module.
        head: index of a head, or several, of a component that has heads; each is edited unless joint. All unless said.
        joint: edit all positions (and heads) of the site as one long vector, instead of each by itself.
        shared_with: placement whose intervention this one uses: one object, the same weights.
        value: of the variable; only pairs whose source gives it that value are edited here. Interventions without a
            source (Addition, LoRA, LoReFT, …) are fitted so, one placement for each value. All pairs unless said.
    """

    layer: int | None = None
    component: str = "block_output"
    position: int | str | list[int | str] = "last"
    intervention: Callable[[SiteInfo], Intervention] = LowRankSubspace
    variable: str | None = None
    module: str | None = None
    side: Side = "output"
    head: Head = None
    joint: bool = False
    shared_with: str | None = None
    value: str | bool | int | float | None = None

    @property
    def site(self) -> Site:
        """The site, without the intervention."""
        return Site(
            self.layer, self.component, self.position, self.module, self.side, self.head, self.joint, self.variable
        )

    def build(self, site: SiteInfo) -> Intervention:
        """Build the intervention for a site of these sizes."""
        return self.intervention(site)

    def where(self) -> dict[str, Any]:
        """Return the site and the variable as plain values, as checkpoints and artifacts store them."""
        keys = ("module", "side") if self.module is not None else ("layer", "component")
        given = {key: getattr(self, key) for key in ("head", "joint", "shared_with")}
        said = {key: value for key, value in given.items() if value is not None and value is not False}
        if self.value is not None:
            said["value"] = self.value
        return {
            **{key: getattr(self, key) for key in keys},
            **said,
            "position": self.position,
            "variable": self.variable,
        }

    @staticmethod
    def from_plain(name: str, plain: Any) -> Placement:
        """Return a placement from a mapping, e.g. ``{"layer": 8, "position": "last", "intervention": {"rank": 1}}``.

        Args:
            name: the placement's name, for messages; also its variable unless said.
            plain: a :class:`Placement` or a mapping; ``intervention`` may be a factory, an intervention's options
                (``{"rank": 1}``) or its spec (``{"name": "Vanilla"}``).

        Raises:
            IITKitError: for an unknown key or neither layer nor module.
        """
        if isinstance(plain, Placement):
            values: dict[str, Any] = dict(plain.__dict__)
        else:
            values = dict(plain)
            known = list(Placement.__dataclass_fields__)
            for key in values:
                if key not in known:
                    raise IITKitError(
                        f"alignment.{name} has no key {key!r}.{did_you_mean(key, known)} It has: {choices(known)}"
                    )
        outside = values.get("component") in OUTSIDE and values.get("module") is None
        if not outside and (values.get("layer") is None) == (values.get("module") is None):
            raise IITKitError(f"alignment.{name}: give either layer (with a component) or module")
        given = values.get("intervention", LowRankSubspace)
        if values.get("shared_with") is not None and given is not LowRankSubspace:
            raise IITKitError(
                f"alignment.{name}: it takes the intervention of {values['shared_with']!r} (shared_with): "
                "leave its own out"
            )
        if not callable(given):
            spec = {"name": "LowRankSubspace", **given}

            def factory(site: SiteInfo) -> Intervention:
                return Intervention.from_spec(spec, site)

            values["intervention"] = factory
        if values.get("variable") is None:
            values["variable"] = name
        return Placement(**values)
