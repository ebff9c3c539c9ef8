"""What tells networks and tokenizers apart: every parameter, in any precision; nothing that does not matter."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iitkit.models.fingerprint import CHUNK, CHUNKS, tokenizer_digests, weights_digest


def test_by_hand() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.5]]))
        model.bias.fill_(3.140625)
    # bf16 is the upper half of fp32, little-endian: 1 = 3f80, -2.5 = c020, 3.140625 = 4049
    plain = b"bias(1,)weight(1, 2)" + bytes.fromhex("4940" + "803f" + "20c0")
    assert weights_digest(model) == f"sha256:{hashlib.sha256(plain).hexdigest()[:32]}"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_precision_does_not_count(family: str) -> None:
    found = {
        weights_digest(copy.deepcopy(tiny_model(family)).to(dtype))  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    assert len(found) == 1
    assert weights_digest(tiny_model(family, seed=1)) not in found
    assert weights_digest(tiny_model(family, layers=3)) not in found


def test_every_parameter_counts() -> None:
    model = tiny_model("gpt2")
    plain = weights_digest(model)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        before = float(flat[0])
        flat[0] = before + 1.0
        assert weights_digest(model) != plain, name
        flat[0] = before
    assert weights_digest(model) == plain


def test_a_large_parameter_is_looked_at_in_places() -> None:
    model = nn.Linear(1000, 1000, bias=False)
    plain, flat = weights_digest(model), model.weight.data.view(-1)
    step = (flat.numel() - CHUNK) // (CHUNKS - 1)
    for at in (0, CHUNK - 1, 3 * step, 3 * step + CHUNK - 1, (CHUNKS - 1) * step + CHUNK - 1):
        before = float(flat[at])
        flat[at] = before + 1.0
        assert weights_digest(model) != plain, at
        flat[at] = before
    flat.mul_(1.02)  # as training does: all over
    assert weights_digest(model) != plain


def test_what_is_not_in_memory_has_none() -> None:
    with torch.device("meta"):
        assert weights_digest(nn.Linear(2, 2)) is None


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_parametrised_weight_counts_as_what_it_is() -> None:
    model, merged = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)) for _ in range(2))
    merged.load_state_dict(model.state_dict())
    plain = weights_digest(model)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    assert weights_digest(model) != plain
    merged[0].weight.data.mul_(2)  # type: ignore[operator, union-attr]
    assert weights_digest(model) == weights_digest(merged)
    parametrize.remove_parametrizations(model[0], "weight")
    assert weights_digest(model) == weights_digest(merged)


def test_compiled_networks_are_the_same() -> None:
    model = nn.Linear(2, 2)
    wrapped = nn.Module()
    wrapped._orig_mod = model
    assert weights_digest(wrapped) == weights_digest(model)


def changed(**options: Any) -> Any:
    tokenizer = tiny_tokenizer()
    for key, value in options.items():
        setattr(tokenizer, key, value)
    return tokenizer


def test_tokenizers() -> None:
    plain = tokenizer_digests(tiny_tokenizer())
    assert plain["chat_template"] is None
    assert tokenizer_digests(changed(padding_side="left", pad_token="!")) == plain
    chat = tokenizer_digests(changed(chat_template="{{ messages }}"))
    assert (chat["vocabulary"], chat["chat_template"] is None) == (plain["vocabulary"], False)
    assert tokenizer_digests(changed(chat_template="{{ messages }}!"))["chat_template"] != chat["chat_template"]
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    assert tokenizer_digests(other)["vocabulary"] != plain["vocabulary"]
    # the same words, another way to part them
    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert other.get_vocab() == tiny_tokenizer().get_vocab()
    assert tokenizer_digests(other)["vocabulary"] != plain["vocabulary"]
