"""Pictures of grids: what stands where, in which colour, with which label; looked up in the figure, not guessed."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from iitkit.analysis import looks
from iitkit.analysis.grid import Grid
from iitkit.analysis.plots import plot, save_png
from iitkit.errors import IITKitError

NAN = math.nan
TOKENS = ["0 'The'", "1 ' $x$'", "2 ' 猫\\n'"]
VALUES = [[-1.0, 0.5, 3.0], [0.0, NAN, -2.0]]


def one(**changes: Any) -> Grid:
    """Layers 4 and 5 × three positions, logit differences between a corrupt and a clean run."""
    given: dict[str, Any] = {
        "values": VALUES,
        "dims": ("layer", "position"),
        "coords": {"layer": [4, 5], "position": TOKENS},
        "references": {"clean": 4.0, "nothing": -1.0},
        "failed": {(1, 1): "RuntimeError: no"},
        "about": {"kind": "patch", "model": "org/tiny-model", "metric": "logit_difference"},
    }
    return Grid(**{**given, **changes})


def drawn(figure: Figure) -> list[Any]:
    return [axis for axis in figure.axes if axis.images]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


# Heat maps


def test_a_heat_map_by_hand() -> None:
    figure = plot(one())
    (axis,) = drawn(figure)
    (image,) = axis.images
    shown = image.get_array()
    assert np.array_equal(shown.filled(NAN), VALUES, equal_nan=True)
    assert image.origin == "lower"  # layer 4 below layer 5
    assert (image.norm.vmin, image.norm.vmax) == (
        -6.0,
        4.0,
    )  # ± 5 about the run into which was patched, to the clean one
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("position", "layer")
    assert texts(axis.get_yticklabels()) == ["4", "5"]
    assert texts(axis.get_xticklabels()) == ["0 'The'", "1 ' $x$'", "2 ' �\\n'"]  # DejaVu has no 猫
    assert not any(label.get_parse_math() for label in axis.get_xticklabels())  # $x$ is a token, not mathematics
    bar = next(other for other in figure.axes if not other.images)
    assert bar.get_ylabel() == "logit difference (logits)"
    assert bar.get_ylim() == (-2.0, 4.0)  # what of the colours is used
    assert texts(bar.texts) == ["nothing", "clean"]
    title = figure.get_suptitle()
    assert title.split("\n")[0] == "patch · tiny-model"
    assert title.replace("\N{NO-BREAK SPACE}", " ").replace("\n", " · ").split(" · ")[2:] == [
        "hatched: failed", "clean 4", "nothing -1",
    ]  # fmt: skip


def test_layers_are_rows_in_whatever_order_the_axes_are() -> None:
    turned = Grid(np.transpose(VALUES), ("position", "layer"), {"layer": [4, 5]}, failed={(1, 1): "no"})
    (axis,) = drawn(plot(turned))
    assert axis.get_ylabel() == "layer"
    assert np.array_equal(axis.images[0].get_array().filled(NAN), VALUES, equal_nan=True)
    (axis,) = drawn(plot(turned, x="layer"))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("layer", "position")
    assert np.array_equal(axis.images[0].get_array().filled(NAN), np.transpose(VALUES), equal_nan=True)


def test_failed_cells_stand_where_their_values_do() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [NAN, NAN]])
    turned = Grid(values, ("position", "layer"), failed={(2, 0): "no"})
    (axis,) = drawn(plot(turned))
    assert marked(axis, "failed") == [(1.5, -0.5)]  # column 2, row 0
    assert marked(axis, "missing") == [(1.5, 0.5)]
    (axis,) = drawn(plot(turned, x="layer"))
    assert marked(axis, "failed") == [(-0.5, 1.5)]


def marked(axis: Any, gid: str) -> list[tuple[float, float]]:
    found = [collection for collection in axis.collections if collection.get_gid() == gid]
    return [tuple(path.vertices[0]) for collection in found for path in collection.get_paths()]


def test_failed_cells_are_hatched_and_missing_ones_dotted() -> None:
    values = [[NAN, 0.5, 3.0], [0.0, NAN, -2.0]]
    (axis,) = drawn(plot(one(values=values)))
    assert marked(axis, "failed") == [(0.5, 0.5)]  # the lower left corner of column 1, row 1
    assert marked(axis, "missing") == [(-0.5, -0.5)]
    (axis,) = drawn(plot(one(values=values), x="layer"))
    assert marked(axis, "failed") == [(0.5, 0.5)]
    assert marked(axis, "missing") == [(-0.5, -0.5)]
    (axis,) = drawn(plot(one(values=np.zeros((2, 3)), failed={})))
    assert axis.collections == [] or len(axis.collections) == 0


@pytest.mark.parametrize(
    ("metric", "references", "options", "expected"),
    [
        ("logit_difference", {"nothing": -1.0, "clean": 4.0}, {}, (-6.0, 4.0)),
        ("logit_difference", {"corrupt": -1.0, "clean": 4.0}, {}, (-6.0, 4.0)),
        ("logit_difference", {"nothing": -1.0, "clean": 4.0}, {"limits": "values"}, (-5.0, 3.0)),
        ("logit_difference", {"nothing": -1.0, "clean": 4.0}, {"centre": 0}, (-4.0, 4.0)),
        ("logit_difference", {"nothing": -1.0, "clean": 4.0}, {"centre": "clean"}, (-2.0, 10.0)),
        ("logit_difference", {"nothing": -1.0, "clean": 4.0}, {"limits": (-2, 2)}, (-4.0, 2.0)),
        ("logit_difference", {}, {}, (-3.0, 3.0)),
        ("recovered_logit_difference", {"nothing": -1.0, "clean": 4.0}, {}, (-4.0, 4.0)),
        ("indirect_effect", {"corrupt": -1.0}, {}, (-3.0, 3.0)),
        ("kl_from_clean", {"nothing": 2.0}, {}, (-2.0, 6.0)),
    ],
)
def test_the_middle_and_the_reach_of_the_colours(
    metric: str, references: dict[str, float], options: dict[str, Any], expected: tuple[float, float]
) -> None:
    (axis,) = drawn(plot(one(about={"metric": metric}, references=references), **options))
    assert (axis.images[0].norm.vmin, axis.images[0].norm.vmax) == expected


def test_standard_errors_are_seen_from_zero() -> None:
    values = [[[1.0, 3.0], [2.0, 2.0]], [[0.0, 8.0], [5.0, 5.0]]]
    grid = Grid(values, ("layer", "position", "example"), references={"nothing": [3.0, 9.0]})
    figure = plot(grid.stderr("example"), limits="values")
    (axis,) = drawn(figure)
    assert (axis.images[0].norm.vmin, axis.images[0].norm.vmax) == (-4.0, 4.0)
    assert figure.axes[1].get_ylabel() == "standard error of value"


def test_all_the_same_and_infinite_values_can_be_drawn() -> None:
    (axis,) = drawn(plot(Grid(np.full((2, 3), 0.0), ("layer", "position"))))
    assert (axis.images[0].norm.vmin, axis.images[0].norm.vmax) == (-1.0, 1.0)
    figure = plot(Grid([[math.inf, 1.0], [-math.inf, NAN]], ("layer", "position")))
    (axis,) = drawn(figure)
    assert (axis.images[0].norm.vmin, axis.images[0].norm.vmax) == (-1.0, 1.0)
    shown = axis.images[0].get_array()
    assert shown[0, 0] > 1e299  # at the end of the colours
    assert shown[1, 0] < -1e299
    plot(Grid(np.full((2, 3), NAN), ("layer", "position")))


def test_a_panel_for_each_component_in_the_same_colours() -> None:
    values = np.arange(12.0).reshape(2, 2, 3)
    figure = plot(Grid(values, ("component", "layer", "position"), {"component": ["mlp_output", "attention_output"]}))
    left, right = drawn(figure)
    assert (left.get_title(), right.get_title()) == ("mlp_output", "attention_output")
    assert np.array_equal(left.images[0].get_array(), values[0])
    assert np.array_equal(right.images[0].get_array(), values[1])
    assert {axis.images[0].norm.vmax for axis in (left, right)} == {11.0}
    assert len(figure.axes) == 3  # one bar


def test_a_panel_for_each_metric_in_colours_of_its_own() -> None:
    values = np.stack([np.full((2, 3), 4.0), np.full((2, 3), 0.25)], axis=-1)
    references = {"nothing": [2.0, 0.5]}
    metrics = {"metric": ["logit_difference", "probability"]}
    figure = plot(Grid(values, ("layer", "position", "metric"), metrics, references))
    left, right = drawn(figure)
    assert (left.images[0].norm.vmin, left.images[0].norm.vmax) == (0.0, 4.0)
    assert (right.images[0].norm.vmin, right.images[0].norm.vmax) == (0.25, 0.75)
    bars = [axis for axis in figure.axes if not axis.images]
    assert [bar.get_ylabel() for bar in bars] == ["logit difference (logits)", "probability"]


def test_heads_lie_beside_layers_and_positions_make_panels() -> None:
    values = np.arange(12.0).reshape(2, 2, 3)
    grid = Grid(values, ("layer", "head", "position"))
    panels = drawn(plot(grid))
    assert [axis.get_title() for axis in panels] == ["head 0", "head 1"]
    (axis,) = drawn(plot(grid.sel(position=1)))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("head", "layer")
    assert axis.images[0].get_array().tolist() == [[1.0, 4.0], [7.0, 10.0]]
    panels = drawn(plot(grid, x="head"))
    assert [axis.get_title() for axis in panels] == ["position 0", "position 1", "position 2"]


def test_examples_and_draws_are_averaged() -> None:
    values = np.array([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [NAN, 4.0]]]])  # layer, position, example, row
    figure = plot(Grid(values, ("layer", "position", "example", "row")), y="layer")
    (axis,) = drawn(figure)
    assert axis.images[0].get_array().tolist() == [[4.0, 2.0]]
    assert "mean of 2 rows × 2 examples" in figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ")
    (axis,) = drawn(plot(Grid(values, ("layer", "position", "example", "row")).isel(row=0), x="example", y="position"))
    assert np.array_equal(axis.images[0].get_array().filled(NAN), [[1.0, 5.0], [0.0, NAN]], equal_nan=True)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of neighbouring labels of an axis that touch."""
    figure.canvas.draw()
    found = []
    for axis in drawn(figure):
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            for place, (one, two) in enumerate(itertools.pairwise(boxes)):
                if one.overlaps(two):
                    found.append((labels[place].get_text(), labels[place + 1].get_text()))
    return found


