"""The anatomy of a network: from a component's name to a module and its side.

Found by structure: the list of blocks is the network's largest list of alike modules, and a block's attention and MLP
are its children of the usual names (:mod:`iitkit.models.families`, where a family that differs gets a row).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.blocklist import blocks, shared_by, sharing
from iitkit.models.families import FINAL_NORM, child, config_of, family_of, hidden_size, is_linear, is_norm, only, sizes
from iitkit.models.location import Eager, Location
from iitkit.models.parts import PROBABILITIES, MissingPart, Parts, Spot
from iitkit.models.plain import Layers, plain_layers, weight
from iitkit.models.sites import OUTSIDE, Head, Side, Site
from iitkit.models.views import Entries, Probabilities, View

__all__ = ["COMPONENTS", "Location", "blocks", "components", "layers", "locate", "why_not"]

COMPONENTS: dict[str, str] = {
    "embeddings": "the token embeddings, before positions are added to them",
    "block_input": "the residual stream entering the block",
    "block_output": "the residual stream leaving the block",
    "attention_input": "input of the attention module: after the block's norm where that comes first (not in OLMo2)",
    "attention_output": "output of the attention module: before a norm that comes after it (Gemma2, Gemma3, OLMo2)",
    "attention_value_output": "input of the attention's output projection: all heads' results, side by side",
    "attention_weight": "attention probabilities, [batch, queries, heads, keys]; positions are the queries",
    "query_output": "output of the query projection, before any norm of queries and the rotary embedding",
    "key_output": "output of the key projection, before any norm of keys and the rotary embedding",
    "value_output": "output of the value projection",
    "head_query_output": "query_output parted into heads",
    "head_key_output": "key_output parted into key-value heads, as many as there are",
    "head_value_output": "value_output parted into key-value heads, as many as there are",
    "head_attention_value_output": "attention_value_output parted into heads",
    "mlp_input": "input of the MLP: after the block's norm where that comes first (not in OLMo2)",
    "mlp_activation": "output of the activation function; in a gated MLP before the product with the other branch",
    "mlp_hidden": "input of the down projection: the neurons",
    "mlp_output": "output of the MLP: before a norm that comes after it (Gemma2, Gemma3, OLMo2)",
    "router_input": "input of the router of a mixture of experts",
    "router_output": "the router's logits; the choice of experts and their weights follow from them",
    "final_norm": "output of the norm behind the last block",
    "logits": "what the network returns",
}
"""Component → what it is. Each is [batch, sequence, width], the ``head_`` ones [batch, sequence, heads, width].

