import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.report.figures import (
    GRID,
    KIND_STYLES,
    STAGE_COLOURS,
    figure1,
    forest_figure,
    inline_svg,
    panel_boxes,
    timeline_figure,
    to_png,
    to_svg,
)
from analysis.report.sections import timeline_block
from analysis.study.series import paper_series
from analysis.study.tables import accuracy_table
from analysis.verdicts.judgement import Judgement
from sweep.graph.records import Store, Study
from sweep.graph.timeline import LaneTime, Span, Timeline
from sweep.index.views import COLOURS
from tests.analysis.fake_store import FakeStudy

SERIES = paper_series("template_test", "template_probe", "lexical_overlap/non-entailment")


def lines_of(axes: Axes) -> dict[str, Line2D]:
    """By name; a seed's dot has none."""
    return {str(line.get_label()): line for line in axes.get_lines() if line.get_label() != "_seeds"}


def test_one_panel_per_starting_point_with_the_means_over_seeds(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    values = {"none": 40, "original": 100, "synthetic": 120, "biased_synthetic": 60}
    study.add_grid(correct=lambda start, kind, size, seed, *_: values[kind] + size // 6 + 10 * seed)
    figure = figure1(study.frame(), SERIES)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["Start: untrained", "Start: 200 examples"]
    for axes in panels:
        lines = lines_of(axes)
        # 3 kinds and the starting point, on 3 test sets each.
        assert len(lines) == 12
        line = lines["Synthetic | Template test set"]
        # Mean of seeds 0 and 1: 45, 135 and 145 of 200.
        assert list(line.get_ydata()) == pytest.approx([0.225, 0.675, 0.725])
        assert list(line.get_xdata()) == pytest.approx([0, 0.5, 1.0])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "60", "120"]
        biased = lines["Biased Synthetic | Template probe, lexical overlap, non-entailment"]
        assert list(biased.get_ydata()) == pytest.approx([0.225, 0.375, 0.425])


def test_the_figure_is_of_the_papers_folding(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    for kind, size in (("none", 0), ("original", 60)):
        study.add_evaluation(0, kind, size, 0, lambda *_: 100, more_right_when_summed=60)
    figure = figure1(study.frame(), SERIES)
    for line in lines_of(figure.axes[0]).values():
        assert set(line.get_ydata()) == {0.5}


def test_colour_says_the_kind_and_dashes_the_test_set(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid(starting_sizes=(0,))
    figure = figure1(study.frame(), SERIES)
    lines = lines_of(figure.axes[0])
    kinds = ["Original", "Synthetic", "Biased Synthetic"]
    colours = {k: {to_hex(lines[f"{k} | {s.name}"].get_color()) for s in SERIES} for k in kinds}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3
    markers = {lines[f"{k} | Template probe"].get_marker() for k in kinds}
    assert len(markers) == 3
    # get_linestyle() answers '--' for every pattern of one's own.
    dashes = {str(lines[f"Original | {s.name}"]._dash_pattern) for s in SERIES}
    assert len(dashes) == 3


def test_a_missing_cell_is_a_gap_and_not_bridged(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60, 120, 180), (0,), skip=((0, "synthetic", 120, 0),))
    figure = figure1(study.frame(partial=True), SERIES)
    y = list(lines_of(figure.axes[0])["Synthetic | Template probe"].get_ydata())
    assert len(y) == 4
    assert [value != value for value in y] == [False, False, True, False]


def test_crowded_sizes_are_spread_and_the_axis_says_so(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60, 120, 60_000), (0,))
    figure = figure1(study.frame(), SERIES)
    assert list(figure.axes[0].get_xticks()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert "not to scale" in figure.axes[0].get_xlabel()


def test_a_test_set_without_rows_is_an_error(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0,))
    frame = study.frame()
    with pytest.raises(ValueError, match="hans"):
        figure1(frame, paper_series("template_test", "hans", "lexical_overlap/non-entailment"))
    with pytest.raises(ValueError, match="no rows"):
        figure1(frame.iloc[:0], SERIES)


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0, 1))
    frame = study.frame()
    first, second = figure1(frame, SERIES), figure1(frame, SERIES)
    assert to_svg(first) == to_svg(second)
    assert to_png(first, dpi=50) == to_png(second, dpi=50)


