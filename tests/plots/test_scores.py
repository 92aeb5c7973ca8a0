"""What the pictures of numbers show where there is little to show."""

from qcs.plots import scores

METRICS = [metric for panel in scores.PANELS.values() for metric in panel]


def drawn(monkeypatch, draw, *arguments, **options):
    figures = []
    monkeypatch.setattr(scores, "save", lambda figure, path: figures.append(figure))
    draw(*arguments, "unused.png", **options)
    (figure,) = figures
    figure.canvas.draw()
    return figure


def test_the_curves_of_one_epoch_are_told_apart_by_markers_at_a_whole_number(monkeypatch):
    runs = {"one": {metric: [(1.0, 0.5)] for metric in METRICS}}
    for axes in drawn(monkeypatch, scores.curves, runs).axes:
        curves = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert len({line.get_marker() for line in curves}) == len(curves) == 3
        legend = [handle.get_marker() for handle in axes.get_legend().legend_handles]
        assert legend == [line.get_marker() for line in curves]
        assert [t for t in axes.get_xticks() if 0.9 < t < 1.1] == [1.0]


def test_long_curves_have_lines_alone(monkeypatch):
    runs = {"one": {metric: [(float(e), 0.5) for e in range(1, 40)] for metric in METRICS}}
    axes = drawn(monkeypatch, scores.curves, runs).axes[0]
    assert {line.get_marker() for line in axes.lines if len(line.get_xdata()) > 1} == {""}


def test_the_history_of_one_trial_has_its_number_and_its_metric(monkeypatch):
    (axes,) = drawn(monkeypatch, scores.search_history, [(0, 0.5)], metric="val/acc").axes
    assert axes.get_ylabel() == "val/acc"
    assert [t for t in axes.get_xticks() if -0.04 < t < 0.04] == [0.0]
