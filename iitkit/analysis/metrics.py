"""What is measured in an edited run, from its logits at the position that answers; one number for each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices, did_you_mean

METRICS: dict[str, str] = {
    "logit_difference": "logit of the answer minus logit of the wrong answer",
    "recovered_logit_difference": "(patched − corrupt) / (clean − corrupt) of the logit difference",
    "probability": "of the answer",
    "log_probability": "of the answer, in nats",
    "rank": "place of the answer among all tokens, 1 for the likeliest",
    "top1": "whether the answer is the likeliest token (1 or 0)",
    "kl_from_clean": "KL(clean ‖ patched), in nats",
    "kl_to_clean": "KL(patched ‖ clean), in nats",
    "iia": "whether the counterfactual label beats the other candidates (1 or 0)",
    "iia_flipped": "iia, of pairs whose label the interchange changes",
    "iia_kept": "iia, of pairs whose label the interchange leaves",
}
"""Metric → what it is."""

_NEEDS: dict[str, tuple[str, ...]] = {
    "logit_difference": ("answer", "wrong"),
    "recovered_logit_difference": ("answer", "wrong"),
    "kl_from_clean": (),
    "kl_to_clean": (),
    "iia": ("candidates", "label"),
    "iia_flipped": ("candidates", "label", "flipped"),
    "iia_kept": ("candidates", "label", "flipped"),
}
"""Metric → what of :class:`Answers` it needs; the answer unless said."""

_CALLED = {
    "answer": "the right answer",
    "wrong": "the wrong answer",
    "candidates": "candidates and their counterfactual label, which a task's pairs have",
    "label": "a counterfactual label, which a task's pairs have",
    "flipped": "pairs that say whether the label flips, which a task's have",
}

DIFFERENTIABLE = ("logit_difference", "recovered_logit_difference", "probability", "log_probability", "kl_from_clean")
"""Metrics that attribution patching can take the gradient of."""


@dataclass(frozen=True)
class Answers:
    """What the metrics compare with; B rows.

    Args:
        answer: token of the right answer (that of the clean prompt), [B].
        wrong: token of the wrong answer (that of the corrupt prompt), [B].
        candidates: tokens that compete for the label, [B, C], −1 where there are fewer.
        label: the counterfactual label's number among them, or among the answers that they are forms of, [B].
        answer_of: which answer each candidate is a form of, [B, C]; None where each is one of its own.
        flipped: whether the interchange changes the label, [B].
    """

    answer: Tensor | None = None
    wrong: Tensor | None = None
    candidates: Tensor | None = None
    label: Tensor | None = None
    answer_of: Tensor | None = None
    flipped: Tensor | None = None

    def to(self, device: torch.device) -> Answers:
        """Return a copy on a device."""
        return replace(self, **{key: x.to(device) for key, x in vars(self).items() if isinstance(x, Tensor)})

    def repeated(self, times: int) -> Answers:
        """Return every row ``times`` times, copies side by side."""
        given = {key: x for key, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{key: x.repeat_interleave(times, 0) for key, x in given.items()})


def usual(answers: Answers) -> str:
    """Return the metric that is measured unless one is named: the first of these whose answers are there."""
    if answers.answer is not None and answers.wrong is not None:
        return "recovered_logit_difference"
    if answers.candidates is not None and answers.label is not None:
        return "iia"
    return "kl_from_clean" if answers.answer is None else "probability"


def check_metrics(metrics: Sequence[str], answers: Answers) -> None:
    """Check that metrics are known and have what they compare with.

    Raises:
        IITKitError: none, an unknown one, one named twice, one without its answers.
    """
    if not metrics:
        raise IITKitError(f"no metric: expected one or several of {choices(METRICS, len(METRICS))}")
    for place, name in enumerate(metrics):
        if name not in METRICS:
            raise IITKitError(
                f"no metric {name!r}.{did_you_mean(name, METRICS)} Expected one of {choices(METRICS, len(METRICS))}"
            )
        if name in metrics[:place]:
            raise IITKitError(f"metric {name!r} is named twice")
        for need in _NEEDS.get(name, ("answer",)):
            if getattr(answers, need) is None:
                raise IITKitError(f"metric {name!r} needs {_CALLED[need]}: give it, or name another metric")


class Measure:
    """Metrics of edited runs; what a grid keeps of logits.

    Args:
        metrics: their names.
        answers: what they compare with, B rows.
        clean: logits of the clean run at the positions that are read, [B, vocabulary], or one row for all.
        corrupt: the same of the corrupt run.
        average: rows that are draws of one example, and are averaged; 1 for none.

    Raises:
        IITKitError: see :func:`check_metrics`.
    """

    def __init__(
        self, metrics: Sequence[str], answers: Answers, clean: Tensor, corrupt: Tensor, average: int = 1
    ) -> None:
        check_metrics(metrics, answers)
        for given, least in ((answers.answer, 0), (answers.wrong, 0), (answers.candidates, -1)):
            if given is not None and not least <= int(given.min()) <= int(given.max()) < clean.shape[-1]:
                raise IITKitError(
                    f"answers {int(given.min())} to {int(given.max())}: the network has tokens 0 to "
                    f"{clean.shape[-1] - 1}: give tokens of its own tokenizer"
                )
        self.metrics, self.answers, self.average = list(metrics), answers.to(clean.device), average
        self.clean, self.corrupt = _wide(clean), _wide(corrupt)
        self._clean_log = self.clean.log_softmax(-1) if any(name.startswith("kl") for name in metrics) else None
        self._span: tuple[Tensor, Tensor] | None = None
        if "recovered_logit_difference" in metrics:
            low, high = (self._averaged(self._difference(x[None]))[0] for x in (self.corrupt, self.clean))
            self._span = low.repeat_interleave(average), high.repeat_interleave(average)

    def __call__(self, logits: Tensor, cells: Sequence[int] = ()) -> Tensor:
        """Return the metrics of logits [n, B, vocabulary]: [n, examples, metrics], fp64."""
        wide = _wide(logits)
        normaliser = wide.logsumexp(-1) if self._normalised else None
        found = [_METHODS[name](self, wide, normaliser).double() for name in self.metrics]
        return self._averaged(torch.stack(found, -1))

    def differentiable(self, name: str, logits: Tensor) -> Tensor:
        """Return one metric of logits [B, vocabulary] as [B], through which gradients flow.

        Raises:
            IITKitError: a metric without a gradient.
        """
        if name not in DIFFERENTIABLE:
            raise IITKitError(f"metric {name!r} has no gradient: attribution takes one of {choices(DIFFERENTIABLE)}")
        wide = _wide(logits)[None]
        return _METHODS[name](self, wide, wide.logsumexp(-1))[0]

    @property
    def _normalised(self) -> bool:
        return any(name.startswith(("probability", "log_probability", "kl")) for name in self.metrics)

    def _averaged(self, found: Tensor) -> Tensor:
        if self.average == 1:
            return found
        n, rows, *rest = found.shape
        return found.reshape(n, rows // self.average, self.average, *rest).mean(2)

    def _at(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        return logits.gather(-1, tokens.expand(*logits.shape[:2])[..., None])[..., 0]

    def _difference(self, logits: Tensor, normaliser: Tensor | None = None) -> Tensor:
        if logits.shape[1] == 1 and self.answers.answer is not None:  # one clean row for all
            logits = logits.expand(-1, len(self.answers.answer), -1)
        return self._at(logits, self.answers.answer) - self._at(logits, self.answers.wrong)

    def _recovered(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert self._span is not None
        low, high = self._span
        return (self._difference(logits) - low) / (high - low).where(high != low, math.nan)

    def _log_probability(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert normaliser is not None
        return self._at(logits, self.answers.answer) - normaliser

    def _probability(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        return self._log_probability(logits, normaliser).exp()

    def _rank(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        return (logits > self._at(logits, self.answers.answer)[..., None]).sum(-1) + 1

    def _top1(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert self.answers.answer is not None
        return logits.argmax(-1) == self.answers.answer

    def _kl_from_clean(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert normaliser is not None
        assert self._clean_log is not None
        return (self._clean_log.exp() * (self._clean_log - logits + normaliser[..., None])).sum(-1).clamp(min=0)

    def _kl_to_clean(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert normaliser is not None
        assert self._clean_log is not None
        log = logits - normaliser[..., None]
        return (log.exp() * (log - self._clean_log)).sum(-1).clamp(min=0)

    def _iia(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        candidates, label = self.answers.candidates, self.answers.label
        assert candidates is not None
        assert label is not None
        spread = candidates.clamp(min=0).expand(len(logits), -1, -1)
        scores = logits.gather(-1, spread).masked_fill(candidates < 0, -math.inf)
        best = scores.argmax(-1)
        if self.answers.answer_of is not None:
            best = self.answers.answer_of.expand(len(logits), -1, -1).gather(-1, best[..., None])[..., 0]
        return best == label

    def _flipped(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert self.answers.flipped is not None
        return self._iia(logits, normaliser).double().where(self.answers.flipped, math.nan)

    def _kept(self, logits: Tensor, normaliser: Tensor | None) -> Tensor:
        assert self.answers.flipped is not None
        return self._iia(logits, normaliser).double().where(~self.answers.flipped, math.nan)


_METHODS: dict[str, Callable[[Measure, Tensor, Tensor | None], Tensor]] = {
    "logit_difference": Measure._difference,
    "recovered_logit_difference": Measure._recovered,
    "probability": Measure._probability,
    "log_probability": Measure._log_probability,
    "rank": Measure._rank,
    "top1": Measure._top1,
    "kl_from_clean": Measure._kl_from_clean,
    "kl_to_clean": Measure._kl_to_clean,
    "iia": Measure._iia,
    "iia_flipped": Measure._flipped,
    "iia_kept": Measure._kept,
}


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
