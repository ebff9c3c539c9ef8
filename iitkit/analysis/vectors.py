"""Steering vectors without training: a direction of the activations that tells two sets of prompts apart.

Difference of means: Turner et al., 2023, https://arxiv.org/abs/2308.10248, and Marks and Tegmark, 2023,
https://arxiv.org/abs/2310.06824. Principal component of differences: Zou et al., 2023,
https://arxiv.org/abs/2310.01405 (representation engineering). Probe: Li et al., 2023,
https://arxiv.org/abs/2306.03341.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from iitkit.analysis.frames import checked_layers
from iitkit.analysis.prompts import Encoded, Prompt, columns, encode, pad_of, padded, short
from iitkit.analysis.vector_methods import linear_probe, mean_difference, principal_difference
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions import Addition, Intervention
from iitkit.interventions.checks import whole
from iitkit.models.anatomy import locate
from iitkit.models.interchange import collect
from iitkit.models.sites import Site
from iitkit.positions import Position

Method = Literal["mean_difference", "pca", "probe"]
PENALTY = 0.01
"""Weight of the probe's L2 penalty unless said."""


@dataclass(frozen=True)
class SteeringVectors:
    """Vectors that are added at sites, one each.

    Args:
        sites: name → where the vector is added; position ``all``.
        vectors: name → vector, [width], fp32, on the CPU.
        about: how they were made: method, position, prefix, numbers of prompts, and for each name the norm of the
            vector and the mean norm of the activations at its site.
    """

    sites: Mapping[str, Site]
    vectors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def alignment(self) -> dict[str, tuple[Site, Intervention]]:
        """Return sites with additions of the vectors: what :func:`iitkit.intervening` and :func:`iitkit.save` take."""
        return {name: (site, Addition.of(self.vectors[name])) for name, site in self.sites.items()}

    def only(self, *names: str) -> SteeringVectors:
        """Return some of the vectors.

        Raises:
            IITKitError: a name that is not there.
        """
        for name in names:
            if name not in self.sites:
                raise IITKitError(
                    f"no vector {name!r}.{did_you_mean(name, self.sites)} There are {choices(self.sites)}"
                )
        about = {**self.about, **{key: _some(self.about[key], names) for key in ("norms", "activations")}}
        return SteeringVectors(_some(self.sites, names), _some(self.vectors, names), about)

    def random(self, seed: int = 0) -> SteeringVectors:
        """Return vectors of random directions and of the same norms: what any push of that size does."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in self.vectors.items()
        }
        scaled = {
            name: (drawn[name] / drawn[name].norm() * v.double().norm()).float() for name, v in self.vectors.items()
        }
        return replace(self, vectors=scaled, about={**self.about, "method": "random", "seed": seed})


@torch.no_grad()
def vector(
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[str | Prompt],
    negative: Sequence[str | Prompt],
    *,
    layers: int | Sequence[int] | None = None,
    component: str = "block_output",
    head: int | None = None,
    position: Position = "last",
    method: Method = "mean_difference",
    prefix: str = "",
    penalty: float | None = None,
    batch_size: int = 16,
    special_tokens: bool = True,
) -> SteeringVectors:
    """Make steering vectors from two lists of prompts; nothing is trained but the probe.

    Args:
        model: a causal language model.
        tokenizer: its fast tokenizer.
        positive: prompts towards which the vector leads.
        negative: prompts from which it leads away; for ``pca`` as many, row i the counterpart of row i.
        layers: one layer or several; all of them unless said. Each gets a vector of its own.
        component: which part of the layers.
        head: of a component that has heads, the one that is meant.
        position: where activations are read; of several tokens their mean is taken.
        method: ``mean_difference``: mean of the positive activations less mean of the negative ones. ``pca``: the first
            principal direction of the pairs' differences (taken from 0, not from their mean). ``probe``: the normal of
            a logistic regression. The last two point from negative to positive and are as long as the difference of
            means is along them.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        penalty: of the probe, weight of the squared norm, in units of the activations' pooled standard deviation; 0.01
            unless said.
        batch_size: prompts that are run together.
        special_tokens: whether the tokenizer adds what it adds by itself (BOS); not to texts that a chat template
            wrote, which writes these tokens too.

    Returns:
        A vector for each layer, named ``layer_16``.

    Raises:
        IITKitError: too few prompts, one that is longer than the network's context, a site or position that is not
            there, an unknown method, classes that do not differ at a site, activations that are not finite.
    """
    if method not in get_args(Method):
        raise IITKitError(
            f"method {method!r}:{did_you_mean(method, get_args(Method))} expected {choices(get_args(Method))}"
        )
    if penalty is not None and method != "probe":
        raise IITKitError(f"penalty: only the probe has one, the method is {method!r}: leave it out")
    penalty = PENALTY if penalty is None else penalty
    for name, prompts in (("positive", positive), ("negative", negative)):
        if isinstance(prompts, str | Prompt) or not prompts:
            raise IITKitError(f"{name}: expected a list of one prompt or more, given {prompts!r}")
        _check_prompts(name, prompts)
    whole("batch_size", batch_size, 1)
    if method == "pca" and len(positive) != len(negative):
        raise IITKitError(
            f"method 'pca' takes differences of pairs, given {len(positive)} positive and {len(negative)} negative "
            "prompts: give as many of each, row i the counterpart of row i"
        )
    wanted = checked_layers(model, [layers] if isinstance(layers, int) else layers)
    sites = {f"layer_{layer}": Site(layer, component, "all", head=head) for layer in wanted}
    _check_sites(model, sites)
    prompts = [*positive, *negative]
    encoded = encoded_prompts(model, tokenizer, prompts, prefix, special_tokens)
    activations = read(model, encoded, sites, position, pad_of(tokenizer), batch_size)
    vectors, norms, means = {}, {}, {}
    for name, found in activations.items():
        _check_finite(name, found, encoded)
        pair = found[: len(positive)], found[len(positive) :]
        try:
            made = {
                "mean_difference": lambda p, n: mean_difference(p, n),
                "pca": lambda p, n: principal_difference(p, n),
                "probe": lambda p, n: linear_probe(p, n, penalty),
            }[method](*pair)
        except IITKitError as error:
            raise IITKitError(f"{name}: {error}") from error
        vectors[name] = made.float()
        norms[name], means[name] = float(made.norm()), float(found.norm(dim=1).mean())
    about = {
        "method": method,
        "read_at": position,
        "prefix": prefix,
        "positive": len(positive),
        "negative": len(negative),
        "norms": norms,
        "activations": means,
        **({"penalty": penalty} if method == "probe" else {}),
    }
    return SteeringVectors(sites, vectors, about)


def encoded_prompts(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Prompt],
    prefix: str,
    special_tokens: bool = True,
    more: int = 0,
) -> list[Encoded]:
    """Tokenise prompts, behind which a number of tokens, of which the last is never run, must fit into the context.

    Raises:
        IITKitError: one that does not; see :func:`iitkit.analysis.prompts.encode`.
    """
    found = [encode(tokenizer, Prompt(x) if isinstance(x, str) else x, prefix, special_tokens) for x in prompts]
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    long = next((text for text in found if isinstance(most, int) and len(text) + max(more - 1, 0) > most), None)
    if long is not None:
        behind = f" and {more} to be written" * bool(more)
        raise IITKitError(f"{short(long.text)} has {len(long)} tokens{behind}, the network takes {most}: shorten it")
    return found


def read(
    model: nn.Module,
    prompts: Sequence[Encoded],
    sites: Mapping[str, Site],
    position: Position,
    pad_id: int,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Return every prompt's activation at sites, the mean of its tokens at a position.

    Returns:
        Name → [prompts, width], fp64, on the CPU.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        tokens = padded([prompt.ids for prompt in batch], pad_id, device)
        at = columns([prompt.at(position) for prompt in batch])  # padded on the right: a token's index is its column
        there = (at >= 0).double()
        at = at.where(at >= 0, at[:, :1]).to(device)  # gaps read the first of the row's own, and count for nothing
        inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
        found = collect(model, inputs, {name: replace(site, position=at) for name, site in sites.items()})
        for name, values in found.items():
            kept[name].append((values.double().cpu() * there[..., None]).sum(1) / there.sum(1, keepdim=True))
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _check_finite(name: str, found: Tensor, encoded: Sequence[Encoded]) -> None:
    for text, fine in zip(encoded, found.isfinite().all(1).tolist(), strict=True):
        if not fine:
            raise IITKitError(
                f"{name}: the activation of {short(text.text)} is not finite: load the network in another dtype, "
                "float32 or bfloat16"
            )


def _check_prompts(name: str, prompts: Sequence[Any]) -> None:
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str | Prompt):
            hint = ""
            if isinstance(prompt, list | tuple):
                hint = "; of a chat, what tokenizer.apply_chat_template makes, with special_tokens=False"
            raise IITKitError(f"{name}[{i}]: {short(str(prompt))}: expected a text or an iitkit.Prompt{hint}")


def _check_sites(model: nn.Module, sites: Mapping[str, Site]) -> None:
    for name, site in sites.items():
        location = locate(model, site, name)
        if location.width is None:
            raise IITKitError(f"{name}: the width of {location.label} is not fixed: choose another component")
        if location.heads > 1 or (location.view is not None and location.view.parted):
            whole = site.component.removeprefix("head_")
            raise IITKitError(
                f"{name}: {site.component} has {location.heads} heads: say head, or take {whole}, where one vector "
                "holds a part for each head"
            )


def _some(mapping: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: mapping[name] for name in names}
