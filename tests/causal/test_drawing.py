"""The drawings: text and flowchart letter by letter, the plot's places and edges by numbers."""

from __future__ import annotations

import builtins
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from iitkit.causal import CausalModel, Images, Open, Symbols, Vectors
from iitkit.causal.drawing import as_mermaid, as_text, plot
from iitkit.causal.layers import lanes, layers_of, layout
from iitkit.errors import IITKitError

mpl.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def small() -> CausalModel:
    """(Noun, plural) → subject; plural → verb."""
    model = CausalModel(prompt=["The {subject} near it", "A {subject} by it"], output="verb")
    model.variables(noun=["dog", "ox", "cat", "hen", "bee", "ant"], plural=[False, True])

    @model.mechanism
    def subject(noun: str, plural: bool) -> str:
        return f"{noun}s" if plural else noun

    @model.mechanism
    def verb(plural: bool) -> str:
        return " are" if plural else " is"

    @model.constraint
    def no_ox(noun: str) -> bool:
        return noun != "ox"

    return model


# --- text ---


def test_text_letter_by_letter() -> None:
    model = CausalModel(prompt=["The {subject} near it", "A {subject} by it"], output="verb")
    model.variables(noun=[f"word{i}" for i in range(6)], plural=[False, True])
    model.mechanism(small().mechanisms["subject"].function)
    model.mechanism(small().mechanisms["verb"].function)
    model.constraint(small().constraints["no_ox"].function)
    assert as_text(model).splitlines() == [
        "prompts",
        "  0  The {subject} near it",
        "  1  A {subject} by it",
        "     spans: subject",
        "variables (* is the output)",
        "  noun     ─┐                    6 values: 'word0', 'word1', 'word2', 'word3', …     input",
        "  plural   ─│─┐                  2 values: False, True                               input",
        "  subject  ─┴─┤  ← noun, plural  12 values: 'word0', 'word0s', 'word1', 'word1s', …  table of 12 entries",
        "* verb     ───┘  ← plural        2 values: ' is', ' are'                             table of 2 entries",
        "constraints",
        "  no_ox  ← noun  table of 6 entries",
        "candidates: every value of verb",
    ]


def test_print_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = small().print()
    assert capsys.readouterr().out == text + "\n"


def test_text_of_what_is_no_table() -> None:
    model = CausalModel(
        Symbols("{a} + {b} ="), output="total", candidates=["total"], surface={0: "zero", 3: ["three", "3"]}
    )
    model.variables(a=Open(lambda generator, n: [0] * n), b=[0, 3])

    @model.mechanism(domain=[0, 3])
    def total(a: int, b: int) -> int:
        return a + b

    @model.mechanism(vectorised=True)
    def double(total: Any) -> Any:
        return total * 2

    assert as_text(model).splitlines() == [
        "inputs: Symbols of a, b; spans: a 0:1, b 2:3",
        "variables (* is the output)",
        "  a       ─┐               open            input",
        "  b       ─│─┐             2 values: 0, 3  input",
        "* total   ─┴─┴─┐  ← a, b   2 values: 0, 3  function",
        "  double  ─────┘  ← total  2 values: 0, 6  table of 2 entries",
        "candidates: the values of total in the base",
        "answers as text: 0 is 'zero', 3 is 'three' or '3'",
    ]


def test_text_of_encodings() -> None:
    pair = CausalModel(Vectors("w", "x"), output="same")
    pair.variables(w=[(1.0, 2.0), (2.0, 3.0)], x=[(1.0, 2.0), (2.0, 3.0)])
    pair.mechanism(_same)
    assert as_text(pair).startswith("inputs: Vectors of w, x; spans: w 0:2, x 2:4\n")
    dots = CausalModel(Images((1, 1, 2), lambda w, x: np.zeros((1, 1, 2)) + w + 2 * x), output="same")
    dots.variables(w=[0, 1], x=[0, 1])
    dots.mechanism(_same)
    assert as_text(dots).startswith("inputs: Images of w, x\n")