@pytest.mark.parametrize(("layers", "positions", "components"), [(48, 60, 1), (48, 60, 2), (80, 200, 1), (12, 5, 4)])
def test_labels_do_not_touch(layers: int, positions: int, components: int) -> None:
    names = [f"{place} ' antidisestablishment{place}'" for place in range(positions)]
    shape = (components, layers, positions)
    grid = Grid(np.zeros(shape), ("component", "layer", "position"), {"position": names})
    figure = plot(grid)
    assert overlapping(figure) == []
    for axis in drawn(figure):
        shown = texts(axis.get_xticklabels())
        assert max(map(len, shown)) == 18  # cut in the middle
        assert shown[0] == "0 ' antidis…ment0'"
        assert positions / len(shown) <= (2 if positions <= 60 else 8)
    assert figure.get_figwidth() <= 18.5


def test_numbers_along_the_columns_do_not_touch() -> None:
    assert overlapping(plot(Grid(np.zeros((48, 64)), ("layer", "head")))) == []


def test_the_picture_itself(tmp_path: Path) -> None:
    figure = plot(one())
    path = save_png(figure, tmp_path / "deep" / "map.png", dpi=100)
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]
    pixels = matplotlib.image.imread(path)
    wide, high = (round(inches * 100) for inches in figure.get_size_inches())
    assert pixels.shape == (high, wide, 4)
    figure.set_dpi(100)
    figure.canvas.draw()
    (axis,) = drawn(figure)

    def colour(column: int, row: int) -> list[int]:
        x, y = axis.transData.transform((column, row))
        return [round(float(part) * 255) for part in pixels[high - 1 - int(y), int(x), :3]]

    assert colour(0, 0) == pytest.approx(looks.PALETTES["light"][2], abs=3)  # where nothing happens
    # 3 is at .9 of −6 … 4: .6 of the way from the fourth colour (at .75) to the last
    assert colour(2, 0) == pytest.approx([0.4 * 214 + 0.6 * 103, 0.4 * 96, 0.4 * 77 + 0.6 * 31], abs=3)
    assert colour(2, 1)[2] > colour(2, 1)[0]  # below: blue


