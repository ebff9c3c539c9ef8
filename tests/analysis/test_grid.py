"""Grids by hand: axes, labels, parts, means, joins, files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iitkit
from iitkit.analysis.grid import Cell, Grid
from iitkit.errors import IITKitError

NAN = math.nan
LABELS = ["0 'The'", "1 ' cat'", "10 ' sat'"]


def small(**changes: Any) -> Grid:
    """Two layers × three positions × two examples; the cell at layer 5, position 10 failed for the second example."""
    given: dict[str, Any] = {
        "values": [[[1.0, 3.0], [0.5, 0.0], [2.0, 8.0]], [[-1.0, 1.0], [NAN, 4.0], [6.0, NAN]]],
        "dims": ("layer", "position", "example"),
        "coords": {"layer": [2, 5], "position": LABELS, "example": ["France", "Japan"]},
        "references": {"clean": [4.0, 6.0], "corrupt": [0.0, 1.0]},
        "failed": {(1, 2, 1): "RuntimeError: out of\nmemory"},
        "about": {"kind": "patch", "model": "tiny", "seed": 3, "settings": {"window": (1, 2), "noise": 3.0}},
    }
    return Grid(**{**given, **changes})


# Made


def test_what_it_holds() -> None:
    grid = small()
    assert grid.values.dtype == np.float64
    assert grid.shape == (2, 3, 2)
    assert grid.sizes == {"layer": 2, "position": 3, "example": 2}
    assert grid.dims == ("layer", "position", "example")
    assert grid.failed == {(1, 2, 1): "RuntimeError: out of memory"}
    assert grid.about["settings"] == {"window": [1, 2], "noise": 3.0}
    assert grid.references["clean"].tolist() == [4.0, 6.0]


def test_nothing_can_be_written_into_it_nor_behind_it() -> None:
    values = np.zeros((2, 1))
    grid = Grid(values, ("layer", "position"), references={"clean": np.array(1.0)})
    values[0, 0] = 7
    assert grid.values.tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="read-only"):
        grid.values[0, 0] = 1
    with pytest.raises(AttributeError):
        grid.dims = ("a", "b")  # type: ignore[misc]


def test_labels_are_numbered_unless_given_and_are_pythons_own() -> None:
    grid = Grid(np.zeros((2, 3)), ("layer", "head"), {"layer": np.array([4, 6])})
    assert grid.coords == {"layer": [4, 6], "head": [0, 1, 2]}
    assert type(grid.coords["layer"][0]) is int


def test_a_short_index_of_a_failed_cell_stands_for_all_below_it() -> None:
    grid = Grid([[[1.0, 2.0]], [[NAN, NAN]]], ("layer", "position", "metric"), failed={(1,): "no"})
    assert grid.failed == {(1, 0, 0): "no", (1, 0, 1): "no"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": ("layer", "position")}, r"shape \(2, 3, 2\) have 3 axes, but 2 are named: layer, position"),
        ({"dims": ("layer", "layer", "example")}, "two axes are named 'layer'"),
        ({"dims": ("layer", "value", "example")}, "'value' is no name of an axis"),
        ({"dims": ("layer", "a b", "example")}, "'a b' is no name of an axis"),
        ({"values": np.zeros((2, 0, 2))}, "axis 'position' is empty"),
        ({"coords": {"positions": LABELS}}, "no axis; they are layer, position, example. Did you mean 'position'?"),
        ({"coords": {"layer": [1]}}, "axis 'layer' has 2 places but 1 labels"),
        ({"coords": {"layer": [1, 1]}}, "axis 'layer' has the label 1 twice"),
        ({"coords": {"layer": [1, True]}}, "axis 'layer' has the label True twice"),
        ({"coords": {"layer": [1, None]}}, "None is no label of layer"),
        ({"coords": {"layer": [1, NAN]}}, "nan is no label of layer"),
        ({"coords": {"layer": ["a", "\ud800"]}}, "half a character"),
        ({"references": {"clean": [1.0, 2.0, 3.0]}}, r"shape \(3,\); expected \(2,\), over example"),
        ({"references": {"clean": ["a", "b"]}}, "reference 'clean': expected an array of numbers"),
        ({"failed": {(1, 3, 0): "x"}}, r"no cell has index \(1, 3, 0\); the axes are layer 2 × position 3 × example 2"),
        ({"failed": {(0, 0, 0): "x"}}, r"cell at \(0, 0, 0\) has a value; expected NaN"),
        ({"about": {"model": object()}}, r"about\['model'\] is a object; expected plain values"),
        ({"about": [1]}, "about is a list; expected a dict"),
        ({"about": {"a": [{1: 2}]}}, r"about\['a'\]\[0\] has the key 1; expected text"),
        ({"values": "abc"}, "the values: expected an array of numbers"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


# Parts


def test_selection_by_label() -> None:
    grid = small()
    assert grid.sel(layer=5, position="1 ' cat'", example="Japan") == 4.0
    part = grid.sel(position=["10 ' sat'", "0 'The'"], example="Japan")
    assert part.dims == ("layer", "position")
    assert part.coords == {"layer": [2, 5], "position": ["10 ' sat'", "0 'The'"]}
    assert np.array_equal(part.values, [[8.0, 3.0], [NAN, 1.0]], equal_nan=True)
    assert part.failed == {(1, 0): "RuntimeError: out of memory"}  # moved with its cell
    assert part.references["clean"] == 6.0
    assert part.about["selected"] == {"example": "Japan"}
    assert part.sel(layer=2).about["selected"] == {"example": "Japan", "layer": 2}
    assert grid.sel(layer=[2]).failed == {}


def test_a_number_finds_the_position_that_starts_with_it() -> None:
    grid = small()
    assert grid.sel(layer=2, position=10, example="Japan") == 8.0
    assert grid.sel(layer=2, position=1, example="Japan") == 0.0  # not "10 …"
    assert grid.sel(layer=np.int64(2), position=np.int64(0), example="Japan") == 3.0


def test_selection_by_index() -> None:
    grid = small()
    assert grid.isel(layer=-1, position=0, example=-1) == 1.0
    assert grid.isel(position=slice(1, None)).coords["position"] == LABELS[1:]
    assert grid.isel(position=[-1, 0]).coords["position"] == [LABELS[2], LABELS[0]]
    assert grid.sel(layer=range(2, 3)).coords["layer"] == [2]
    assert grid.isel(layer=[-1]).failed == {(0, 2, 1): "RuntimeError: out of memory"}
    assert grid.isel(layer=-1).failed == {(2, 1): "RuntimeError: out of memory"}


def test_a_number_that_starts_two_labels_finds_neither_and_true_is_not_1() -> None:
    grid = Grid([[1.0, 2.0, 3.0]], ("layer", "position"), {"layer": [1], "position": ["1 'a'", "1 'b'", "2 'c'"]})
    with pytest.raises(IITKitError, match="position has no label 1; it has 1 'a', 1 'b', 2 'c'"):
        grid.sel(position=1)
    with pytest.raises(IITKitError, match="layer has no label True"):
        grid.sel(layer=True)
    assert Grid([1.0, 2.0], ("component",), {"component": [False, 1]}).sel(component=1) == 2.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"layers": 2}, "no axis 'layers'; it has layer, position, example. Did you mean 'layer'?"),
        ({"layer": 3}, "layer has no label 3; it has 2, 5."),
        ({"layer": -1}, r"layer has no label -1; it has 2, 5. To count from the end: isel\(layer=-1\)"),
        ({"layer": "5"}, "layer has no label '5'; it has 2, 5. Did you mean 5?"),
        ({"example": "france"}, "example has no label 'france'; it has France, Japan. Did you mean 'France'?"),
        ({"layer": [2, 7]}, "layer has no label 7"),
        ({"layer": [2, 2]}, "axis 'layer' has the label 2 twice"),
        ({"layer": []}, "axis 'layer' is empty"),
        ({"layer": True}, "layer has no label True"),
        ({"layer": slice(0, 3)}, r"give a list of labels, or use isel\(layer=…\)"),
    ],
)
def test_labels_that_are_not_there(labels: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        small().sel(**labels)


@pytest.mark.parametrize(("index", "shown"), [(2, "2"), (-3, "-3"), (1.5, "1.5"), (True, "True"), ("a", "'a'")])
def test_indices_that_are_not_there(index: Any, shown: str) -> None:
    with pytest.raises(IITKitError, match=f"layer has 2 labels: no index {shown}"):
        small().isel(layer=index)


def test_best_cells() -> None:
    grid = small()
    assert grid.best(2) == [
        Cell(8.0, {"layer": 2, "position": "10 ' sat'", "example": "Japan"}, (0, 2, 1)),
        Cell(6.0, {"layer": 5, "position": "10 ' sat'", "example": "France"}, (1, 2, 0)),
    ]
    assert [cell.value for cell in grid.best(3, by="smallest")] == [-1.0, 0.0, 0.5]
    assert [cell.value for cell in (grid - 4.0).best(3, by="magnitude")] == [-5.0, -4.0, 4.0]
    assert [cell.index for cell in grid.best(2, by="clean")] == [(0, 1, 1), (1, 0, 0)]  # |0 − 6|, |−1 − 4|
    assert len(grid.best(100)) == 10  # two are missing
    assert grid.best(0) == []
    assert str(grid.best(1)[0]) == "8 at layer 2, position 10 ' sat', example Japan"
    with pytest.raises(IITKitError, match="Did you mean 'largest'"):
        grid.best(1, by="larges")


def test_ties_are_in_order() -> None:
    assert [cell.index for cell in Grid([[1.0, 2.0], [2.0, 2.0]], ("layer", "head")).best(3)] == [
        (0, 1),
        (1, 0),
        (1, 1),
    ]


# Over an axis


def test_mean_standard_error_and_count() -> None:
    grid = small()
    mean, error, n = grid.mean("example"), grid.stderr("example"), grid.n("example")
    assert np.array_equal(mean.values, [[2.0, 0.25, 5.0], [0.0, 4.0, 6.0]])
    assert np.array_equal(error.values, [[1.0, 0.25, 3.0], [1.0, NAN, NAN]], equal_nan=True)  # |a − b| / 2 for two
    assert np.array_equal(n.values, [[2.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
    assert mean.references["clean"] == 5.0
    assert error.references["corrupt"] == 0.5
    assert mean.failed == {}  # one of the two examples is there
    assert error.failed == {(1, 2): "RuntimeError: out of memory"}
    assert mean.about["averaged"] == {"example": 2}
    assert error.about["statistic"] == "standard error"
    assert "statistic" not in mean.about


def test_the_standard_error_of_four_by_hand() -> None:
    grid = Grid([[1.0, 2.0, NAN, 3.0, 6.0]], ("layer", "example"))
    assert grid.mean("example").values.tolist() == [3.0]
    assert grid.stderr("example").values[0] == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4), rel=1e-15)


def test_over_an_axis_of_cells_the_references_stay() -> None:
    mean = small().mean("layer")
    assert mean.dims == ("position", "example")
    assert np.array_equal(mean.values, [[0.0, 2.0], [0.5, 2.0], [4.0, 8.0]])
    assert mean.references["clean"].tolist() == [4.0, 6.0]


def test_a_cell_that_failed_for_all_is_still_failed() -> None:
    grid = Grid([[NAN, NAN], [1.0, NAN]], ("layer", "example"), failed={(0, 0): "first", (0, 1): "second"})
    assert grid.mean("example").failed == {(0,): "first"}
    assert grid.n("example").failed == {}
    assert grid.n("example").values.tolist() == [0.0, 1.0]


def test_nothing_is_left() -> None:
    grid = Grid([1.0, 2.0, 6.0], ("example",))
    assert grid.mean("example") == 3.0
    assert grid.n("example") == 3.0
    assert isinstance(grid.sel(example=1), float)
    with pytest.raises(IITKitError, match="no axis 'layer'; it has example"):
        grid.mean("layer")


def test_infinities_are_values() -> None:
    grid = Grid([[-math.inf, 1.0], [math.inf, -math.inf]], ("layer", "example"))
    assert grid.mean("example").values[0] == -math.inf
    assert math.isnan(grid.mean("example").values[1])
    assert np.isnan(grid.stderr("example").values).all()


# Several


def test_arithmetic() -> None:
    grid = small()
    twice = grid + grid
    assert np.array_equal(twice.values, 2 * grid.values, equal_nan=True)
    assert np.array_equal((twice - grid).values, grid.values, equal_nan=True)
    assert (grid - grid).references["clean"].tolist() == [0.0, 0.0]
    assert (grid * 2).references["clean"].tolist() == [8.0, 12.0]
    assert (grid / 2).values[0, 0].tolist() == [0.5, 1.5]
    assert (grid - 1).about["difference"] == 1.0
    assert twice.failed == grid.failed
    assert (small(failed={}) - grid).failed == grid.failed == (grid - small(failed={})).failed
    other = small(about={"kind": "patch", "model": "big"}, references={"clean": [1.0, 1.0]})
    difference = grid - other
    assert difference.references.keys() == {"clean"}
    assert difference.references["clean"].tolist() == [3.0, 5.0]
    assert difference.about["kind"] == "patch"
    assert [told["model"] for told in difference.about["difference"]] == ["tiny", "big"]


def test_no_arithmetic_of_other_grids() -> None:
    with pytest.raises(IITKitError, match=r"no difference of grids over \(layer, position, example\) and \(position"):
        small() - small().sel(layer=2)
    moved = small(coords={"layer": [2, 6], "position": LABELS, "example": ["France", "Japan"]})
    with pytest.raises(IITKitError, match=r"no sum of grids with other labels along layer: 2, 5 \| 2, 6"):
        small() + moved


def test_join_along_an_axis() -> None:
    grid = small()
    parts = [grid.sel(example=["France"]), grid.sel(example=["Japan"])]
    assert Grid.join(parts, "example").equals(grid)
    layers = [grid.sel(layer=[2]), grid.sel(layer=[5])]
    assert Grid.join(layers, "layer").equals(grid)
    with pytest.raises(IITKitError, match="axis 'layer' has the label 2 twice"):
        Grid.join([layers[0], layers[0]], "layer")
    other = Grid(layers[1].values, grid.dims, layers[1].coords, {"clean": [4.0, 7.0], "corrupt": [0.0, 1.0]})
    with pytest.raises(IITKitError, match="'clean' runs differ: no joining along layer"):
        Grid.join([layers[0], other], "layer")


def test_stack_along_a_new_axis() -> None:
    one, two = small().sel(example="France"), small().sel(example="Japan")
    joined = Grid.join([one, two], "example", ["France", "Japan"])
    assert joined.dims == ("layer", "position", "example")
    assert np.array_equal(joined.values, small().values, equal_nan=True)
    assert joined.failed == small().failed
    assert joined.references["clean"].tolist() == [4.0, 6.0]
    assert joined.about["joined"] == [{"selected": {"example": "France"}}, {"selected": {"example": "Japan"}}]
    assert joined.about["model"] == "tiny"
    components = Grid.join([one, one], "component", ["mlp_output", "attention_output"])
    assert components.dims == ("component", "layer", "position")  # in the usual order
    assert components.references["clean"] == 4.0
    assert Grid.join([one, one], "seed").dims == ("layer", "position", "seed")
    assert Grid.join([one, one], "seed").references["clean"].tolist() == [4.0, 4.0]
    assert Grid.join([one, one], "seed").coords["seed"] == [0, 1]


def test_no_joining_of_other_grids() -> None:
    grid = small()
    with pytest.raises(IITKitError, match="nothing to join"):
        Grid.join([], "example")
    with pytest.raises(IITKitError, match="other labels along position cannot be joined along example"):
        Grid.join([grid, grid.isel(position=[0, 1])], "example")
    with pytest.raises(IITKitError, match="cannot be joined"):
        Grid.join([grid, grid.sel(layer=2)], "example")
    with pytest.raises(IITKitError, match="labels= is for a new axis"):
        Grid.join([grid], "example", ["a"])


# Seen


def test_it_says_what_it_is() -> None:
    assert repr(small()).splitlines() == [
        "Grid layer 2 × position 3 × example 2",
        "  layer     2, 5",
        "  position  0 'The', 1 ' cat', 10 ' sat'",
        "  example   France, Japan",
        "  highest   8 at layer 2, position 10 ' sat', example Japan",
        "  lowest    -1 at layer 5, position 0 'The', example France",
        "  clean     4 … 6",
        "  corrupt   0 … 1",
        "  gaps      2 of 12 values missing, 1 failed",
        "  about     kind patch, model tiny, seed 3",
    ]
    big = Grid(np.full((30, 20), NAN), ("layer", "position"))
    assert repr(big).splitlines() == [
        "Grid layer 30 × position 20",
        "  layer     0, 1, 2, 3, 4, … 29",
        "  position  0, 1, 2, 3, 4, … 19",
        "  gaps      600 of 600 values missing, 0 failed",
    ]


def test_the_long_form() -> None:
    frame = small().to_frame()
    assert list(frame.columns) == ["layer", "position", "example", "value", "failed"]
    assert len(frame) == 12
    assert frame["layer"].tolist() == [2] * 6 + [5] * 6
    assert frame["position"].tolist()[:4] == [LABELS[0], LABELS[0], LABELS[1], LABELS[1]]
    assert frame["example"].tolist()[:2] == ["France", "Japan"]
    assert frame["value"].tolist()[:6] == [1.0, 3.0, 0.5, 0.0, 2.0, 8.0]
    assert frame["failed"].tolist() == [""] * 11 + ["RuntimeError: out of memory"]
    assert frame[(frame.layer == 5) & (frame.example == "France")]["value"].max() == 6.0


def test_pandas_is_asked_for_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(IITKitError, match=r"needs pandas: pip install datasets"):
        small().to_frame()


# Kept


def odd() -> Grid:
    """What a file might lose: NaN, infinities, −0, tiny and long numbers, labels of all kinds, failures."""
    return Grid(
        [[[0.1, NAN, -0.0], [math.inf, -math.inf, 5e-324]], [[1 / 3, NAN, 1.7976931348623157e308], [NAN, 2.0, 1e-17]]],
        ("component", "position", "metric"),
        {"component": ["mlp_output", True], "position": ["0 '</script>'", "1 '\"\n\u2028猫'"], "metric": ["a", 2, 2.5]},
        {"clean": [0.1 + 0.2, NAN, math.inf], "corrupt": [1.0, 2.0, 3.0]},
        {(0, 0, 1): "IITKitError: no", (1, 1, 0): "x"},
        {"prompts": ["a", "ü"], "nothing": None, "odd": NAN, "deep": {"a": [1, 2.5, True, {"b": -math.inf}]}},
    )


@pytest.mark.parametrize("make", [small, odd])
def test_there_and_back(tmp_path: Path, make: Any) -> None:
    grid = make()
    stem = grid.save(tmp_path / "deep" / "fact.3")
    assert stem == tmp_path / "deep" / "fact.3"
    assert sorted(file.name for file in stem.parent.iterdir()) == ["fact.3.json", "fact.3.parquet"]
    for name in ("fact.3", "fact.3.json", "fact.3.parquet"):
        back = Grid.load(stem.with_name(name))
        assert back.values.tobytes() == grid.values.tobytes()
        assert (back.dims, back.coords, back.failed) == (grid.dims, grid.coords, grid.failed)
        assert {key: ref.tobytes() for key, ref in back.references.items()} == {
            key: ref.tobytes() for key, ref in grid.references.items()
        }
        assert repr(back.about) == repr(grid.about)  # NaN is not itself
        assert [type(label) for label in back.coords[grid.dims[0]]] == [
            type(label) for label in grid.coords[grid.dims[0]]
        ]


def test_round_trip_of_one_cell_and_equality(tmp_path: Path) -> None:
    grid = small()
    assert grid.equals(Grid.load(grid.save(tmp_path / "a")))
    assert not grid.equals(small(about={}))
    assert not grid.equals(small(references={}))
    assert not grid.equals(grid + 1)
    assert not grid.equals("grid")


def test_others_can_read_the_files(tmp_path: Path) -> None:
    import pandas as pd

    stem = small().save(tmp_path / "grid")
    frame = pd.read_parquet(tmp_path / "grid.parquet")
    assert list(frame.columns) == ["layer", "position", "example", "value"]
    assert frame["layer"].tolist() == [2] * 6 + [5] * 6
    assert frame["position"].astype(str).tolist()[2] == "1 ' cat'"
    assert frame["value"].tolist()[:3] == [1.0, 3.0, 0.5]
    described = json.loads((tmp_path / "grid.json").read_text("utf-8"), parse_constant=pytest.fail)  # strict JSON
    assert described["coords"]["position"] == LABELS
    assert described["references"]["clean"] == {"shape": [2], "values": [4.0, 6.0]}
    assert stem.name == "grid"


def test_saving_again_replaces_and_a_failed_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid"
    small().save(path)
    (small() + 1).save(path)
    assert Grid.load(path).values[0, 0, 0] == 2.0

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        small().save(path)
    monkeypatch.undo()
    assert Grid.load(path).values[0, 0, 0] == 2.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grid.json", "grid.parquet"]


def spoil(stem: Path, how: str) -> None:
    values, rest = stem.with_name("grid.parquet"), stem.with_name("grid.json")
    if how == "no values":
        values.unlink()
    elif how == "no json":
        rest.unlink()
    elif how == "cut values":
        values.write_bytes(values.read_bytes()[:-40])
    elif how == "cut json":
        rest.write_bytes(rest.read_bytes()[:-40])
    elif how == "binary json":
        rest.write_bytes(b"\xff\xfe\x00\x80")
    elif how == "list":
        rest.write_text("[1, 2]")
    else:
        described = json.loads(rest.read_text("utf-8"))
        key, value = {
            "foreign": ("iitkit_grid", None),
            "newer": ("iitkit_grid", 2),
            "labels": ("coords", {"layer": [1], "position": LABELS, "example": ["a", "b"]}),
            "no labels": ("coords", {}),
            "failed": ("failed", [[[9, 9, 9], "x"]]),
            "odd failed": ("failed", [3]),
            "references": ("references", {"clean": {"shape": [3], "values": [1.0, 2.0, 3.0]}}),
            "about": ("about", 3),
        }[how]
        if value is None:
            del described[key]
        else:
            described[key] = value
        rest.write_text(json.dumps(described), "utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no values", "grid.parquet is missing; expected grid.json and grid.parquet"),
        ("no json", "grid.json is missing"),
        ("cut values", "grid.parquet is damaged or was not written with grid.json"),
        ("cut json", "grid.json is damaged or no grid's file"),
        ("binary json", "grid.json is damaged or no grid's file"),
        ("list", "grid.json is no grid's file"),
        ("foreign", "grid.json is no grid's file"),
        ("newer", "is of format 2; this iitkit reads 1"),
        ("labels", "grid.json is damaged: ValueError: cannot reshape"),
        ("no labels", "grid.json is damaged: KeyError: 'layer'"),
        ("failed", "grid.json is damaged: IITKitError: failed: no cell has index"),
        ("odd failed", "grid.json is damaged: TypeError"),
        ("references", "grid.json is damaged: IITKitError: reference 'clean' has shape"),
        ("about", "grid.json is damaged: IITKitError: about is a int; expected a dict"),
    ],
)
def test_damaged_files_are_refused_in_a_line(tmp_path: Path, how: str, message: str) -> None:
    stem = small().save(tmp_path / "grid")
    spoil(stem, how)
    with pytest.raises(IITKitError, match=message) as caught:
        Grid.load(stem)
    assert "\n" not in str(caught.value)


def test_pyarrow_is_asked_for_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(IITKitError, match="need pyarrow: pip install datasets"):
        small().save(tmp_path / "grid")
    assert list(tmp_path.iterdir()) == []


def test_what_users_call_is_exported_and_says_what_it_does() -> None:
    for name in ("Fact", "Grid", "Prompt", "attribute", "lens", "patch", "patch_paths", "trace"):
        assert name in iitkit.__all__
        found = getattr(iitkit, name)
        assert found.__module__.startswith("iitkit.analysis.")
        assert "Args:" in found.__doc__
