"""The report's table, from the flat metrics of a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iitkit.metrics import wilson

RATES = (("iia", "n"), ("iia_flipped", "n_flipped"), ("iia_kept", "n_kept"))


def with_intervals(metrics: Mapping[str, float]) -> dict[str, float | list[float] | None]:
    """Add a 95 % Wilson interval to every IIA; not-a-number becomes None, as JSON wants it.

    Args:
        metrics: ``split/iia``, ``split/n``, …; the trained interventions' splits and the controls.

    Returns:
        The same keys, counts as integers, and ``…_ci95`` beside every rate.
    """
    full: dict[str, float | list[float] | None] = {}
    for key, value in metrics.items():
        group, _, name = key.rpartition("/")
        if name.startswith("n") and name in {count for _, count in RATES}:
            full[key] = round(value)
            continue
        full[key] = None if value != value else round(value, 6)  # rates were logged in fp32
        for rate, count in RATES:
            if name == rate:
                n = metrics[f"{group}/{count}"]
                full[f"{key}_ci95"] = [round(bound, 4) for bound in wilson(value * n, n)] if n else None
    return full


def format_table(metrics: Mapping[str, float], rows: Sequence[tuple[str, str]]) -> str:
    """Return the table that a test prints: IIA over the candidates, and agreement of the vocabulary's top-1.

    Args:
        metrics: flat metrics.
        rows: pairs of a label and the metrics' group, e.g. ``("trained, test", "test")``; a group that was not
            measured is left out.
    """
    lines = [f"{'':<33}{'all':>26}{'flipped':>26}{'kept':>26}{'top-1':>8}"]
    for label, group in rows:
        if f"{group}/iia" not in metrics:
            continue
        cells = []
        for rate, count in RATES:
            n = metrics[f"{group}/{count}"]
            value = metrics[f"{group}/{rate}"]
            if not n:
                cells.append("–")
                continue
            low, high = wilson(value * n, n)
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}] {round(n)}")
        top = metrics.get(f"{group}/top1")
        last = "–" if top is None else f"{top:.3f}"
        lines.append(f"{label:<33}" + "".join(f"{cell:>26}" for cell in cells) + f"{last:>8}")
    return "\n".join(lines)
