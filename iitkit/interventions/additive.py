"""Vectors and updates that are added: steering vectors, activation addition, LoRA."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from iitkit.interventions import edits
from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.learned import LowRankUpdate
from iitkit.interventions.masks import All, some
from iitkit.interventions.spaces import Identity

Take = Literal["vector", "source"]


class Addition(Intervention):
    """``b + v`` with a trained vector v, or ``b + s``.

    Turner et al., 2023, https://arxiv.org/abs/2308.10248 (activation addition).

    Args:
        site: the site's sizes.
        take: ``vector`` is trained, from 0; ``source`` adds the source's activation.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, take: Take = "vector", features: int | list[int] | None = None) -> None:
        edit = edits.Add(site.width, site, take)
        super().__init__(Identity(site), some(site.width, features), edit, take=take, features=features)

    @staticmethod
    def of(vector: Tensor) -> Addition:
        """Return the addition of a vector [width] that is known, kept in fp32; nothing of it trains."""
        made = Addition(SiteInfo(vector.shape[-1]))
        made.load_state_dict({"edit.vector": vector.detach().float()}, strict=True)
        made.requires_grad_(False).eval()
        return made


class Subtraction(Intervention):
    """``b − s``, or ``b − v`` with a trained vector v.

    Args:
        site: the site's sizes.
        take: ``source`` subtracts the source's activation; ``vector`` is trained, from 0.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, take: Take = "source", features: int | list[int] | None = None) -> None:
        edit = edits.Subtract(site.width, site, take)
        super().__init__(Identity(site), some(site.width, features), edit, take=take, features=features)


class LoRA(Intervention):
    """``h + α/r · (x A) B`` at a module's output h, x its input; nothing changes at the start.

    Hu et al., 2021, https://arxiv.org/abs/2106.09685. Takes no source.

    Args:
        site: the site's sizes, with the width of the module's input.
        rank: r; 4 unless said.
        alpha: α.
        dropout: share of the input's entries that a training step leaves out.
        seed: of the dropout.

    Raises:
        IITKitError: a site that is a module's input itself, or a rank below 1.
    """

    def __init__(
        self, site: SiteInfo, rank: int | None = None, alpha: float = 8.0, dropout: float = 0.0, seed: int = 0
    ) -> None:
        rank = 4 if rank is None else rank
        edit = LowRankUpdate(site.width, site, rank, alpha, dropout, seed)
        super().__init__(Identity(site), All(site.width), edit, rank=rank, alpha=alpha, dropout=dropout, seed=seed)