While a site at ``attention_weight`` is visited, the network computes its attention eagerly, which differs from the
other implementations by rounding.
"""


def locate(model: nn.Module, site: Site, name: str = "site") -> Location:
    """Find a site in a network.

    Args:
        model: the network.
        site: what to find.
        name: what to call the site in errors.

    Raises:
        IITKitError: an unknown component or side, a layer, a head, a component or a module that is not there; each
            names what there is. Also both a layer and a module, or neither, or a head where there are none.
    """
    if site.module is not None:
        return _by_path(model, site, name)
    if site.side != "output":
        raise IITKitError(
            f"{name}: side {site.side!r} belongs to a module; name the component of layer {site.layer} instead, "
            "e.g. mlp_input"
        )
    if site.component not in COMPONENTS:
        raise IITKitError(
            f"{name}: component {site.component!r} is unknown.{did_you_mean(site.component, COMPONENTS)} "
            f"Expected one of {choices(COMPONENTS, len(COMPONENTS))}"
        )
    if site.component in OUTSIDE:
        if site.layer is not None:
            raise IITKitError(f"{name}: {site.component} belongs to no layer: leave layer {site.layer} out")
    elif site.layer is None:
        raise IITKitError(f"{name}: give a layer (with a component) or a module")
    layer = site.layer
    try:
        return _component(model, layer, site.component, site.head, str(site), name)
    except MissingPart as missing:
        has = components(model, layer)
        where = type(model).__name__ if layer is None else f"layer {layer} of {type(model).__name__}"
        raise IITKitError(
            f"{name}: {where} has no {site.component}: {missing}. It has {choices(has, len(COMPONENTS))}"
        ) from missing


def components(model: nn.Module, layer: int | None) -> dict[str, Location]:
    """Return the components that a layer has, or, for None, those outside the layers."""
    found = {}
    for component in COMPONENTS:
        if (component in OUTSIDE) == (layer is None):
            with suppress(MissingPart):
                found[component] = _component(model, layer, component, None, component, component)
    return found


def why_not(model: nn.Module, layer: int | None, component: str) -> str | None:
    """Return why a layer (None: the network outside its layers) lacks a component; None where it has it."""
    try:
        _component(model, layer, component, None, component, component)
    except MissingPart as missing:
        return str(missing)
    return None


def layers(model: nn.Module) -> list[nn.Module] | Layers:
    """Return the network's layers: its blocks, or those of a plain network, whichever hold more of it.

    Raises:
        IITKitError: where it has neither.
    """
    plain = plain_layers(model)
    try:
        found = blocks(model)
    except IITKitError:
        if plain is None:
            raise
        return plain
    return plain if plain is not None and weight(plain.module) > weight(found) else list(found)


def _component(model: nn.Module, layer: int | None, component: str, head: Head, label: str, name: str) -> Location:
    if (why := family_of(model).lacks.get(component)) is not None:
        raise MissingPart(why)
    if layer is None:
        if head is not None:
            raise IITKitError(_no_heads(name, component, head))
        return _outside(model, component)
    there = layers(model)
    if not 0 <= layer < len(there):
        raise IITKitError(
            f"{name}: layer {layer} is out of range: {type(model).__name__} has layers 0 to {len(there) - 1}"
        )
    if not isinstance(there, list):
        return _placed(model, there.spot(layer, component), None, None, component, head, label, name)
    block = there[layer]
    spot = Parts(model, block).spot(component)
    if len(together := sharing(there, block, spot.module)) > 1:
        raise MissingPart(shared_by(spot.module, together))
    return _placed(model, spot, layer, block, component, head, label, name)


def _placed(
    model: nn.Module,
    spot: Spot,
    layer: int | None,
    block: nn.Module | None,
    component: str,
    head: Head,
    label: str,
    name: str,
) -> Location:
    """Return the location of a component, of the heads that a site names."""
    if head is not None and spot.heads is None:
        raise IITKitError(_no_heads(name, component, head))
    chosen = _chosen(head, spot.heads, label, name) if spot.heads is not None else None
    view: View | None = None if spot.index is None else Entries(spot.index)
    width, count, eager = spot.width, 1, None
    if chosen is not None:
        count = 1 if isinstance(chosen, int) else len(chosen)
        assert spot.heads is not None
        if spot.inside is PROBABILITIES:
            view, eager = Probabilities(spot.heads, chosen), Eager(_attention_config(spot.module, model), model)
        else:
            assert spot.width is not None
            width = spot.width // spot.heads
            view = _heads_view(spot, chosen, width)
    return Location(
        spot.module,
        spot.side,
        layer,
        component == "block_output" and layer is not None,
        width,
        label,
        heads=count,
        input_width=spot.entering,
        view=view,
        replays=layer is not None and spot.inside is not PROBABILITIES,
        holder=block,
        flat=spot.flat,
        inside=spot.inside,
        eager=eager,
    )


def _heads_view(spot: Spot, chosen: int | list[int], width: int) -> View:
    assert spot.width is not None
    index = range(spot.width) if spot.index is None else spot.index
    if isinstance(chosen, int):
        return Entries(index[chosen * width : (chosen + 1) * width])
    return Entries([i for head in chosen for i in index[head * width : (head + 1) * width]], len(chosen))


def _chosen(head: Head, heads: int, label: str, name: str) -> int | list[int]:
    wanted = list(range(heads)) if head is None else head if isinstance(head, list) else [head]
    integers = all(isinstance(h, int) and not isinstance(h, bool) for h in wanted)
    if not wanted or not integers or len(set(wanted)) < len(wanted):
        raise IITKitError(f"{name}: head {head!r}: expected the index of a head, or a list of different ones")
    for h in wanted:
        if not 0 <= h < heads:
            where = label.split(" head ")[0]
            raise IITKitError(f"{name}: head {h} is out of range: {where} has heads 0 to {heads - 1}")
    return head if isinstance(head, int) else wanted


def _no_heads(name: str, component: str, head: Head) -> str:
    having = [other for other in COMPONENTS if other.startswith("head_") or other == "attention_weight"]
    own = f"head_{component}"
    instead = f"name {own}" if own in COMPONENTS else f"these have: {choices(having)}"
    return f"{name}: head {head}: {component} has no heads, {instead}"


def _attention_config(module: nn.Module, model: nn.Module) -> Any:
    """Return the config that says how a network computes attention: the one its attention holds."""
    held = (getattr(part, "config", None) for part in module.modules())
    return next((found for found in held if hasattr(found, "_attn_implementation")), config_of(model))


# --- outside the layers ---


def _outside(model: nn.Module, component: str) -> Location:
    if component == "embeddings":
        embedding = _embedding(model)
        return Location(embedding, "output", None, False, sizes(embedding)[1], component, replays=False)
    if component == "final_norm":
        norm = _final_norm(model)
        return Location(
            norm, "output", None, False, hidden_size(model), component, input_width=hidden_size(model), replays=False
        )
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None and config_of(model) is not None:
        raise MissingPart(f"{type(model).__name__} has no LM head: load a causal language model")
    width = sizes(head)[1] if head is not None else None
    return Location(model, "output", None, False, width, component, replays=False, field="logits")


def _embedding(model: nn.Module) -> nn.Module:
    try:
        own: Any = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        own = None
    found = own if own is not None else only([m for m in model.modules() if isinstance(m, nn.Embedding)])
    if found is None:
        raise MissingPart("there is not one embedding of tokens, but none or several: name it by module path")
    return found


def _final_norm(model: nn.Module) -> nn.Module:
    try:
        stack = blocks(model)
    except IITKitError as error:
        raise MissingPart("there are no blocks that a norm could follow") from error
    parent = next(m for m in model.modules() if any(part is stack for part in m.children()))
    norms = [m for name, m in parent.named_children() if is_norm(m) and "emb" not in name]  # one of embeddings
    found = next((m for m in norms if m is child(parent, FINAL_NORM)), None) or only(norms)
    if found is None:
        names = [name for name, _ in parent.named_children()]
        raise MissingPart(f"no norm among the children of {type(parent).__name__} ({choices(names)})")
    return found


# --- by path ---


def _by_path(model: nn.Module, site: Site, name: str) -> Location:
    assert site.module is not None
    if site.layer is not None:
        raise IITKitError(
            f"{name}: give either layer {site.layer} (with a component) or module {site.module!r}, not both"
        )
    if site.head is not None:
        raise IITKitError(f"{name}: head {site.head}: a module has no heads, name a component, e.g. head_value_output")
    if site.side not in ("input", "output"):
        raise IITKitError(f"{name}: side {site.side!r} is unknown: expected 'input' or 'output'")
    try:
        module = model.get_submodule(site.module)
    except AttributeError as error:
        paths = [path for path, _ in model.named_modules() if path]
        raise IITKitError(
            f"{name}: {type(model).__name__} has no module {site.module!r}.{did_you_mean(site.module, paths)}"
        ) from error
    there = _blocks(model)
    index = next((i for i, block in enumerate(there) if any(module is m for m in block.modules())), None)
    if index is not None and len(together := sharing(there, there[index], module)) > 1:
        raise IITKitError(f"{name}: {site.module}: {shared_by(module, together)}")
    entering, leaving = sizes(module)
    width = _module_width(model, module, site.side, (entering, leaving))
    holder = _holder(model, site.module)
    return Location(
        module,
        site.side,
        index,
        False,
        width,
        str(site),
        input_width=entering if site.side == "output" and is_linear(module) else None,
        replays=index is not None,
        holder=holder,
        flat=holder is not None and holder is not module,
    )


def _blocks(model: nn.Module) -> list[nn.Module]:
    try:
        return list(blocks(model))
    except IITKitError:
        return []


def _module_width(model: nn.Module, module: nn.Module, side: Side, known: tuple[int | None, int | None]) -> int | None:
    width = known[0] if side == "input" else known[1]
    return width if width is not None else hidden_size(model)


def _holder(model: nn.Module, path: str) -> nn.Module | None:
    """Return the outermost element of a list of modules on a path: the block, wherever the list is."""
    module: nn.Module = model
    for name in path.split(".") if path else []:
        inside_list = isinstance(module, nn.ModuleList)
        module = module.get_submodule(name)
        if inside_list:
            return module
    return None
