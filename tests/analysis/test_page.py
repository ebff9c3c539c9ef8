"""The interactive page: what its file holds, and what a reader sees in a headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from browser import Browser, browser

from iitkit.analysis import looks
from iitkit.analysis import page as pages
from iitkit.analysis.grid import Grid
from iitkit.analysis.page import as_html, content, page
from iitkit.errors import IITKitError

NAN = math.nan
VOID = {"meta", "br", "hr", "img", "input", "link", "canvas/"}
NASTY = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "\"'`${window.broken = 3}\\",
    "<!-- --> ]]> &lt; &amp; {{script}}",
    "\u2028\n猫\u0000",
]


def small(**changes: Any) -> Grid:
    """Two components × layers 4 and 5 × three positions × two metrics × two examples."""
    values = np.array(
        [
            [[[1.0, 3.0], [0.0, 0.0], [NAN, NAN]], [[2.0, 8.0], [5.0, NAN], [-3.0, -5.0]]],
            [[[0.5, 0.5], [0.25, 0.25], [0.0, 1.0]], [[9.0, 11.0], [1.0, 1.0], [1.0, 1.0]]],
        ]
    )
    given: dict[str, Any] = {
        "values": np.stack([values, values / 100], axis=-2),
        "dims": ("component", "layer", "position", "metric", "example"),
        "coords": {
            "component": ["mlp_output", "attention_output"],
            "layer": [4, 5],
            "position": ["0 'The'", "1 ' capital'", "2 ' of'"],
            "metric": ["logit_difference", "indirect_effect"],
            "example": ["France", "Japan"],
        },
        "references": {"clean": [[8.0, 12.0], [0.08, 0.12]], "nothing": [[-1.0, 1.0], [0.0, 0.0]]},
        "failed": {(0, 0, 2): "RuntimeError: out of memory"},
        "about": {"kind": "patch", "model": "org/tiny", "seed": 3, "odd": NAN},
    }
    return Grid(**{**given, **changes})


class Reader(HTMLParser):
    """Tags, attributes and the text of scripts, as a browser would take them apart; complains of tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def held(self) -> dict[str, Any]:
        (data,) = (
            text
            for text, (_, attrs) in zip(self.texts["script"], self.scripts(), strict=True)
            if attrs.get("id") == "data"
        )
        found: dict[str, Any] = json.loads(data)
        return found

    def scripts(self) -> list[tuple[str, dict[str, str | None]]]:
        return [tag for tag in self.tags if tag[0] == "script"]


# The file


def test_what_the_file_holds() -> None:
    held = Reader(as_html(small())).held()
    assert [(dim["name"], len(dim["labels"]), dim["cell"]) for dim in held["dims"]] == [
        ("component", 2, True), ("layer", 2, True), ("position", 3, True), ("metric", 2, False), ("example", 2, False),
    ]  # fmt: skip
    assert held["dims"][1]["labels"] == [4, 5]
    assert (held["x"], held["y"]) == ("position", "layer")
    assert held["values"][:12] == [1.0, 3.0, 0.01, 0.03, 0.0, 0.0, 0.0, 0.0, None, None, None, None]
    assert len(held["values"]) == 48
    assert held["failed"] == [[8, 0], [9, 0], [10, 0], [11, 0]]
    assert held["lines"] == ["RuntimeError: out of memory"]
    assert held["references"] == {"clean": [8.0, 12.0, 0.08, 0.12], "nothing": [-1.0, 1.0, 0.0, 0.0]}
    assert held["metrics"] == [
        {"name": "logit_difference", "title": "logit difference", "unit": "logits", "baseline": "nothing"},
        {"name": "indirect_effect", "title": "indirect effect", "unit": "change in probability", "baseline": None},
    ]
    assert held["summary"] is None
    assert held["about"] == {"kind": "patch", "model": "org/tiny", "seed": 3, "odd": "nan"}