def _same(w: object, x: object) -> bool:
    return w == x


_same.__name__ = "same"


def test_lanes_letter_by_letter() -> None:
    graph = {"a": [], "b": [], "c": [], "d": ["a", "c"], "e": ["b", "d"], "f": ["e", "a"], "g": ["f"], "h": []}
    assert lanes(graph) == [
        "─┐      ",
        "─│─┐    ",
        "─│─│─┐  ",
        "─┼─│─┴─┐",  # a goes on, c ends, d begins
        "─│─┴─┬─┘",  # e takes the lane that c left
        "─┴─┬─┘  ",
        "───┘    ",
        "        ",
    ]


def random_graph(rng: random.Random) -> dict[str, list[str]]:
    graph: dict[str, list[str]] = {}
    inputs = rng.randint(1, 5)
    for i in range(inputs + rng.randint(1, 12)):
        most = 0 if i < inputs else min(i, 3)
        graph[f"v{i}"] = rng.sample(list(graph), rng.randint(1, most)) if most else []
    return graph


@pytest.mark.parametrize("seed", range(40))
def test_lanes_say_the_graph(seed: int) -> None:
    """Follow every line from its start: it joins its variable's children and no others."""
    graph = random_graph(random.Random(seed))
    rows, order = lanes(graph), list(graph)
    found: dict[str, list[str]] = {name: [] for name in graph}
    for i, name in enumerate(order):
        starts = [k for k, cell in enumerate(rows[i]) if cell in "┐┬"]
        assert len(starts) == (1 if any(name in of for of in graph.values()) else 0)
        for k in starts:
            for child, row in zip(order[i + 1 :], rows[i + 1 :], strict=True):
                if row[k] in "┤┼┘┴":
                    assert set(row[:k]) <= set("─│┐┬┤┼┘┴")  # the row's line reaches this far
                    found[child].append(name)
                if row[k] in "┘┴":
                    break
                assert row[k] in "│┤┼"
    assert {name: sorted(of) for name, of in found.items()} == {name: sorted(of) for name, of in graph.items()}


def test_a_wide_graph_is_listed_without_lanes() -> None:
    model = CausalModel(" ".join(f"{{x{i}}}" for i in range(30)), output="answer")
    model.variables(**{f"x{i}": [0, 1] for i in range(30)})
    scope: dict[str, Any] = {}
    exec(f"def answer({', '.join(f'x{i}' for i in range(30))}): return ' s'", scope)
    model.mechanism(scope["answer"])
    lines = as_text(model).splitlines()
    assert lines[4].split() == ["x0", "2", "values:", "0,", "1", "input"]
    assert not any(mark in line for line in lines for mark in "┐┘│")
    assert lines[-2].startswith("* answer  ← x0, x1, x2,")


# --- mermaid ---


def test_mermaid_letter_by_letter() -> None:
    assert as_mermaid(small()).splitlines() == [
        "flowchart LR",
        '    v0(["noun<br/>6 values"])',
        '    v1(["plural<br/>False, True"])',
        '    v2["subject<br/>12 values"]',
        "    v3{{\"verb<br/>' is', ' are'\"}}",
        "    v0 --> v2",
        "    v1 --> v2",
        "    v1 --> v3",
        "    classDef input fill:#dbeafe,stroke:#2563eb,color:#111",
        "    class v0,v1 input",
        "    classDef computed fill:#fef3c7,stroke:#b45309,color:#111",
        "    class v2 computed",
        "    classDef output fill:#dcfce7,stroke:#15803d,color:#111",
        "    class v3 output",
    ]
    assert small().mermaid() == as_mermaid(small())


