"""A network's structure without its weights, for looking at its anatomy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iitkit.errors import IITKitError, did_you_mean
from iitkit.models import loading
from iitkit.models.load_errors import explain, first_line


def skeleton(base: str) -> PreTrainedModel:
    """Build a causal language model on the meta device, from its config alone.

    Args:
        base: a ``model_type`` of transformers, e.g. ``llama`` (its default configuration; nothing is downloaded), or
            what :func:`iitkit.load_base` takes.

    Returns:
        The network, without weights.

    Raises:
        IITKitError: where there is no such base, or it is no causal language model.
    """
    config: Any
    if base in CONFIG_MAPPING:
        config = CONFIG_MAPPING[base]()
    else:
        where = loading._locate(base)
        try:
            source, options = loading._resolve(where, weights=False)
            config = AutoConfig.from_pretrained(source, **options)
        except IITKitError as error:
            hint = did_you_mean(base, CONFIG_MAPPING)
            raise IITKitError(f"{error}{hint}") from error
        except Exception as error:
            raise explain(error, where.id, "a configuration") from error
    try:
        made: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model: PreTrainedModel = made.from_config(config)
    except Exception as error:
        raise IITKitError(f"{base!r} is no causal language model that can be built: {first_line(error)}") from error
    return model