def test_six_digits_and_numbers_that_json_has_not() -> None:
    grid = Grid([1 / 3, -1234567.0, 1e-9, math.inf, -math.inf, NAN], ("layer",))
    assert content(grid)["values"] == [0.333333, -1234570.0, 1e-9, "Infinity", "-Infinity", None]


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run() -> None:
    text = as_html(small())
    reader = Reader(text)
    kinds = {tag for tag, _ in reader.tags}
    assert not kinds & {"link", "img", "iframe", "object", "embed", "base", "video", "audio", "source", "svg"}
    for tag, attrs in reader.tags:
        assert not {"src", "href", "action", "data", "srcset", "style"} & attrs.keys(), tag
        assert not [name for name in attrs if name.startswith("on")], tag
    for sign in (
        "http:",
        "https:",
        "//cdn",
        "url(",
        "@import",
        "fetch(",
        "XMLHttpRequest",
        "innerHTML",
        "eval(",
        "import(",
    ):
        assert sign not in text, sign
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv"))
    assert policy is not None
    script, style = reader.texts["script"][1], reader.texts["style"][0]
    for kind, part in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_tokens_cannot_break_out() -> None:
    grid = nasty()
    text = as_html(grid, title=NASTY[0])
    reader = Reader(text)
    assert len(reader.scripts()) == 2
    assert reader.texts["title"] == [NASTY[0]]
    held = reader.held()
    assert held["dims"][1]["labels"] == NASTY
    assert set(held["lines"]) == {" ".join(line.split()) for line in NASTY[:2]}
    assert held["about"]["prompt"] == NASTY[0]
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert not set("<>&\u2028\n") & set(data[1])
    assert json.loads(data[1]) == held


def test_of_too_many_values_the_averages_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 47)
    held = content(small())
    assert [dim["name"] for dim in held["dims"]] == ["component", "layer", "position", "metric"]
    assert held["values"][:5] == [2.0, 0.02, 0.0, 0.0, None]
    assert held["summary"]["stderr"][:2] == [1.0, 0.01]
    assert held["summary"]["n"] == [2, 2, 2, 2, 0, 0, 2, 2, 1, 1, *([2] * 14)]
    assert (held["summary"]["of"], held["summary"]["over"]) == (2, "example")
    assert held["told"] == "mean of 2 examples"
    assert held["references"]["clean"] == [10.0, 0.1]


def test_a_page_of_30_layers_20_positions_5_components_is_small(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 30, 20))
    grid = Grid(values, ("component", "layer", "position"), {"position": [f"{at} ' token'" for at in range(20)]})
    path = page(grid, tmp_path / "deep" / "grid.html")
    assert [file.name for file in path.parent.iterdir()] == ["grid.html"]
    assert path.stat().st_size < 60_000
    with_examples = np.random.default_rng(0).normal(size=(5, 30, 20, 8))
    assert grid.page(tmp_path / "grid.html").read_text("utf-8") == path.read_text("utf-8")
    assert len(as_html(Grid(with_examples, ("component", "layer", "position", "example"))).encode()) < 300_000


def test_what_a_page_cannot_show() -> None:
    with pytest.raises(IITKitError, match=r"needs an axis of cells, e.g. layer or position; the grid has example"):
        content(Grid([1.0, 2.0], ("example",)))
    with pytest.raises(IITKitError, match=r"theme 'drak' is not one of auto, light, dark. Did you mean 'dark'\?"):
        as_html(small(), theme="drak")
    with pytest.raises(IITKitError, match=r"stderr is over other axes or labels than the values; expected \(component"):
        content(small(), stderr=small().mean("example"))


# What a reader sees


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


