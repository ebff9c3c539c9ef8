"""IIA where answers are several tokens: every candidate is a row of its own, behind its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from iitkit.analysis.metrics import Answers
from iitkit.batch import IGNORED, Tokens
from iitkit.models.grids import Rows


class Sequences:
    """Scores candidates of several tokens by the sum of their tokens' log-probabilities.

    Args:
        metrics: of ``iia``, ``iia_flipped`` and ``iia_kept``.
        candidates: their tokens, [B, C, T], ``IGNORED`` behind the last.
        answers: label, forms and flipped.
    """

    def __init__(self, metrics: Sequence[str], candidates: Tensor, answers: Answers) -> None:
        self.metrics, self.candidates, self.answers = list(metrics), candidates, answers

    @property
    def count(self) -> int:
        """How many rows a prompt becomes."""
        return self.candidates.shape[1]

    def rows(self, prompts: Tokens) -> Rows:
        """Return every prompt once for each candidate, which stands behind it without its last token."""
        each = self.candidates.to(prompts.ids.device).flatten(0, 1)
        longer = prompts.repeated(self.count).extended(each[:, :-1])
        first = prompts.last.repeat_interleave(self.count)
        read = first[:, None] + torch.arange(each.shape[1], device=first.device)
        return Rows(longer, read=torch.minimum(read, longer.last[:, None]))

    def __call__(self, logits: Tensor, cells: Sequence[int] = ()) -> Tensor:
        """Return the metrics of logits [n, B · C, T, vocabulary]: [n, B, metrics], fp64."""
        device = logits.device
        tokens = self.candidates.flatten(0, 1).to(device)
        real = tokens != IGNORED
        log = logits.float() if logits.dtype not in (torch.float32, torch.float64) else logits
        spread = tokens.clamp(min=0).expand(len(log), -1, -1)[..., None]
        found = log.gather(-1, spread)[..., 0] - log.logsumexp(-1)
        scores = found.masked_fill(~real, 0.0).sum(-1).masked_fill(~real[:, 0], -math.inf)
        best = scores.reshape(len(scores), -1, self.count).argmax(-1)
        if self.answers.answer_of is not None:
            forms = self.answers.answer_of.to(device).expand(len(best), -1, -1)
            best = forms.gather(-1, best[..., None])[..., 0]
        assert self.answers.label is not None
        right = (best == self.answers.label.to(device)).double()
        flipped = None if self.answers.flipped is None else self.answers.flipped.to(device)
        made = {"iia": right}
        if flipped is not None:
            made |= {"iia_flipped": right.where(flipped, math.nan), "iia_kept": right.where(~flipped, math.nan)}
        return torch.stack([made[name] for name in self.metrics], -1)