def row(setting: str, estimate: float, half: float, num: int) -> dict[str, object]:
    return {
        "setting": setting, "part": "synthetic − original", "estimate": estimate, "low": estimate - half, "unit": "share",
        "high": estimate + half, "values": [estimate - 0.01] * (num - 1) + [estimate + 0.01],
    }  # fmt: skip


def test_a_claim_is_drawn_in_each_of_its_settings() -> None:
    first = Judgement("first", "", "", settings=(row("start 0, size 60", 0.10, 0.05, 5), row("start 0, size 90", -0.2, 0.1, 5)))
    few = Judgement("few", "", "", settings=(row("start 0, size 60", 0.10, 0.9, 2),))
    other_unit = Judgement("ratio", "", "", settings=({**row("", 1.2, 0.1, 5), "unit": "ratio"},))
    figure = forest_figure([first, few, other_unit])
    drawn, dots = figure.axes
    assert [text.get_text() for text in drawn.get_yticklabels()] == ["start 0, size 60", "start 0, size 90"]
    spans = [segment[:, 0] for lines in drawn.collections for segment in lines.get_segments()]
    assert np.allclose(spans, [[5, 15], [-30, -10]])
    # Two seeds: each by itself, and no interval.
    assert not dots.collections
    (points,) = [line for line in dots.get_lines() if line.get_marker() == "o"]
    assert list(points.get_xdata()) == pytest.approx([9.0, 11.0])
    with pytest.raises(ValueError, match="nothing to draw"):
        forest_figure([other_unit])


def test_a_narrow_page_shows_each_panel_by_itself(tmp_path: Path) -> None:
    claims = [Judgement(name, "", "", settings=(row("start 0, size 60", 0.1, 0.05, 5),)) for name in ("a", "b", "c")]
    figure = forest_figure(claims)
    boxes = panel_boxes(figure)
    assert len(boxes) == 3, "the fourth place of the grid is empty"
    width, height = (72 * inches for inches in figure.get_size_inches())
    left, right, below = boxes
    assert left.x0 < right.x0 and left.y0 == pytest.approx(right.y0, abs=2) and left.y1 < below.y1
    assert all(-5 < box.x0 < box.x1 < width + 5 and -5 < box.y0 < box.y1 < height + 5 for box in boxes)
    # The axes' titles and labels are in them, and nothing of a neighbour's axes.
    for box, axes, other in ((left, figure.axes[0], figure.axes[1]), (right, figure.axes[1], figure.axes[0])):
        own, beside = (one.get_position() for one in (axes, other))
        assert box.x0 <= own.x0 * width and own.x1 * width <= box.x1
        assert beside.x1 * width < box.x0 or box.x1 < beside.x0 * width

    page = inline_svg(to_svg(figure), "claims", boxes)
    names = re.findall(r'<use href="#([^"]+)"', page)
    assert len(names) == 3 and len(set(names)) == 1
    assert page.count(f'id="{names[0]}"') == 1, "each figure of a page has a name of its own"
    assert names[0] not in inline_svg(to_svg(forest_figure(claims[:2])), "others", panel_boxes(forest_figure(claims[:2])))
    alone = forest_figure(claims[:1])
    assert "<use href" not in inline_svg(to_svg(alone), "one", panel_boxes(alone))

    study = FakeStudy(tmp_path)
    study.add_grid((0, 200), (60,), (0, 1))
    legends, *panels = panel_boxes(figure1(study.frame(), SERIES))
    assert len(panels) == 2 and all(legends.y1 < panel.y0 + 10 for panel in panels)


