"""Networks from scratch: what a config may name as a base instead of a model that exists."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.loading import base_identity, dtype_named, load_network, load_tokenizer, reads_no_text, shape_of
from iitkit.models.scratch_networks import ACTIVATIONS, Activation, GRUModel, MLPModel


class Network(ABC):
    """A recipe for a network with random weights: name a subclass as ``base``.

    Args:
        seed: of the weights; the run's seed_everything unless said.
    """

    tokenizer: str | None = None
    """Base whose tokenizer the network reads text with; None for one that reads no text."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    @abstractmethod
    def make(self) -> nn.Module:
        """Return the network, its weights drawn from torch's generator."""

    def build(self, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the network; torch's generator stays as it was.

        Args:
            seed: of the weights, where the recipe says none.
            dtype: of the weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed if self.seed is None else self.seed)
            return self.make().to(dtype).eval()

    def spec(self) -> dict[str, Any]:
        """Return the name and the options as plain values."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        said = {name: getattr(self, name) for name in names}
        return {"name": type(self).__name__, **{name: value for name, value in said.items() if value is not None}}

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.spec().items() if key != "name")
        return f"{type(self).__name__}({options})"

    def check(self, symbols: int | None, features: int | None, answers: int | None) -> None:
        """Compare the network with what the data hold.

        Args:
            symbols: number of symbols in sequences; None where the inputs are none.
            features: size of an input vector; None where the inputs are none.
            answers: number of classes; None where that is not known.

        Raises:
            IITKitError: a network that cannot read these inputs, or has too few symbols, features or classes.
        """
        raise NotImplementedError  # abstract

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> Network:
        """Build a recipe from what :meth:`spec` returned.

        Raises:
            IITKitError: an unknown name or option.
        """
        given = dict(spec)
        name = given.pop("name", None)
        known = {kind.__name__: kind for kind in (MLP, GRU, GPT2, Llama)}
        if name not in known:
            raise IITKitError(f"base {name!r} is no network.{did_you_mean(name, known)} Known: {choices(known)}")
        options = list(inspect.signature(known[name].__init__).parameters)[1:]
        if unknown := [key for key in given if key not in options]:
            raise IITKitError(f"base {name} has no option {unknown[0]!r}.{did_you_mean(unknown[0], options)}")
        return known[name](**given)


def _whole(name: str, **numbers: int) -> None:
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise IITKitError(f"{name}.{key}: {value!r}: expected 1 or more")


class MLP(Network):
    """A multilayer perceptron: vectors in, one logit for each class out.

    Its layers are sites: ``{layer: 0}`` is what leaves the first map's activation, one position wide.

    Args:
        sizes: of the input, of each hidden layer, and the number of classes: [16, 16, 16, 2] has two hidden layers.
        activation: relu, gelu, silu or tanh.
        seed: of the weights; the run's seed_everything unless said.
    """

    def __init__(self, sizes: list[int], activation: Activation = "relu", seed: int | None = None) -> None:
        super().__init__(seed)
        if len(sizes) < 3:
            raise IITKitError(f"MLP.sizes: {sizes}: expected input, hidden layers and classes, e.g. [16, 16, 2]")
        _whole("MLP", **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        if activation not in ACTIVATIONS:
            raise IITKitError(f"MLP.activation: {activation!r}: expected one of {choices(ACTIVATIONS)}")
        self.sizes, self.activation = list(sizes), activation

    def make(self) -> nn.Module:
        """See :class:`Network`."""
        return MLPModel(self.sizes, self.activation)

    def check(self, symbols: int | None, features: int | None, answers: int | None) -> None:
        """See :class:`Network`."""
        if features is None:
            raise IITKitError(
                "base MLP reads vectors, and the data are sequences: choose GPT2, Llama or GRU, or vectors"
            )
        if self.sizes[0] != features:
            raise IITKitError(f"base MLP.sizes: an input has {features} numbers, the network takes {self.sizes[0]}")
        if answers is not None and self.sizes[-1] < answers:
            raise IITKitError(f"base MLP.sizes: there are {answers} classes, the network has {self.sizes[-1]}")


class _Sequences(Network):
    """Networks of sequences.

    Args:
        vocabulary: number of symbols; that of the tokenizer where one is named.
        tokenizer: base whose tokenizer it reads text with.
        seed: of the weights.
    """

    def __init__(self, vocabulary: int | None, tokenizer: str | None, seed: int | None) -> None:
        super().__init__(seed)
        if (vocabulary is None) == (tokenizer is None):
            raise IITKitError(
                f"{type(self).__name__}: give the number of symbols (vocabulary), or for text the base whose tokenizer "
                "to read it with (tokenizer)"
            )
        self.vocabulary, self.tokenizer = vocabulary, tokenizer

    @property
    def size(self) -> int:
        """Number of symbols."""
        return self.vocabulary if self.vocabulary is not None else len(load_tokenizer(str(self.tokenizer)))

    def check(self, symbols: int | None, features: int | None, answers: int | None) -> None:
        """See :class:`Network`."""
        name = type(self).__name__
        if features is not None:
            raise IITKitError(f"base {name} reads sequences, and the data are vectors: choose MLP")
        if symbols is None and self.tokenizer is None:
            raise IITKitError(
                f"base {name}: the data are text: name the base whose tokenizer to read it with (tokenizer)"
            )
        if symbols is not None and self.vocabulary is not None and self.vocabulary < symbols:
            raise IITKitError(f"base {name}.vocabulary: {self.vocabulary}: the data have {symbols} symbols")


class GRU(_Sequences):
    """A recurrent network: embeddings, a GRU and a linear head.

    Args:
        vocabulary: number of symbols; that of the tokenizer where one is named.
        width: size of an embedding.
        hidden: size of the state.
        layers: number of layers.
        tokenizer: base whose tokenizer it reads text with.
        seed: of the weights; the run's seed_everything unless said.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        width: int = 16,
        hidden: int = 16,
        layers: int = 1,
        tokenizer: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(vocabulary, tokenizer, seed)
        _whole("GRU", width=width, hidden=hidden, layers=layers)
        self.width, self.hidden, self.layers = width, hidden, layers

    def make(self) -> nn.Module:
        """See :class:`Network`."""
        return GRUModel(self.size, self.width, self.hidden, self.layers)


