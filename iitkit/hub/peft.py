"""PEFT's LoRA adapters: ``adapter_config.json`` with ``adapter_model.safetensors`` (or ``.bin``).

Hu et al., 2021, https://arxiv.org/abs/2106.09685; scale α/√r: Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.hub.foreign import read_json, read_tensors, taken
from iitkit.interventions import Intervention
from iitkit.models.anatomy import locate
from iitkit.models.placing import site_info
from iitkit.models.sites import Site

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "lora_bias": (None, False),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}
"""Setting → the values at which an adapter is nothing but LoRA at linear modules."""
INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""How A and B may have begun. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base's own weights as well."""
READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
"""Settings that are read here."""
SILENT = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("lora_dropout", "fan_in_fan_out", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
)
"""Settings of which the tensors say all that counts, or that are of training and making alone."""
LARGEST = 1e6
"""Largest α."""
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")


def from_peft(folder: Path, model: nn.Module, *, trust: bool = False) -> dict[str, tuple[Site, Intervention]]:
    """Return a LoRA adapter's updates at the outputs of their modules, at all positions.

    Raises:
        IITKitError: another kind of adapter, a setting that is more than LoRA, modules that the model does not have or
            that are not linear, or tensors that do not fit.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise IITKitError(f"{folder}: peft_type {config.get('peft_type')!r}: only LORA has a counterpart")
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise IITKitError(f"{folder}: {key} {config[key]!r} has no counterpart: expected {plain[-1]!r}")
    _check_settings(config, folder)
    tensors = read_tensors(folder / WEIGHTS, trust)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        match = _NAME.fullmatch(name)
        if match is None:
            raise IITKitError(f"{folder}: tensor {name!r} is no LoRA of a linear module")
        pair = pairs.setdefault(match[1], {})
        if match[2] in pair:
            raise IITKitError(f"{folder}: {match[1]} has lora_{match[2]} twice, also as {name!r}")
        pair[match[2]] = tensors.pop(name)
    if not pairs:
        raise IITKitError(f"{folder}: the adapter holds no tensor")
    found: dict[str, tuple[Site, Intervention]] = {}
    for path, pair in pairs.items():
        site = Site(module=path, side="output", position="all")
        location = locate(model, site, str(folder))
        if location.input_width is None or location.width is None:
            raise IITKitError(
                f"{folder}: {path} is no linear module whose sizes are known: LoRA has none to read there"
            )
        if set(pair) != {"A", "B"} or pair["A"].dim() != 2 or not len(pair["A"]):
            raise IITKitError(f"{folder}: {path} has {choices(f'lora_{x}' for x in sorted(pair))}: expected A and B")
        rank = len(pair["A"])
        a = taken(pair, "A", (rank, location.input_width), f"{folder}: {path}.lora")
        b = taken(pair, "B", (location.width, rank), f"{folder}: {path}.lora")
        alpha = _alpha(config, path, rank, folder)
        made = Intervention.from_spec(
            {"name": "LoRA", "rank": rank, "alpha": alpha},
            site_info(location),
            {"edit.A": a.T.contiguous(), "edit.B": b.T.contiguous()},
        )
        found[path.replace(".", "_")] = (site, made)
    return found


def _check_settings(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what may change the map and is not read: other beginnings, and settings that are not known."""
    init = config.get("init_lora_weights")
    if init not in INITS or type(init) is int:
        raise IITKitError(
            f"{folder}: init_lora_weights {str(init)[:40]!r} may have changed the base's own weights too: let PEFT "
            "save it as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if not isinstance(config.get("use_rslora"), bool | None):
        raise IITKitError(f"{folder}: use_rslora {config['use_rslora']!r}: expected true or false")
    for key, value in config.items():
        nothing = value is None or type(value) in (int, float) or value in (False, "", [], {})
        if key not in (*PLAIN, *READ, *SILENT) and not nothing:
            raise IITKitError(f"{folder}: {str(key)[:40]} {str(value)[:40]!r} is no setting of LoRA that is known here")


def _alpha(config: Mapping[str, Any], path: str, rank: int, folder: Path) -> float:
    """Return the α of ours, whose scale is α/r, for a module of a rank."""
    said = _patterned(config, "rank_pattern", path, config.get("r"), folder)
    if type(said) is not int or said != rank:
        raise IITKitError(f"{folder}: {path} has rank {rank}, the config says {said!r}")
    alpha = _patterned(config, "alpha_pattern", path, config.get("lora_alpha"), folder)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -LARGEST <= alpha <= LARGEST:
        raise IITKitError(f"{folder}: lora_alpha {alpha!r}: expected a number")
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _patterned(config: Mapping[str, Any], key: str, path: str, otherwise: Any, folder: Path) -> Any:
    """Return what is said of a module by a pattern that its path ends in.

    PEFT takes patterns for regular expressions. Here they are names: an expression of a stranger's may run for ever.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"\^?[\w.]+", str(pattern)) for pattern in patterns):
        raise IITKitError(f"{folder}: {key} {str(patterns)[:80]}: expected names of modules with numbers")
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if path == name or (name == pattern and path.endswith(f".{name}")):
            return value
    return otherwise
