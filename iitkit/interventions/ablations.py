"""Edits of some entries of an activation that nothing is trained for: ablations, noise, steering by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from iitkit.interventions import edits, from_data
from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.masks import some
from iitkit.interventions.spaces import Identity


class _Some(Intervention):
    """An edit of some of the activation's own entries."""

    def __init__(
        self, site: SiteInfo, edit: type[edits.Edit], features: int | list[int] | None, **options: Any
    ) -> None:
        super().__init__(
            Identity(site),
            some(site.width, features),
            edit(site.width, site, **options),
            features=features,
            **options,
        )


class Zero(_Some):
    """``b ← 0`` (zero ablation).

    Args:
        site: the site's sizes.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, features: int | list[int] | None = None) -> None:
        super().__init__(site, edits.Zero, features)


class Mean(_Some):
    """``b ←`` the mean over data (mean ablation), measured before it is used.

    Args:
        site: the site's sizes.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, features: int | list[int] | None = None) -> None:
        super().__init__(site, from_data.Mean, features)


class Resample(_Some):
    """``b ←`` the activation of an input drawn from data (resample ablation). Row i always takes draw i.

    Args:
        site: the site's sizes.
        samples: how many activations are kept, a uniform sample of the data.
        seed: of the sample and of the draws.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(
        self, site: SiteInfo, samples: int = 64, seed: int = 0, features: int | list[int] | None = None
    ) -> None:
        super().__init__(site, from_data.Resample, features, samples=samples, seed=seed)


class Noise(_Some):
    """``b + ε``, ε Gaussian. Row i always takes draw i, so that batches of any size and repeated calls agree.

    Meng et al., 2022, https://arxiv.org/abs/2202.05262 (causal tracing) takes ``times_std: 3``.

    Args:
        site: the site's sizes.
        sigma: standard deviation; give this or ``times_std``.
        times_std: standard deviation in units of the one of all the data's entries together, measured before.
        seed: of the draws.
        features: which entries: the first k, or a list of indices. All unless said.

    Raises:
        IITKitError: both or neither of sigma and times_std, or one below 0.
    """

    def __init__(
        self,
        site: SiteInfo,
        sigma: float | None = None,
        times_std: float | None = None,
        seed: int = 0,
        features: int | list[int] | None = None,
    ) -> None:
        super().__init__(site, from_data.Noise, features, sigma=sigma, times_std=times_std, seed=seed)


class Scale(_Some):
    """``b ← factor · b``.

    Args:
        site: the site's sizes.
        factor: 0 is zero ablation, 1 changes nothing.
        features: which entries: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, factor: float = 2.0, features: int | list[int] | None = None) -> None:
        super().__init__(site, edits.Scale, features, factor=factor)


class Constant(_Some):
    """``b ← value``.

    Args:
        site: the site's sizes.
        value: one number, or a list with one for each of the activation's entries.
        features: which entries: the first k, or a list of indices. All unless said.

    Raises:
        IITKitError: a list of another length than the width.
    """

    def __init__(
        self, site: SiteInfo, value: float | list[float] = 0.0, features: int | list[int] | None = None
    ) -> None:
        super().__init__(site, edits.Constant, features, value=value)


class Collect(_Some):
    """Changes nothing; ``collected`` is what the last forward pass saw.

    Args:
        site: the site's sizes.
        features: which entries are kept: the first k, or a list of indices. All unless said.
    """

    def __init__(self, site: SiteInfo, features: int | list[int] | None = None) -> None:
        super().__init__(site, edits.Collect, features)

    @property
    def collected(self) -> Tensor | None:
        """The entries that the last forward pass saw, [*, k]; None before the first."""
        edit = self.edit
        assert isinstance(edit, edits.Collect)
        kept = self.mask.weights()
        return edit.collected if edit.collected is None or kept is None else edit.collected[..., kept]


class Skip(_Some):
    """A module's output becomes its input, as if the module were not there.

    Args:
        site: the site's sizes; the module's input must have the same width.
        features: which entries: the first k, or a list of indices. All unless said.

    Raises:
        IITKitError: an input of another width, or a site that is a module's input itself.
    """

    def __init__(self, site: SiteInfo, features: int | list[int] | None = None) -> None:
        super().__init__(site, edits.Skip, features)
