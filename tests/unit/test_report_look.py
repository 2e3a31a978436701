"""How the report looks: contrast in both modes, what is clipped is marked, legends are whole, columns stay in sight."""

from __future__ import annotations

import pathlib
import re

import made_runs
import pytest
from matplotlib.markers import CARETDOWNBASE, CARETLEFTBASE, CARETRIGHTBASE, CARETUPBASE

import hwrx
from hwrx.report import figures, html, numbers, page, style
from hwrx.report.model import Summary
from hwrx.stats import Estimate
from hwrx.timelines import walk

PAGE = (pathlib.Path(html.__file__).parent / "templates" / "_style.html").read_text()


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lower, higher = sorted((luminance(one), luminance(other)))
    return (higher + 0.05) / (lower + 0.05)


def pages() -> dict[str, tuple[str, str]]:
    """Ink and paper of each mode, as the page's style has them; and white paper, for print."""
    (light, dark) = re.findall(r"--ink: (#[0-9a-f]{6}); --paper: (#[0-9a-f]{6})", PAGE)
    return {"light": light, "dark": dark, "print": ("#000000", "#ffffff")}


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_every_colour_has_a_contrast_of_three_to_one_at_least(mode: str) -> None:
    ink, paper = pages()[mode]
    found = {path: look[0] for path, look in style.LOOKS.items()} | style.ACTORS | {"other": style.OTHER[0]}
    assert walk.COLOURS == style.ACTORS, "the walk and the waterfall name the same people"
    poor = {
        name: round(ratio, 2)
        for name, colour in found.items()
        if (ratio := contrast(ink if colour == style.INK else colour, paper)) < 3
    }
    assert not poor


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """A run whose repeats differ by factors, so that intervals span decades."""
    plan = made_runs.layout(paths=["udp", "tcp", "rdma-send", "rdma-write-imm"], sizes=[64, 1024, 4096], messages=1200)
    with hwrx.runs.store.Writer.create(tmp_path_factory.mktemp("wild"), plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            wide = trial.setting.size == 64 and trial.setting.path == "tcp"
            made_runs.add(writer, trial, seed=trial.number, spread=2.5 if wide else 0.02)
    return hwrx.load(writer.path).summary()


def test_one_wide_interval_neither_presses_the_others_nor_ends_unmarked(wild: Summary) -> None:
    row = next(row for row in wild.rows if (row.path, row.size) == ("tcp", 64))
    assert row.ratio is not None
    assert row.ratio.high / row.ratio.low > 20
    (ax,) = figures.draw_figure(wild, "ratio").axes
    low, high = ax.get_xlim()
    assert ax.get_xscale() == "log"
    assert high / low < 20, "the axis is for the values, not for the widest interval"
    arrows = [line.get_marker() for line in ax.lines]
    assert arrows.count(CARETRIGHTBASE) == arrows.count(CARETLEFTBASE) == 1
    panels = figures.draw_figure(wild, "shift").axes
    assert [ax.get_title(loc="right") for ax in panels] == ["64 B", "1 KiB", "4 KiB"], "every size is drawn"
    of_64 = [line.get_marker() for line in panels[0].lines]
    assert CARETUPBASE in of_64
    assert CARETDOWNBASE in of_64
    marked = [sum(line.get_marker() in (CARETUPBASE, CARETDOWNBASE) for line in ax.lines) for ax in panels]
    assert marked[0] >= 18, "both ends of each decile of the wide row"
    assert marked[2] <= 6, "of the others at most p99 goes on beyond the border"
    assert all(ax.get_xlabel() for ax in panels)


def test_legends_stay_within_the_figure_at_either_width(wild: Summary) -> None:
    for name in figures.figure_names(wild):
        for width in (style.COLUMN, page.WIDE):
            drawn = figures.draw_figure(wild, name, width)
            drawn.draw_without_rendering()
            for legend in drawn.legends:
                box = legend.get_window_extent()
                assert box.x0 >= 0, name
                assert box.x1 <= drawn.bbox.width + 1, name
            for ax in drawn.axes:
                box = ax.yaxis.label.get_window_extent()
                assert not any(box.overlaps(legend.get_window_extent()) for legend in drawn.legends), name


def test_trials_are_dots_and_a_series_over_time(wild: Summary) -> None:
    (ax,) = figures.draw_figure(wild, "latency").axes
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert sorted(len(line.get_ydata()) for line in dots) == [9] * 4  # three trials of three sizes of each path
    row = next(row for row in wild.rows if (row.path, row.size) == ("udp", 64))
    (udp,) = [line for line in dots if line.get_color() == style.LOOKS["udp"][0]]
    assert sorted(udp.get_ydata()[:3]) == sorted(digest.quantile(0.5) for digest in row.digests)
    panels = figures.draw_figure(wild, "time").axes
    assert len(panels) == 3
    lines = [line for line in panels[0].lines if line.get_color() == style.LOOKS["udp"][0] and line.get_marker() != "."]
    assert len(lines) == 3
    assert {len(line.get_ydata()) for line in lines} == {120}


def test_open_markers_and_seams_take_the_pages_colour(wild: Summary) -> None:
    svg = figures.inline_figure(figures.draw_figure(wild, "latency"), "x")
    assert "var(--paper)" in svg
    assert style.PAPER not in svg


def test_size_and_path_stay_in_sight(wild: Summary) -> None:
    page = html.render_html(wild)
    assert 'class="keys2' in page
    assert re.search(r"\.keys2 td:nth-child\(2\) { position: sticky", PAGE)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (43_149_738, 22.1e6, 84.2e6, "43.1M 22.1M–84.2M"),
        (91.84, 39.04, 216.1, "91.8 39.0–216"),
        (41_620, 14_240, 121_900, "41,600 14,200–122,000"),
        (0.1234, 0.1222, 0.1246, "0.123 ±1.0 %"),
        (99_960, 98_000, 102_000, "100k ±2.0 %"),
    ],
)
def test_a_figure_and_its_interval_have_three_digits_and_one_prefix(
    value: float, low: float, high: float, words: str
) -> None:
    found = Estimate(value=value, low=low, high=high, trials=3)
    assert f"{numbers.value_text(found)} {numbers.plus_minus(found)}" == words


def test_no_two_paths_and_no_two_lines_of_one_path_have_the_same_marker() -> None:
    assert len(set(style.MARKERS)) == len(style.MARKERS)
    markers = [marker for _, marker, _ in style.LOOKS.values()]
    assert len(set(markers)) == len(markers)
    assert set(markers) <= set(style.MARKERS)