class GPT2(_Sequences):
    """A small GPT-2 without dropout.

    Args:
        vocabulary: number of symbols; that of the tokenizer where one is named.
        width: of the residual stream.
        layers: number of blocks.
        heads: of each block's attention.
        positions: longest sequence.
        tokenizer: base whose tokenizer it reads text with.
        seed: of the weights; the run's seed_everything unless said.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        positions: int = 64,
        tokenizer: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(vocabulary, tokenizer, seed)
        _whole("GPT2", width=width, layers=layers, heads=heads, positions=positions)
        if width % heads:
            raise IITKitError(f"GPT2.heads: {heads}: expected a divisor of the width {width}")
        self.width, self.layers, self.heads, self.positions = width, layers, heads, positions

    def make(self) -> nn.Module:
        """See :class:`Network`."""
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=self.size,
                n_embd=self.width,
                n_layer=self.layers,
                n_head=self.heads,
                n_positions=self.positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


class Llama(_Sequences):
    """A small Llama.

    Args:
        vocabulary: number of symbols; that of the tokenizer where one is named.
        width: of the residual stream.
        layers: number of blocks.
        heads: of each block's attention.
        kv_heads: of its keys and values; as many as heads unless said.
        neurons: of each block's MLP; 4 × width unless said.
        positions: longest sequence.
        tokenizer: base whose tokenizer it reads text with.
        seed: of the weights; the run's seed_everything unless said.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        kv_heads: int | None = None,
        neurons: int | None = None,
        positions: int = 64,
        tokenizer: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(vocabulary, tokenizer, seed)
        few, many = heads if kv_heads is None else kv_heads, 4 * width if neurons is None else neurons
        _whole("Llama", width=width, layers=layers, heads=heads, kv_heads=few, neurons=many, positions=positions)
        if width % heads or heads % few:
            raise IITKitError(
                f"Llama.heads: {heads} with {few} kv_heads: expected a divisor of the width {width}, and kv_heads that "
                "divide it"
            )
        self.width, self.layers, self.heads, self.positions = width, layers, heads, positions
        self.kv_heads, self.neurons = kv_heads, neurons

    def make(self) -> nn.Module:
        """See :class:`Network`."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.size,
                hidden_size=self.width,
                intermediate_size=self.neurons or 4 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads or self.heads,
                max_position_embeddings=self.positions,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )


def base_network(base: str | Network, dtype: str, seed: int) -> tuple[Any, dict[str, str | int]]:
    """Return a base, frozen and in eval mode, and its identity (see :func:`iitkit.models.loading.base_identity`).

    Args:
        base: what :func:`iitkit.models.loading.load_network` takes, or a recipe.
        dtype: float32, bfloat16, float16, float64 or auto.
        seed: of a recipe's weights, where it says none.
    """
    if not isinstance(base, Network):
        found = load_network(base, dtype=dtype)
        return found, base_identity(base, found)
    made = base.build(seed, dtype_named("float32" if dtype == "auto" else dtype)).requires_grad_(False)
    drawn = seed if base.seed is None else base.seed
    return made, {"id": str(base), "revision": f"seed {drawn}", **shape_of(made)}


def base_tokenizer(base: str | Network) -> Any:
    """Return a base's tokenizer; None for a network that reads no text."""
    if isinstance(base, Network):
        return None if base.tokenizer is None else load_tokenizer(base.tokenizer)
    return None if reads_no_text(base) else load_tokenizer(base)
