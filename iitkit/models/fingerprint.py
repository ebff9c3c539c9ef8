"""What tells networks and tokenizers apart, whatever way they were loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CHUNKS, CHUNK = 8, 256
"""Of each parameter so many evenly spaced runs of so many numbers are looked at, of a small one all of it."""
PROBE = "The 2 cats' naïve café, 10:45pm — x_1 != y; «Привет», 你好!\n\tdef f(): return 3.14 🙂"


@torch.no_grad()
def weights_digest(model: nn.Module) -> str | None:
    """Return what stands for a network's weights: the same whether they were loaded in fp64, fp32 or bf16.

    Names, shapes and numbers rounded to bf16 of every parameter are hashed, of a large one some of its numbers. A
    network that was trained on is another one; so is one in 8 bits or in fp16, which rounds otherwise. Tied parameters
    stand once, under the first of their names; what a parametrisation makes stands for what it is made of.

    Returns:
        ``sha256:`` and 32 hex digits; None where weights are not in memory (offloaded, or on the meta device).
    """
    digest = hashlib.sha256()
    pieces: dict[torch.device, list[Tensor]] = {}
    for name, parameter in sorted(_weights(model)):
        if parameter.is_meta:
            return None
        digest.update(f"{name.removeprefix('_orig_mod.')}{tuple(parameter.shape)}".encode())
        piece = _sampled(parameter.detach())
        pieces.setdefault(piece.device, []).append(piece)
    for device in sorted(pieces, key=str):  # one copy from each
        digest.update(torch.cat(pieces[device]).cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if ".parametrizations." not in f".{name}":
            yield name, parameter
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:
                yield f"{name}.{tensor}".lstrip("."), getattr(module, str(tensor))


def _sampled(parameter: Tensor) -> Tensor:
    """Return some of a parameter's numbers, rounded to bf16, as bytes."""
    flat = parameter.reshape(-1)
    if flat.numel() > CHUNKS * CHUNK:
        step = (flat.numel() - CHUNK) // (CHUNKS - 1)
        flat = flat.as_strided((CHUNKS, CHUNK), (step * flat.stride(0), flat.stride(0))).reshape(-1)
    if flat.is_floating_point() and flat.itemsize > 1:
        flat = flat.to(torch.bfloat16)
    return flat.contiguous().view(torch.uint8)


def tokenizer_digests(tokenizer: Any) -> dict[str, str | None]:
    """Return what stands for a tokenizer: ``vocabulary`` (of what it makes of a text too) and ``chat_template``.

    Its padding and its special tokens' roles do not count: users set them as they need.

    Returns:
        ``sha256:`` and 16 hex digits each; None for a tokenizer without a chat template.
    """
    known = "\n".join(map(str, tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    template = getattr(tokenizer, "chat_template", None)
    return {
        "vocabulary": digest_of([known, tokenizer(PROBE)["input_ids"]]),
        "chat_template": None if template is None else digest_of(template),
    }


def digest_of(plain: Any) -> str:
    """Return what stands for plain values, whatever the order of their keys: ``sha256:`` and 16 hex digits."""
    return f"sha256:{hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]}"