def test_a_thin_line_shows_a_point_s_interval(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0, 1, 2), correct=lambda start, kind, size, seed, *_: 100 + 4 * seed)
    frame = study.frame()
    plain = figure1(frame, SERIES).axes[0]
    shown = figure1(frame, SERIES, accuracy_table(frame)).axes[0]
    assert len(shown.collections) == 2 * len(plain.collections)
    ends = [tuple(segment[:, 1]) for lines in shown.collections for segment in lines.get_segments()]
    # Of 0.50, 0.52 and 0.54: the mean ± 4.3027 × 0.02 / √3.
    assert any(end == pytest.approx((0.52 - 0.0497, 0.52 + 0.0497), abs=1e-3) for end in ends)


def markers_and_lines(axes: Axes, name: str) -> tuple[list[float], int]:
    """The heights of the dots of seeds in a colour, and how many vertical lines have it."""
    colour = to_hex(lines_of(axes)[name].get_color())
    dots = [line for line in axes.get_lines() if line.get_label() == "_seeds" and to_hex(line.get_color()) == colour]
    bars = [bar for bar in axes.collections if to_hex(bar.get_edgecolor()[0]) == colour and len(bar.get_segments())]
    return sorted(float(y) for dot in dots for y in dot.get_ydata()), len(bars)


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_below_three_seeds_there_are_dots_and_no_intervals(tmp_path: Path, num_seeds: int) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), tuple(range(num_seeds)), correct=lambda start, kind, size, seed, *_: 80 + 20 * seed)
    frame = study.frame()
    table = accuracy_table(frame)
    assert num_seeds == 1 or (table["interval_high"] > table["interval_low"]).all(), "there would be an interval to draw"
    axes = figure1(frame, SERIES, table).axes[0]
    dots, num_bars = markers_and_lines(axes, "Synthetic | Template probe")
    if num_seeds == 3:
        assert not dots and num_bars
    else:
        # The seeds of each of three series.
        assert dots == sorted(3 * [(80 + 20 * seed) / 200 for seed in range(num_seeds)]) and not num_bars


def test_colours_of_kinds_are_those_of_mlflow_s_pages() -> None:
    assert {kind: COLOURS[kind] for kind in KIND_STYLES} == {kind: colour for kind, (colour, _) in KIND_STYLES.items()}


def span(stage: str, slug: str, *moments: float) -> Span:
    return Span(stage, slug, *moments, waited_for="sources/data")


TIMELINE = Timeline(
    0.0,
    (
        LaneTime("1", 0, 4, (span("task_model", "a", 0, 0, 5, 9), span("task_model", "b", 1, 2, 6, 10))),
        LaneTime("2", 3, 9, (span("evaluation", "a", 9, 9, 9, 12),)),
    ),
)


def test_a_lane_s_steps_are_bars_of_their_stage_s_colour_side_by_side_where_they_were_at_once() -> None:
    (axes,) = timeline_figure(TIMELINE).axes
    bars = {
        (round(bar.get_x(), 3), round(bar.get_width(), 3), round(bar.get_height(), 3), to_hex(bar.get_facecolor()))
        for bar in axes.patches
        if isinstance(bar, Rectangle)
    }
    models, evaluations = STAGE_COLOURS["task_model"], STAGE_COLOURS["evaluation"]
    starts = {(0, 5, 0.8, GRID), (3, 6, 0.8, GRID)}
    assert bars == {(5, 4, 0.4, models), (6, 4, 0.4, models), (9, 3, 0.8, evaluations)} | starts
    assert [label.get_text() for label in axes.get_yticklabels()] == ["task model", "evaluation"]
    # From ready to begun, in the row of each.
    assert sorted(tuple(line.get_xdata()) for line in axes.lines) == [(0, 5), (1, 6), (9, 9)]


def test_stages_without_a_timeline_are_drawn_in_no_chart(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid()
    study.write()
    assert timeline_block(Study.load(Store(tmp_path), study.name)) == ([], None)