class Seen:
    """A grid's page in the browser."""

    def __init__(self, tab: Browser, path: Path, grid: Grid, width: int = 1200, scheme: str = "light", **options: Any):
        self.tab = tab
        tab.open(page(grid, path / "grid.html", **options), width=width, scheme=scheme)
        assert tab.complaints() == []

    def text(self, name: str) -> str:
        found: str = self.tab.run(f"document.getElementById({name!r}).textContent")
        return found

    def hover(self, column: int, row: int) -> list[str]:
        """Point at a cell; returns what is shown beside it."""
        self.tab.run("document.getElementById('stage').scrollIntoView()")
        self.tab.move(*self.tab.run(f"iitkit.place({column}, {row})"))
        assert self.tab.run("document.getElementById('tip').hidden") is False
        return self.text("tip").split("\n")

    def choose(self, name: str, text: str) -> None:
        self.tab.run(
            f"(() => {{ const list = document.getElementById('choose-{name}');"
            f"list.value = [...list.options].find((option) => option.text === {json.dumps(text)}).value;"
            "list.dispatchEvent(new Event('change')); })()"
        )

    def choices(self, name: str) -> list[str]:
        found: list[str] = self.tab.run(f"[...document.getElementById('choose-{name}').options].map((one) => one.text)")
        return found

    def keys(self, *keys: str) -> str:
        for key in keys:
            self.tab.press(key)
        return self.text("readout")

    def colour(self, column: int, row: int) -> list[int]:
        """The colour on the screen in a cell's middle."""
        self.tab.run("document.getElementById('stage').scrollIntoView()")
        x, y = self.tab.run(f"iitkit.place({column}, {row})")
        pixels = matplotlib.image.imread(io.BytesIO(self.tab.picture()))
        return [round(float(part) * 255) for part in pixels[int(y), int(x), :3]]


def test_pointing_at_a_cell(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small())
    assert tab.requests() == [(tmp_path / "grid.html").resolve().as_uri()]
    assert seen.hover(0, 1) == [
        "component mlp_output",
        "layer 5",
        "position 0 'The'",
        "logit difference 5 logits",
        "standard error 3",
        "5 from nothing",
        "n 2 (example)",
    ]
    assert seen.hover(1, 1)[3:] == ["logit difference 5 logits", "5 from nothing", "n 1 of 2 (example)"]
    assert seen.hover(2, 0)[3:] == [
        "logit difference missing",
        "n 0 of 2 (example)",
        "failed 2 times: RuntimeError: out of memory",
    ]
    assert seen.hover(2, 1)[3:] == [
        "logit difference −4 logits",
        "standard error 1",
        "−4 from nothing",
        "n 2 (example)",
    ]
    tab.move(5, 5)
    assert tab.run("document.getElementById('tip').hidden") is True
    assert seen.text("told") == "clean 10 · nothing 0 · hatched: 1 failed"
    assert tab.complaints() == []


def test_choosing_metric_component_and_example(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small())
    assert seen.choices("example") == ["mean of 2", "France", "Japan"]
    assert seen.choices("metric") == ["logit_difference", "indirect_effect"]
    seen.choose("component", "attention_output")
    assert seen.hover(0, 1)[0::3] == ["component attention_output", "logit difference 10 logits", "n 2 (example)"]
    seen.choose("example", "Japan")
    assert seen.hover(0, 1)[3:] == ["logit difference 11 logits", "10 from nothing", "example Japan"]
    assert seen.text("told") == "clean 12 · nothing 1 · hatched: 1 failed · dotted: 1 missing"
    seen.choose("metric", "indirect_effect")
    assert seen.hover(0, 1)[3:] == ["indirect effect 0.11 change in probability", "example Japan"]
    seen.choose("component", "mlp_output")
    assert seen.hover(2, 0)[3:] == [
        "indirect effect missing",
        "example Japan",
        "failed: RuntimeError: out of memory",
    ]
    assert tab.complaints() == []


def test_rows_and_columns(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small())
    seen.choose("rows", "component")
    assert tab.run("[iitkit.state.x, iitkit.state.y]") == ["position", "component"]
    assert seen.choices("layer") == ["4", "5"]
    assert seen.hover(0, 1)[:4] == [
        "component attention_output", "layer 4", "position 0 'The'", "logit difference 0.5 logits",
    ]  # fmt: skip
    seen.choose("columns", "component")  # what was there changes places with it
    assert tab.run("[iitkit.state.x, iitkit.state.y]") == ["component", "position"]


def test_draws_of_an_example_are_no_sample_of_examples(tab: Browser, tmp_path: Path) -> None:
    values = [[[[1.0, 3.0], [5.0, 7.0], [NAN, 12.0]]]]
    seen = Seen(tab, tmp_path, Grid(values, ("layer", "position", "example", "row"), about={"metric": "probability"}))
    # means of the draws: 2, 6, 12; their mean is 20/3, their standard error √(((14/3)² + (2/3)² + (16/3)²) / 2 / 3)
    error = math.sqrt((14**2 + 2**2 + 16**2) / 9 / 2 / 3)
    assert seen.hover(0, 0)[2:] == ["probability 6.667", f"standard error {error:.4g}", "n 3 (example)"]
    seen.choose("example", "1")
    assert seen.hover(0, 0)[2:] == ["probability 6", "standard error 1", "n 2 (row)", "example 1"]
    assert tab.run("iitkit.cell({...iitkit.here(0, 0), example: 2, row: 1}).mean") == 12