def test_themes_and_the_users_own_settings(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"axes.facecolor": "red", "font.size": 33, "axes.grid": True, "axes.linewidth": 9}):
        before = dict(mpl.rcParams)
        dark, light = plot(one(), theme="dark"), plot(one())
        assert dict(mpl.rcParams) == before
    assert mpl.colors.to_hex(dark.get_facecolor()) == looks.INK["dark"]["paper"]
    assert mpl.colors.to_hex(light.get_facecolor()) == "#ffffff"
    assert drawn(dark)[0].yaxis.label.get_fontsize() == 8.0
    assert drawn(dark)[0].spines["left"].get_linewidth() == 0.8
    assert not drawn(dark)[0].xaxis.get_gridlines()[0].get_visible()
    corner = matplotlib.image.imread(save_png(dark, tmp_path / "dark.png"))[0, 0, :3]
    assert [round(float(part) * 255) for part in corner] == [0x0F, 0x12, 0x16]
    assert dark._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]  # notebooks show it


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_palettes_can_be_read(theme: str) -> None:
    """Brightness runs one way from the middle to either end, and the middle is near the paper."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    bright = [luminance(colour) for colour in looks.PALETTES[theme]]
    sign = 1 if theme == "light" else -1
    assert sorted(bright[:3], reverse=sign < 0) == bright[:3]
    assert sorted(bright[2:], reverse=sign > 0) == bright[2:]
    ink = {
        name: luminance(tuple(int(code[at : at + 2], 16) for at in (1, 3, 5)))
        for name, code in looks.INK[theme].items()
    }
    ratio = (max(ink["ink"], ink["paper"]) + 0.05) / (min(ink["ink"], ink["paper"]) + 0.05)
    assert ratio > 12
    soft = (max(ink["soft"], ink["paper"]) + 0.05) / (min(ink["soft"], ink["paper"]) + 0.05)
    assert soft > 4.5
    assert abs(bright[2] - ink["paper"]) < 0.1


# Lines


def test_lines_by_hand() -> None:
    values = np.array([[[1.0, 3.0], [2.0, NAN], [0.0, 4.0]], [[5.0, 5.0], [6.0, 8.0], [7.0, 7.0]]])
    grid = Grid(
        values,
        ("component", "layer", "example"),
        {"component": ["mlp_output", "attention_output"], "layer": [2, 4, 8]},
        {"clean": [9.0, 11.0]},
        about={"metric": "probability"},
    )
    figure = plot(grid)
    (axis,) = figure.axes
    first, second, clean = axis.get_lines()
    assert first.get_xdata().tolist() == [2.0, 4.0, 8.0]  # layers where they are
    assert first.get_ydata().tolist() == [2.0, 2.0, 2.0]
    assert second.get_ydata().tolist() == [5.0, 7.0, 7.0]
    assert list(clean.get_ydata()) == [10.0, 10.0]
    assert texts(axis.get_legend().get_texts()) == ["mlp_output", "attention_output", "clean"]
    band = axis.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band.tolist()} >= {(2.0, 1.0), (2.0, 3.0), (4.0, 2.0), (8.0, 0.0), (8.0, 4.0)}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("layer", "probability")
    assert "band: ± 1 standard error" in figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ")


def test_bands_from_standard_errors_that_are_given() -> None:
    grid = Grid([[1.0, 3.0], [2.0, 6.0]], ("position", "example"), {"position": TOKENS[:2]}, failed={})
    figure = plot(grid.mean("example"), stderr=grid.stderr("example"))
    (axis,) = figure.axes
    assert axis.get_lines()[0].get_ydata().tolist() == [2.0, 4.0]
    assert {tuple(point) for point in axis.collections[0].get_paths()[0].vertices.tolist()} >= {
        (0.0, 1.0), (0.0, 3.0), (1.0, 2.0), (1.0, 6.0),
    }  # fmt: skip
    assert texts(axis.get_xticklabels()) == ["0 'The'", "1 ' $x$'"]
    assert axis.get_legend() is None
    with pytest.raises(IITKitError, match="other labels along position"):
        plot(grid.mean("example"), stderr=Grid([0.0, 0.0], ("position",)))
    with pytest.raises(IITKitError, match=r"stderr is over \(layer\); expected the values' \(position\)"):
        plot(grid.mean("example"), stderr=Grid([0.0, 0.0], ("layer",)))


def test_lines_of_several_metrics_and_a_failed_place() -> None:
    values = [[1.0, 0.1], [NAN, NAN], [3.0, 0.3]]
    grid = Grid(values, ("layer", "metric"), {"metric": ["logit_difference", "rank"]}, failed={(1,): "no"})
    figure = plot(grid)
    above, below = figure.axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("logit difference (logits)", "rank")
    assert below.get_lines()[0].get_ydata()[2] == 0.3
    (hatched,) = above.patches
    assert (hatched.get_x(), hatched.get_width()) == (0.5, 1.0)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theme": "drak"}, "theme 'drak' is not one of light, dark. Did you mean 'dark'?"),
        ({"x": "positions"}, "no axis 'positions'; it has layer, position. Did you mean 'position'?"),
        ({"x": "layer", "y": "layer"}, "rows and columns are both 'layer'"),
        ({"limits": "some"}, "limits='some'; expected all, values or two numbers"),
        ({"limits": (2, 1)}, r"limits=\(2, 1\): expected the lower one first"),
        ({"centre": "cleen"}, "no reference 'cleen'; it has clean, nothing. Did you mean 'clean'?"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        plot(one(), **options)


def test_too_many_axes_or_none() -> None:
    grid = Grid(np.zeros((2, 2, 3, 4)), ("component", "layer", "head", "position"), {"component": ["a", "b"]})
    with pytest.raises(
        IITKitError, match=r"rows are layer, columns position, panels component; choose along head: .sel\(head=0\)"
    ):
        plot(grid)
    with pytest.raises(IITKitError, match="one value is left, 2: nothing to draw"):
        plot(Grid([[2.0]], ("layer", "position")))


def test_matplotlib_is_asked_for_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(IITKitError, match=r"pip install 'iitkit\[plots\]'"):
        one().plot()


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never() -> None:
    code = (
        "import sys, numpy as np; from iitkit.analysis import plots, grid"
        "\nheavy = ('matplotlib', 'torch', 'pandas', 'pyarrow')"
        "\nprint([name for name in heavy if name in sys.modules])"
        "\ngrid.Grid(np.zeros((2, 2)), ('layer', 'position')).plot()"
        "\nprint([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_a_grid_draws_itself(tmp_path: Path) -> None:
    assert one().save_png(tmp_path / "grid.png", theme="dark").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