def test_mermaid_escapes_what_means_something() -> None:
    model = CausalModel(prompt="{end}", output="class_")
    model.variables(end=['"]; x["', "<b>`%%{", "#&\\|\n"])

    @model.mechanism
    def class_(end: str) -> str:
        return f" {end}"

    lines = as_mermaid(model).splitlines()
    assert lines[1] == '    v0(["end<br/>3 values"])'
    model = CausalModel(prompt="{end}", output="class_")
    model.variables(end=['"];<', "%%{`\n#"])
    model.mechanism(class_)
    lines = as_mermaid(model).splitlines()
    assert lines[1] == (
        "    v0([\"end<br/>'#34;#93;#59;#60;', '#37;#37;#123;#96;#92;n#35;'\"])"  # the line break is shown as \n
    )
    assert lines[2].startswith('    v1{{"class_<br/>')
    assert len(lines) == 8


# --- the layout ---


def test_layout_by_hand() -> None:
    found = layout({"a": [], "b": [], "c": ["a", "b"]})
    assert found.places == {"a": (0, 0.0), "b": (0, 1.0), "c": (1, 0.5)}
    assert found.paths == {("a", "c"): [(0, 0.0), (1, 0.5)], ("b", "c"): [(0, 1.0), (1, 0.5)]}


def test_layers_are_longest_paths() -> None:
    graph = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a"], "e": ["c", "d"], "f": []}
    assert layers_of(graph) == {"a": 0, "b": 1, "c": 2, "d": 1, "e": 3, "f": 0}


def test_two_edges_that_would_cross_do_not() -> None:
    places = layout({"a": [], "b": [], "of_b": ["b"], "of_a": ["a"]}).places
    assert places == {"a": (0, 0.0), "b": (0, 1.0), "of_b": (1, 1.0), "of_a": (1, 0.0)}


@pytest.mark.parametrize("seed", range(60))
def test_layouts_of_random_graphs(seed: int) -> None:
    graph = random_graph(random.Random(seed))
    found = layout(graph)
    assert found == layout(graph)
    assert list(found.places) == list(graph)
    for name, of in graph.items():
        assert all(found.places[parent][0] < found.places[name][0] for parent in of)
        assert found.places[name][0] == max((found.places[parent][0] + 1 for parent in of), default=0)
    for (x0, y0), (x1, y1) in itertools.combinations(found.places.values(), 2):
        assert x0 != x1 or abs(y0 - y1) >= 1 - 1e-5
    assert min(y for path in [*found.paths.values(), list(found.places.values())] for _, y in path) >= 0
    assert set(found.paths) == {(parent, name) for name, of in graph.items() for parent in of}
    for (parent, child), path in found.paths.items():
        assert (path[0], path[-1]) == (found.places[parent], found.places[child])
        assert [x for x, _ in path] == list(range(path[0][0], path[-1][0] + 1))  # every layer between
        for x, y in path[1:-1]:
            near = [abs(y - other) for name, (layer, other) in found.places.items() if layer == x]
            assert min(near, default=1.0) >= 0.6 - 1e-5  # it passes beside the variables


# --- the plot ---


def built(graph: dict[str, list[str]]) -> CausalModel:
    """A model of a graph, whose last variable is the output."""
    model = CausalModel(" ".join(f"{{{name}}}" for name, of in graph.items() if not of), output=list(graph)[-1])
    model.variables(**{name: ["left", "right"] for name, of in graph.items() if not of})
    for name, of in graph.items():
        scope: dict[str, Any] = {}
        if of:
            exec(f"def {name}({', '.join(of)}): return {' + '.join(f'{parent}[:1]' for parent in of)}", scope)
            model.mechanism(scope[name])
    return model.compile()


def boxes(ax: Any) -> dict[str, Any]:
    """Name → the extent of its box, in pixels, as drawn."""
    ax.figure.canvas.draw()
    return {text.get_text().split("\n")[0]: text.get_bbox_patch().get_window_extent() for text in ax.texts}