def test_the_page_averages_as_the_grid_does(tab: Browser, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 6)).round(3)
    values[np.random.default_rng(2).random(values.shape) < 0.2] = NAN
    grid = Grid(values, ("component", "layer", "position", "example", "row"), {"component": ["a", "b"]})
    Seen(tab, tmp_path, grid)
    summary = looks.summarise(grid)
    found = tab.run(
        "iitkit.scale().cells.map(([at, found]) => [found.mean, found.stderr, found.n])"
        ".map((row) => row.map((one) => Number.isNaN(one) ? null : one))"
    )
    expected = zip(*(part.values.ravel() for part in (summary.mean, summary.stderr, summary.n) if part), strict=True)
    for (mean, error, n), (mean_here, error_here, n_here) in zip(found, expected, strict=True):
        assert mean == pytest.approx(mean_here, rel=1e-12)
        assert error == pytest.approx(error_here, rel=1e-12)
        assert n == n_here


def test_by_keyboard_alone(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small())
    order = []
    for _ in range(8):
        tab.press("Tab")
        order.append(tab.run("document.activeElement.id"))
    assert order[:7] == [
        "theme", "choose-component", "choose-metric", "choose-example", "choose-rows", "choose-columns", "stage",
    ]  # fmt: skip
    assert tab.run("document.activeElement.closest('#top') !== null") is True  # the buttons of the top cells come next
    tab.run("document.getElementById('stage').focus()")
    assert seen.keys("ArrowRight").startswith("component mlp_output · layer 5 · position 0 'The' · logit difference 5 ")
    assert "position 1 ' capital'" in seen.keys("ArrowRight")
    assert "layer 4 · position 1" in seen.keys("ArrowDown")
    assert "layer 4 · position 1" in seen.keys("ArrowDown")  # the edge holds
    assert "layer 4 · position 2" in seen.keys("End")
    assert "failed 2 times: RuntimeError" in seen.text("readout")
    assert "layer 5 · position 2" in seen.keys("PageUp")
    assert "layer 5 · position 0" in seen.keys("Home")
    assert "layer 4 · position 0" in seen.keys("PageDown")
    assert tab.run("document.getElementById('tip').hidden") is False
    assert tab.run("iitkit.state.cursor") == [0, 0]
    assert seen.keys("Escape").startswith("Point at a cell")
    tab.run("document.getElementById('choose-component').focus()")
    tab.press("ArrowDown")
    assert tab.run("[iitkit.state.at.component, document.activeElement.id]") == [1, "choose-component"]
    stage = tab.run("['role', 'aria-labelledby', 'aria-describedby', 'tabindex'].map((a) => stage.getAttribute(a))")
    assert stage == ["application", "title", "keys", "0"]
    assert tab.run("document.getElementById('readout').getAttribute('aria-live')") == "polite"
    assert tab.run("[...document.querySelectorAll('select')].every((one) => one.labels.length === 1)") is True


def test_the_top_cells(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small())
    assert seen.text("top-title") == "Furthest from nothing"
    rows = tab.run(
        "[...document.querySelectorAll('#top tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert rows[:4] == [
        ["logit difference", "± standard error", "n", "component", "layer", "position"],
        ["10", "1", "2", "attention_output", "5", "0 'The'"],
        ["5", "3", "2", "mlp_output", "5", "0 'The'"],
        ["5", "", "1", "mlp_output", "5", "1 ' capital'"],
    ]
    assert rows[4][0] == "−4"  # as far away as 4 would be
    assert len(rows) == 11
    tab.run("document.querySelector('#top button').click()")
    assert seen.text("readout").startswith(
        "component attention_output · layer 5 · position 0 'The' · logit difference 10 "
    )
    assert tab.run("document.activeElement.id") == "stage"
    assert tab.run("document.getElementById('choose-component').selectedOptions[0].text") == "attention_output"


