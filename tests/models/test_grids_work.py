"""Grids as work: memory, progress, cost, what fails, what is interrupted, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byhand import hooks_of, relative, tokens
from gridhand import Pair, at, everything
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.grids import Cell, Engine, Patch, Progress, Rows


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair("llama", "left")


def cells_of(pair: Pair) -> list[Cell]:
    return [Patch(layer, columns=pair.columns(step), source=pair.source) for layer in range(3) for step in range(9)]


def test_little_memory_gives_the_same_in_more_parts(pair: Pair) -> None:
    cells, sizes = cells_of(pair), {}
    whole = pair.engine.table(pair.base, cells, everything)
    for memory in (2**31, 100_000, 1):
        small = Engine(pair.model, memory=memory)
        base, source = small.run(pair.base.rows), small.run(pair.source.rows)
        same = [Patch(layer, columns=pair.columns(step), source=source) for layer in range(3) for step in range(9)]
        parts = list(small.results(base, same))
        sizes[memory] = max(len(part.cells) for part in parts)
        assert sorted(number for part in parts for number in part.cells) == list(range(27))
        found = torch.empty(27, 4, 53)
        for part in parts:
            found[list(part.cells)] = part.values
        assert relative(found, whole.values) <= 1e-5
    assert sizes[2**31] > sizes[100_000] > sizes[1] == 1


def test_only_what_a_reducer_keeps_exists(pair: Pair) -> None:
    seen: list[tuple[int, ...]] = []

    def reduce(logits: Tensor) -> Tensor:
        seen.append(tuple(logits.shape))
        return logits.log_softmax(-1)[..., [3, 7]]

    small = Engine(pair.model, memory=4 * 4 * 53 * 4 * 4 * 3)
    base, source = small.run(pair.base.rows), small.run(pair.source.rows)
    cells = [Patch(layer, columns=pair.columns(step), source=source) for layer in range(3) for step in range(9)]
    found = small.table(base, cells, reduce)
    assert found.values.shape == (27, 4, 2)
    assert found.base.shape == (4, 2)
    assert {shape[1:] for shape in seen} == {(4, 53)}
    assert 1 < max(shape[0] for shape in seen) <= 3
    expected = pair.engine.table(pair.base, cells_of(pair), everything).values.log_softmax(-1)[..., [3, 7]]
    assert relative(found.values, expected) <= 1e-5


def test_progress_reaches_the_end(pair: Pair) -> None:
    told: list[Progress] = []
    pair.engine.table(pair.base, cells_of(pair), everything, told.append)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert [p.share for p in told] == sorted(p.share for p in told)
    assert (told[-1].done, told[-1].cells, told[-1].share, told[-1].left) == (27, 27, 1.0, 0.0)
    assert told[0].left is None  # the cells that are filled in come first
    assert all(p.left is not None and p.left >= 0 for p in told[1:])


def test_the_cost_is_counted_by_hand() -> None:
    """One row of 9 tokens that parts from its source at token 3; 3 layers, all positions of block outputs."""
    pair = Pair("llama", "right")
    row = torch.tensor([0])
    base, source = pair.engine.run(pair.base.rows.take(row)), pair.engine.run(pair.source.rows.take(row))
    cells = [Patch(layer, columns=step, source=source) for layer in range(3) for step in range(9)]
    cost = pair.engine.cost(base, cells)
    assert cost.cells == 27
    # tokens 0 to 2 of 3 layers, and of the last layer tokens 3 to 7
    assert cost.filled == 9 + 5
    assert cost.plain == 27 * 9 * 3
    # 2 layers behind layer 0, 1 behind layer 1, none behind layer 2; a sweep of 6 tokens for all is cheapest here
    assert cost.steps == 6 * (2 + 1) * 6
    assert cost.mode == "tokens"
    assert cost.seconds > 0
    assert cost.memory > 0


def test_groups_are_parted_where_padding_costs_more_than_a_pass() -> None:
    from iitkit.models.grids.planning import Limits, batches
    from iitkit.models.grids.table import Units

    width = torch.tensor([100, 100, 99, 3, 2, 2])
    nought = torch.zeros(6, dtype=torch.long)
    join = torch.tensor([4, 1, 1, 2, 0, 1])
    units = Units(torch.arange(6), nought, nought, width, join)
    limits = Limits(6, most=10_000, overhead=10, memory=1e12, token=1.0, past=1.0, head=1.0, growing=True)
    found = [sorted(width[part].tolist()) for part in batches(units, limits)]
    assert sorted(found) == [[2, 2, 3], [99, 100, 100]]
    for part in batches(units, limits):
        assert join[part].tolist() == sorted(join[part].tolist())
    alone = Limits(6, most=10_000, overhead=0, memory=1e12, token=1.0, past=1.0, head=1.0, growing=True)
    assert len(list(batches(units, alone))) == 4  # one for each width
    apart = Limits(6, most=10_000, overhead=10, memory=1e12, token=1.0, past=1.0, head=1.0, growing=False)
    assert sorted(sorted(join[part].tolist()) for part in batches(units, apart)) == [[0], [1], [1, 1], [2], [4]]
    few = Limits(6, most=200, overhead=10, memory=1e12, token=1.0, past=1.0, head=1.0, growing=True)
    assert sorted(len(part) for part in batches(units, few)) == [1, 2, 3]
    little = Limits(6, most=10_000, overhead=10, memory=200.0, token=1.0, past=1.0, head=1.0, growing=True)
    assert max(len(part) for part in batches(units, little)) == 3  # 3 tokens twice over: 6 bytes, 100: 200


class Breaking(Vanilla):
    """Breaks where an entry is above a limit."""

    limit = 0.0

    def forward(self, base: Tensor, source: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if bool((base[..., 0] > self.limit).any()):
            raise ZeroDivisionError("too large an entry\nand a second line")
        return super().forward(base, source, *args, **kwargs)


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_a_cell_that_fails_is_marked_and_the_rest_goes_on(pair: Pair, mode: Any) -> None:
    engine = Engine(pair.model, mode)
    base, source = engine.run(pair.base.rows), engine.run(pair.source.rows)
    steps, breaking = range(5), Breaking()
    # rows are alike in their first 3, 0, 5 and 1 tokens: these are not run where tokens are left out
    rows = {step: [r for r in range(4) if mode == "plain" or step >= Pair.SHARED[r]] for step in steps}
    entries = {t: max(float(base.at(1)[r, int(base.starts[r]) + t, 0]) for r in rows[t]) for t in steps}
    breaking.limit = sorted(entries.values())[2]
    cells: list[Cell] = [Patch(1, columns=at(base, t), source=source, intervention=breaking) for t in steps]
    cells += [Patch(1, columns=at(base, t), source=source) for t in steps]
    before = hooks_of(pair.model)
    found = engine.table(base, cells, everything)
    bad = [t for t in steps if entries[t] > breaking.limit]
    assert len(bad) == 2
    assert found.failed == dict.fromkeys(bad, "ZeroDivisionError: too large an entry")
    assert found.done.all()
    for t in steps:
        if t in bad:
            assert found.values[t].isnan().all()
        else:
            assert relative(found.values[t], found.values[5 + t]) <= 1e-5
    assert not found.values[5:].isnan().any()
    assert hooks_of(pair.model) == before


def test_a_reducer_that_fails_marks_its_cells(pair: Pair) -> None:
    whole = pair.engine.table(pair.base, cells_of(pair), everything)
    limit = float(whole.values.amax((1, 2)).median())

    def reduce(logits: Tensor) -> Tensor:
        if float(logits.max()) > limit:
            raise OverflowError("too much")
        return logits[..., 0]

    with pytest.raises(OverflowError):
        reduce(whole.values)
    found = pair.engine.table(pair.base, cells_of(pair), reduce)
    above = [i for i in range(27) if float(whole.values[i].max()) > limit]
    assert sorted(found.failed) == above
    assert found.failed[above[0]] == "OverflowError: too much"
    assert found.values.isnan().all(1).nonzero()[:, 0].tolist() == above
    wrong = pair.engine.table(pair.base, cells_of(pair), lambda logits: logits[:1, :, 0].expand(1, -1))
    assert any("the reducer made (1, 4) of" in why for why in wrong.failed.values()) or not wrong.failed


def test_an_interrupt_keeps_what_is_done(pair: Pair) -> None:
    whole = pair.engine.table(pair.base, cells_of(pair), everything)
    small = Engine(pair.model, memory=60_000)
    base, source = small.run(pair.base.rows), small.run(pair.source.rows)
    cells = [Patch(layer, columns=pair.columns(step), source=source) for layer in range(3) for step in range(9)]
    before = hooks_of(pair.model)

    def stop(progress: Progress) -> None:
        if progress.done > 15:
            raise KeyboardInterrupt

    found = small.table(base, cells, everything, stop)
    assert found.interrupted
    assert 5 <= int(found.done.sum()) < 27
    assert relative(found.values[found.done], whole.values[found.done]) <= 1e-5
    assert found.values[~found.done].isnan().all()
    assert not found.failed
    assert hooks_of(pair.model) == before


def test_an_interrupt_inside_a_block_leaves_nothing(pair: Pair) -> None:
    class Interrupting(Vanilla):
        calls = 0

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            Interrupting.calls += 1
            if Interrupting.calls > 2:  # not in the comparison
                raise KeyboardInterrupt
            return super().forward(*args, **kwargs)

    before = hooks_of(pair.model)
    edit = Interrupting()
    pair.engine.table(pair.base, cells_of(pair), everything)  # so that the way is known
    cells: list[Cell] = [
        Patch(layer, "mlp_output", pair.columns(4), source=pair.source, intervention=edit) for layer in range(3)
    ]
    found = pair.engine.table(pair.base, cells, everything)
    assert found.interrupted
    assert hooks_of(pair.model) == before


def test_no_cells(pair: Pair) -> None:
    assert list(pair.engine.results(pair.base, [])) == []
    assert pair.engine.table(pair.base, [], everything).values.shape == (0, 4, 53)
    assert pair.engine.cost(pair.base, []).steps == 0


def test_whole_numbers_and_truths_have_no_nan(pair: Pair) -> None:
    found = pair.engine.table(pair.base, cells_of(pair), lambda logits: logits.argmax(-1))
    assert found.values.dtype == torch.float64
    expected = pair.engine.table(pair.base, cells_of(pair), everything).values.argmax(-1)
    assert torch.equal(found.values, expected.double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 7}, "cell 0: patch: layer 7 is out of range: LlamaForCausalLM has layers 0 to 2"),
        ({"component": "mlp_outputs"}, "Did you mean 'mlp_output'"),
        ({"component": "logits", "layer": None}, "logits are what a grid gives"),
        ({"component": "head_value_output", "head": 2}, "head 2 is out of range"),
        ({"head": 1}, "head 1: block_output has no heads"),
        ({"columns": 0}, "column 0 is no token of row 1: its tokens are columns 4 to 8"),
        ({"columns": [[1, 2]]}, r"columns \(1, 2\): expected \[n\] or \[4, n\]"),
        ({"columns": 8.0}, r"expected integers, \[n\] or \[4, n\]"),
        ({"source": None}, "the patch puts nothing there: give a source, values or an intervention"),
        ({"values": 0.0}, "values beside a source or an intervention"),
        ({"layer": []}, "expected one or several different ones"),
        ({"layer": [1, 1]}, "expected one or several different ones"),
        ({"source": None, "values": {0: 1.0}}, "values has nothing for layer 1: it has 0"),
        ({"source": None, "intervention": Vanilla()}, "Vanilla takes activations from a source: give one"),
        ({"source_columns": [7, 8]}, r"source_columns \(4, 2\) beside columns \(4, 1\): expected one for each"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(pair: Pair, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"layer": 1, "columns": 8, "source": pair.source, **change}
    with pytest.raises(IITKitError, match=message) as caught:
        pair.engine.results(pair.base, [Patch(**given)])
    assert len(str(caught.value).splitlines()) <= 2


def test_sources_that_do_not_fit(pair: Pair) -> None:
    two = pair.engine.run(pair.source.rows.take(torch.tensor([0, 1])))
    with pytest.raises(IITKitError, match="the source has 2 rows: expected 4 as the base has, or one for all"):
        pair.engine.results(pair.base, [Patch(1, columns=8, source=two)])
    short = pair.engine.run(Rows(tokens([[4, 5, 6]], "right")))
    with pytest.raises(IITKitError, match="token 8 of row 0 has none beside it in the source, which has 3 tokens"):
        pair.engine.results(pair.base, [Patch(1, columns=8, source=short)])
    with pytest.raises(IITKitError, match="attention_weight: the keys of base and source must be the same columns"):
        pair.engine.results(pair.base, [Patch(1, "attention_weight", 8, source=short, source_columns=2)])
    with pytest.raises(IITKitError, match="run by another engine"):
        Engine(pair.model).results(pair.base, [])
    edited = pair.engine.edited(pair.base, Patch(1, columns=8, values=0.0))
    with pytest.raises(IITKitError, match="cells start from unedited ones"):
        pair.engine.results(edited, [])


def test_blocks_of_an_intervention_are_named(pair: Pair) -> None:
    from iitkit.interventions import RotatedSubspace

    shared = RotatedSubspace(SiteInfo(16), {"a": 2, "b": 3})
    with pytest.raises(IITKitError, match="variable None: RotatedSubspace has a block for a, b"):
        pair.engine.results(pair.base, [Patch(1, columns=8, source=pair.source, intervention=shared)])
    cells: list[Cell] = [
        Patch(1, columns=8, source=pair.source, intervention=shared, variable=name) for name in ("a", "b")
    ]
    found = pair.engine.table(pair.base, cells, everything)
    assert not found.failed
    assert relative(found.values[0], found.values[1]) > 1e-4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"mask": [[1, 0, 1]]}, "the tokens of a row have padding between them"),
        ({"mask": [[0, 0, 0]]}, "row 0 has no token"),
        ({"read": [3]}, "read column 3 of row 0 is padding or outside the row"),
        ({"read": [1, 2]}, r"read \(2,\)"),
        ({"read": [1.0]}, r"expected columns, \[1\] or \[1, T\]"),
        ({"embeddings": torch.zeros(1, 2, 16)}, "expected one vector for each of 1 × 3 tokens"),
    ],
)
def test_rows_that_make_no_sense(rows: dict[str, Any], message: str) -> None:
    from iitkit.batch import Tokens

    mask = torch.tensor(rows.get("mask", [[1, 1, 1]]))
    read = None if "read" not in rows else torch.tensor(rows["read"])
    with pytest.raises(IITKitError, match=message):
        Rows(Tokens(torch.tensor([[4, 5, 6]]), mask), rows.get("embeddings"), read)


def test_embeddings_of_another_width_are_refused(pair: Pair) -> None:
    with pytest.raises(IITKitError, match=r"embeddings \(4, 9, 8\): the token embedding returns \(4, 9, 16\)"):
        pair.engine.run(Rows(pair.base.rows.tokens, torch.zeros(4, 9, 8)))


def test_joint_interventions_stay_whole(pair: Pair) -> None:
    """Positions that are one vector are edited together, though the first of them is alike in both prompts."""
    two = torch.cat([pair.columns(2), pair.columns(3)], 1)  # row 0 parts at token 3
    joint = LowRankSubspace(SiteInfo(32, generator=torch.Generator().manual_seed(6)), rank=4)
    cell = Patch(1, columns=two, source=pair.source, intervention=joint, joint=True)
    plain = Engine(pair.model, "plain")
    base, source = plain.run(pair.base.rows), plain.run(pair.source.rows)
    same = Patch(1, columns=two, source=source, intervention=joint, joint=True)
    found, expected = pair.engine.table(pair.base, [cell], everything), plain.table(base, [same], everything)
    assert not found.failed
    assert relative(found.values, expected.values) <= 1e-5


def test_values_that_a_run_keeps(pair: Pair) -> None:
    kept = pair.engine.run(pair.base.rows, keep=["mlp_output", (1, "head_value_output"), "embeddings"])
    later = pair.engine.run(pair.base.rows, start=False)
    for layer, component in ((0, "mlp_output"), (1, "head_value_output"), (None, "embeddings"), (2, "block_output")):
        assert torch.equal(kept.at(layer, component), later.at(layer, component))
    assert kept.at(1, "head_value_output").shape == (4, 9, 2, 4)
    assert torch.equal(kept.at(1, "head_value_output", 1), kept.at(1, "head_value_output")[:, :, 1])
    assert torch.equal(kept.at(1, "block_input"), kept.at(0))
    with pytest.raises(IITKitError, match="head 2 is out of range"):
        kept.at(1, "head_value_output", 2)
    with pytest.raises(IITKitError, match="layer 3 is out of range"):
        kept.at(3)
    with pytest.raises(IITKitError, match="expected \\(layer, component\\)"):
        pair.engine.run(pair.base.rows, keep=[3])  # type: ignore[list-item]