def arrows(ax: Any) -> dict[str, Any]:
    """``parent→child`` → points on the line, in pixels, as drawn."""
    found = {}
    for patch in ax.patches:
        if patch.get_gid():
            path = patch.get_transform().transform_path(patch._path_original)
            found[patch.get_gid()] = path.interpolated(1).to_polygons(closed_only=False)[0]
    return found


def overlap(one: Any, other: Any) -> bool:
    return bool(one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)


@pytest.mark.parametrize("size", [None, (3, 2), (12, 8)], ids=["own", "cramped", "large"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5])
def test_nothing_overlaps(seed: int, size: tuple[float, float] | None) -> None:
    graph = random_graph(random.Random(seed))
    ax = built(graph).plot(None if size is None else plt.subplots(figsize=size)[1])
    found, lines = boxes(ax), arrows(ax)
    assert set(found) == set(graph)
    for one, other in itertools.combinations(found, 2):
        assert not overlap(found[one], found[other]), (one, other)
    assert set(lines) == {f"{parent}→{name}" for name, of in graph.items() for parent in of}
    for name, points in lines.items():
        parent, child = name.split("→")
        assert points[0, 0] == pytest.approx(found[parent].x1, abs=2)  # from the right end of the one
        assert points[-1, 0] == pytest.approx(found[child].x0, abs=2)  # to the left end of the other
        assert found[child].y0 < points[-1, 1] < found[child].y1
        for other, box in found.items():
            inside = (
                (points[:, 0] > box.x0 + 2)
                & (points[:, 0] < box.x1 - 2)
                & (points[:, 1] > box.y0)
                & (points[:, 1] < box.y1)
            )
            assert not inside.any(), (name, other)


def test_plot_goes_where_it_is_told() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plot(small(), left) is left
    assert not right.texts
    assert len(plt.get_fignums()) == 1
    assert left.texts[0].get_text().startswith("noun")
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["input", "computed", "output"]
    widths = {text.get_text().split("\n")[0]: text.get_bbox_patch().get_linewidth() for text in left.texts}
    assert [name for name, width in widths.items() if width > 2] == ["verb"]  # the output is marked


@pytest.mark.parametrize(("style", "dark"), [("default", False), ("dark_background", True)])
def test_lines_are_seen_on_any_background(style: str, dark: bool) -> None:
    with plt.style.context(style):
        ax = small().plot()
        ink = [patch.get_edgecolor() for patch in ax.patches if patch.get_gid()]
        legend = [mpl.colors.to_rgba(text.get_color()) for text in ax.get_legend().get_texts()]
    assert len(ink) == 3
    for red, green, blue, _ in [*ink, *legend]:
        assert (min(red, green, blue) > 0.8) if dark else (max(red, green, blue) < 0.2)
    assert {text.get_color() for text in ax.texts} == {"#111"}  # on boxes that are light


def test_an_unknown_background_has_the_styles_own_ink() -> None:
    figure, ax = plt.subplots(facecolor="none")
    with mpl.rc_context({"text.color": "#ff0000"}):
        small().plot(ax)
    assert mpl.colors.to_hex(next(patch for patch in ax.patches if patch.get_gid()).get_edgecolor()) == "#ff0000"
    assert figure.get_facecolor()[3] == 0


def test_the_same_plot_twice(tmp_path: Any) -> None:
    for name in ("one", "other"):
        small().plot().figure.savefig(tmp_path / f"{name}.png", metadata={"Software": None})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_values_are_no_formulas() -> None:
    model = CausalModel(prompt="{x}", output="answer")
    model.variables(x=["$\\frac$", "a_b^c"])

    @model.mechanism
    def answer(x: str) -> str:
        return f" {x}"

    model.plot().figure.canvas.draw()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(IITKitError, match=r"^a plot needs matplotlib: pip install 'iitkit\[plots\]'$"):
        small().plot()
    assert small().mermaid().startswith("flowchart")  # what needs no matplotlib works