def test_light_and_dark(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, small(), scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(back) == "rgb(15, 18, 22)"
    # 0 is the middle (nothing), 10 (also the clean run) the highest of the scale
    assert seen.colour(1, 0) == list(looks.PALETTES["dark"][2])
    seen.choose("component", "attention_output")
    assert seen.colour(0, 1) == list(looks.PALETTES["dark"][4])
    tab.scheme("light")
    tab.wait(f"{back} === 'rgb(255, 255, 255)'")
    assert seen.colour(0, 1) == list(looks.PALETTES["light"][4])
    assert seen.text("theme") == "Dark"
    x, y = tab.run("(() => { scrollTo(0, 0); const b = theme.getBoundingClientRect(); return [b.x + 9, b.y + 9]; })()")
    tab.click(x, y)
    assert tab.run(back) == "rgb(15, 18, 22)"
    assert seen.text("theme") == "Light"
    assert seen.colour(0, 1) == list(looks.PALETTES["dark"][4])
    tab.scheme("dark")
    tab.run("document.getElementById('theme').focus()")
    tab.press("Enter")
    assert tab.run(back) == "rgb(255, 255, 255)"
    Seen(tab, tmp_path, small(), scheme="light", theme="dark")
    assert tab.run(back) == "rgb(15, 18, 22)"
    assert tab.complaints() == []


def test_colours_are_those_of_the_plots(tab: Browser, tmp_path: Path) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    Seen(tab, tmp_path, small())
    scale = tab.run("(({ centre, half, low, high }) => [centre, half, low, high])(iitkit.scale())")
    assert scale == [0, 10, -4, 10]
    colours = LinearSegmentedColormap.from_list("light", [[part / 255 for part in c] for c in looks.PALETTES["light"]])
    for value in (-10, -4, -1.5, 0, 2, 5, 9.9, 40):
        found = [int(part) for part in re.findall(r"\d+", tab.run(f"iitkit.colour({value})"))]
        assert found == pytest.approx([part * 255 for part in colours((value + 10) / 20)[:3]], abs=2)


def nasty() -> Grid:
    values = np.arange(10.0).reshape(2, 5)
    values[0, :2] = NAN
    return Grid(
        values,
        ("component", "position"),
        {"component": NASTY[:2], "position": NASTY},
        {NASTY[1]: 1.0},
        {(0, 0): NASTY[0], (0, 1): NASTY[1]},
        {"kind": NASTY[1], "prompt": NASTY[0], "selected": {"metric": NASTY[0], "layer": NASTY[1]}},
    )


def test_tokens_are_text_and_nothing_else(tab: Browser, tmp_path: Path) -> None:
    seen = Seen(tab, tmp_path, nasty(), title=NASTY[0])
    assert tab.run("document.title") == NASTY[0]
    assert seen.text("title") == NASTY[0]
    for at, token in enumerate(NASTY[:4]):
        assert f"position {token}" in seen.hover(at, 1)
        assert f"component {NASTY[1]}" in seen.hover(at, 1)
    assert "position \\u2028\\u000a猫\\u0000" in seen.hover(4, 1)
    assert f"failed: {NASTY[0]}" in seen.hover(0, 0)
    assert json.loads(seen.text("about"))["prompt"] == NASTY[0]
    assert NASTY[1] in seen.text("told")
    assert tab.run("window.broken") is None
    assert tab.run("document.querySelectorAll('img, script').length") == 2
    assert tab.complaints() == []
    assert len(tab.requests()) == 1


def test_a_script_that_came_in_would_not_run(tab: Browser, tmp_path: Path) -> None:
    path = tmp_path / "grid.html"
    path.write_text(
        page(small(), path).read_text("utf-8").replace("</body>", "<script>window.broken = 1</script></body>")
    )
    tab.open(path)
    assert tab.run("window.broken") is None
    assert tab.run("iitkit.state.x") == "position"  # the page's own has run
    assert "Content Security Policy" in "".join(tab.complaints())


def test_failed_cells_are_hatched_and_missing_ones_dotted(tab: Browser, tmp_path: Path) -> None:
    Seen(tab, tmp_path, Grid([[1.0, NAN, NAN]], ("layer", "position"), failed={(0, 1): "no"}))
    look = (
        "(([x, y]) => { const c = document.getElementById('map'), b = c.getBoundingClientRect();"
        "const [left, top] = [Math.round(x - b.left) - 15, Math.round(y - b.top) - 8];"
        "const d = c.getContext('2d').getImageData(left, top, 30, 16).data;"
        "const seen = Array.from({length: 480}, (_, i) => d.slice(4 * i, 4 * i + 3).join());"
        "return [new Set(seen).size, seen.filter((one) => one === '102,112,128').length]; })(iitkit.place({at}, 0))"
    )
    plain, hatched, dotted = (tab.run(look.replace("{at}", str(at))) for at in range(3))
    assert plain[0] == 1
    assert hatched[0] > 1
    assert dotted[0] > 1
    assert hatched != dotted
    gap = tab.run("iitkit.data.inks.light.gap")
    assert gap == looks.INK["light"]["gap"]


def test_one_axis_infinities_and_standard_errors_that_are_given(tab: Browser, tmp_path: Path) -> None:
    grid = Grid(
        [[1.0, 3.0], [-math.inf, -math.inf], [NAN, NAN]], ("layer", "example"), about={"metric": "log_probability"}
    )
    mean = grid.mean("example")
    seen = Seen(tab, tmp_path, mean, stderr=grid.stderr("example"), n=grid.n("example"))
    assert seen.hover(0, 0) == ["layer 0", "log probability 2 nats", "standard error 1", "n 2 (example)"]
    assert seen.hover(0, 1) == ["layer 1", "log probability −∞ nats", "n 2 (example)"]
    assert seen.hover(0, 2) == ["layer 2", "log probability missing", "n 0 of 2 (example)"]
    assert seen.text("told") == "mean of 2 examples · dotted: 1 missing"
    assert tab.run("iitkit.scale().half") == 2
    seen = Seen(tab, tmp_path, Grid([1.0, 2.0], ("position",)))
    assert seen.hover(1, 0) == ["position 1", "value 2"]
    heads = "[...document.querySelectorAll('#top th')].map((one) => one.textContent)"
    assert tab.run(heads) == ["value", "position"]  # of no sample: no standard error, no n
    seen = Seen(tab, tmp_path, Grid(np.zeros((2, 2)), ("layer", "head")))
    assert seen.hover(1, 0) == ["layer 0", "head 1", "value 0"]
    assert tab.run("[iitkit.scale().low, iitkit.scale().high]") == [-1, 1]


def test_a_large_grid_on_a_small_screen(tab: Browser, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 48, 120, 4))
    names = [f"{at} ' token'" for at in range(120)]
    grid = Grid(values, ("component", "layer", "position", "example"), {"position": names})
    seen = Seen(tab, tmp_path, grid, width=600)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth") is True  # the map scrolls, the page does not
    assert tab.run("stage.scrollWidth > stage.clientWidth") is True
    tab.run("document.getElementById('stage').focus()")
    assert "position 119" in seen.keys("ArrowRight", "End")
    free = "stage.dispatchEvent(new KeyboardEvent('keydown', {cancelable: true, key: '%s', ctrlKey: %s}))"
    assert tab.run(free % ("ArrowDown", "false")) is False  # the map's: the page does not scroll
    assert tab.run(free % ("ArrowDown", "true")) is True
    assert tab.run(free % ("Tab", "false")) is True
    x, _ = tab.run("iitkit.place(119, 0)")
    assert 0 < x < 600
    tab.run("window.took = performance.now(); iitkit.update(); window.took = performance.now() - took")
    assert tab.run("took") < 2000
    assert tab.complaints() == []


def test_it_is_drawn_anew_where_the_window_changes(tab: Browser, tmp_path: Path) -> None:
    values = np.zeros((4, 30))
    Seen(tab, tmp_path, Grid(values, ("layer", "position")))
    wide = tab.run("document.getElementById('map').clientWidth")
    tab.call("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=2, mobile=False)
    tab.wait(f"document.getElementById('map').clientWidth < {wide}")
    assert tab.run("(({ width, clientWidth }) => width / clientWidth)(document.getElementById('map'))") == 2
