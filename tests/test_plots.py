"""Figures: what they show is what the fit holds, nothing overlaps, nothing global changes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from fakes import LONG_NAMES, fake_fit, seen
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bayesmeta import plots
from bayesmeta.plots._draw import interesting
from bayesmeta.plots._reading import axis_label, label, window, z
from bayesmeta.plots._shrinkage import ellipse
from bayesmeta.results import Flag, InputError

CASES: dict[str, Any] = {
    "3 tasks": fake_fit(3),
    "18 tasks": fake_fit(18),
    "300 tasks, some without an estimate": fake_fit(300, single=tuple(range(40))),
    "1 coordinate": fake_fit(18, 1),
    "3 coordinates": fake_fit(18, 3),
    "long names": fake_fit(6, 2, names=LONG_NAMES),
    "one sd is 0": fake_fit(12, 2, sd=(24.0, 0.0)),
    "the only sd is 0": fake_fit(8, 1, sd=(0.0,)),
    "no estimates of their own": fake_fit(5, 2, single=tuple(range(5))),
    "no table": fake_fit(7, 2, table=False),
}
FROM_FAKES = ("spread", "shrinkage", "prior", "trace", "calibration")  # predictive asks a real fit


def texts(fig: Any) -> list[tuple[str, Bbox]]:
    """All words of a drawn figure, and where they are, in pixels."""
    fig.draw_without_rendering()
    found = list(fig.texts) + [text for key in fig.legends for text in key.get_texts()]
    for ax in fig.axes:
        found += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        key = ax.get_legend()
        found += [] if key is None else key.get_texts()
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            # Ticks beyond the limits keep their labels but are not drawn.
            found += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    shown = [text for text in found if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def overlaps(fig: Any) -> list[tuple[str, str]]:
    """Pairs of words that lie on each other by more than a pixel."""
    pairs = itertools.combinations(texts(fig), 2)
    return [(a, b) for (a, p), (b, q) in pairs if shared(p, q) > 1.0]


def shared(p: Bbox, q: Bbox) -> float:
    across = min(p.x1, q.x1) - max(p.x0, q.x0)
    upward = min(p.y1, q.y1) - max(p.y0, q.y0)
    return min(across, upward)


def cut_off(fig: Any) -> list[str]:
    frame = fig.bbox
    return [
        words
        for words, box in texts(fig)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1
    ]


def segments(ax: Any) -> Any:
    """(line, end, 2) of the first collection of lines."""
    return next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()


def lines(ax: Any, name: str) -> Any:
    (found,) = [line for line in ax.lines if line.get_label() == name]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FROM_FAKES)
def test_every_figure_is_labelled_finite_and_free_of_overlap(name, case):
    fit = CASES[case]
    if name == "shrinkage" and len(fit.prior.names) == 1:
        with pytest.raises(InputError, match="two coordinates"):
            plots.draw(name, fit)
        return
    fig = plots.draw(name, fit)
    assert overlaps(fig) == []
    assert cut_off(fig) == []
    for i, ax in enumerate(fig.axes):
        assert ax.get_xlabel()
        assert ax.get_ylabel() or name == "spread" or i
        assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()
        assert ax.get_tightbbox() is not None


@pytest.mark.parametrize("case", ["3 tasks", "18 tasks", "long names", "one sd is 0"])
@pytest.mark.parametrize("name", FROM_FAKES)
def test_a_figure_of_one_column_is_as_clean(name, case):
    fig = getattr(plots, name)(CASES[case]).figure
    assert fig.get_figwidth() == plots.SINGLE
    assert overlaps(fig) == []
    assert cut_off(fig) == []


def test_the_check_of_overlap_notices_one():
    fig = Figure(figsize=(3, 2))
    ax = fig.add_subplot()
    ax.text(0.5, 0.5, "one")
    ax.text(0.52, 0.5, "another")
    ax.text(1.5, 0.5, "outside of the figure")
    assert overlaps(fig) == [("one", "another")]
    assert "outside of the figure" in cut_off(fig)


@pytest.mark.parametrize("name", FROM_FAKES)
def test_axes_in_axes_out(name):
    fig = Figure(figsize=(4, 4))
    ax = fig.add_subplot()
    before = settings()
    assert getattr(plots, name)(CASES["18 tasks"], ax=ax) is ax
    assert fig.axes == [ax]
    assert not fig.legends
    assert settings() == before


def settings() -> dict[str, object]:
    """All of matplotlib's settings but the backend, which would be chosen by looking at it."""
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}


def test_pyplot_is_never_loaded():
    script = "import bayesmeta.plots, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_spread_shows_the_posteriors_and_the_prior():
    fit = CASES["18 tasks"]
    ax = plots.spread(fit, "Days", level=0.9)
    mean, sd = seen(fit.posterior.mean)[:, 1], seen(fit.posterior.sd())[:, 1]
    order = np.argsort(mean)
    drawn = lines(ax, "posterior, 90 %")
    np.testing.assert_array_equal(drawn.get_xdata(), mean[order])
    np.testing.assert_array_equal(drawn.get_ydata(), np.arange(18))
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [fit.posterior.tasks[i] for i in order]
    ends = np.array([line[:, 0] for line in segments(ax)])
    half = 1.6448536 * sd[order]
    np.testing.assert_allclose(ends, np.stack([mean[order] - half, mean[order] + half], 1), 1e-5)
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    half = 1.6448536 * 5.7
    np.testing.assert_allclose([band.x0, band.x1], [10.5 - half, 10.5 + half], 1e-5)
    alone = lines(ax, "own rows alone")
    np.testing.assert_array_equal(alone.get_xdata(), seen(fit.no_pooling().mean)[order, 1])
    assert alone.get_markerfacecolor() == "white"


def test_all_intervals_are_inside_the_limits():
    fit = fake_fit(3)
    fit.posterior.mean -= 500.0
    low, high = plots.spread(fit, no_pooling=False, level=0.9).get_xlim()
    ends = (seen(fit.posterior.mean) - z(0.9) * seen(fit.posterior.sd()))[:, 0]
    extent = 251 + z(0.9) * 24 - ends.min()
    assert (high - low, low) == pytest.approx((1.08 * extent, ends.min() - 0.04 * extent))


def test_a_spread_keeps_the_familys_order_on_request():
    fit = CASES["3 tasks"]
    ax = plots.spread(fit, 0, sort=False)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(fit.posterior.tasks)[::-1]
    by_days = plots.spread(fit, "Intercept", sort="Days")
    order = np.argsort(seen(fit.posterior.mean)[:, 1])
    drawn = lines(by_days, "posterior, 90 %")
    np.testing.assert_array_equal(drawn.get_xdata(), seen(fit.posterior.mean)[order, 0])


def test_many_tasks_are_counted_and_few_are_named():
    many = plots.spread(CASES["300 tasks, some without an estimate"])
    assert many.get_ylabel() == "task, by rank"
    shown = [tick.get_text() for tick in many.get_yticklabels()]
    assert shown[0] == "1"
    assert len(shown) < 10
    assert plots.spread(CASES["18 tasks"], max_labels=17).get_ylabel() == "task, by rank"
    low = Figure(figsize=(4, 1)).add_subplot()
    assert plots.spread(CASES["18 tasks"], ax=low).get_ylabel() == "task, by rank"


def test_tasks_without_an_estimate_have_no_hollow_marker():
    fit = CASES["300 tasks, some without an estimate"]
    ax = plots.spread(fit)
    assert np.isnan(seen(lines(ax, "own rows alone").get_xdata())).sum() == 40
    none = plots.spread(CASES["no estimates of their own"])
    assert "own rows alone" not in none.get_legend_handles_labels()[1]
    left_out = plots.spread(fit, no_pooling=False)
    assert "own rows alone" not in left_out.get_legend_handles_labels()[1]


def test_a_prior_without_spread_says_so_in_each_figure():
    fit = CASES["the only sd is 0"]
    assert "prior, sd 0" in plots.spread(fit).get_legend_handles_labels()[1]
    density = plots.prior(fit)
    assert [text.get_text() for text in density.texts] == ["one value for all tasks"]
    assert "sd is 0" in plots.caption("spread", fit)
    assert "all tasks share" in plots.caption("prior", fit)
    assert "sd is 0 for Days" in plots.caption("shrinkage", CASES["one sd is 0"])


def test_long_names_that_share_their_ends_are_told_apart():
    names = [f"region of a long name, number {i} (district)" for i in range(30)]
    ax = plots.spread(fake_fit(30, names=names))
    assert len({tick.get_text() for tick in ax.get_yticklabels()}) == 30


def test_flagged_tasks_are_marked():
    fit = fake_fit(5)
    fit.flagged = [Flag("302", "k-hat is 0.9")]
    marked = lines(plots.spread(fit), "flagged")
    np.testing.assert_array_equal(marked.get_xdata(), seen(fit.posterior.mean)[2:3, 0])


def test_an_estimate_far_outside_is_a_triangle_at_the_edge():
    fit = fake_fit(20)
    alone = seen(fit.no_pooling().mean).copy()
    alone[3, 0] = 1e6
    ax = plots.spread(fit, no_pooling=SimpleNamespace(mean=alone))
    triangles = [line for line in ax.lines if line.get_marker() == ">"]
    assert [len(seen(line.get_xdata())) for line in triangles] == [1]
    assert ax.get_xlim()[1] < 1000


def test_limits_hold_the_core_and_what_is_inside_the_outer_fences():
    low, high = window(np.array([-1.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0, 1e9, np.nan]))
    assert low < -1
    assert 3 < high < 100
    assert window(np.array([5.0]), np.array([])) == (4.75, 5.25)


def test_an_ellipse_holds_its_share():
    generator = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.2], [1.2, 1.0]])
    outline = ellipse(np.array([1.0, -2.0]), covariance, 0.9)

    def distance(points):
        away = points - np.array([1.0, -2.0])
        return np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)

    np.testing.assert_allclose(distance(outline), -2 * np.log(0.1))
    draws = generator.multivariate_normal([1, -2], covariance, 20_000)
    assert abs((distance(draws) < distance(outline)[0]).mean() - 0.9) < 0.01
    flat = ellipse(np.zeros(2), np.diag([4.0, 0.0]), 0.9)
    np.testing.assert_allclose(flat[:, 1], 0.0, atol=1e-12)


def test_a_shrinkage_map_goes_from_own_estimates_to_posterior_means():
    fit = CASES["300 tasks, some without an estimate"]
    ax = plots.shrinkage(fit)
    pooled = lines(ax, "posterior mean")
    np.testing.assert_array_equal(pooled.get_xydata(), seen(fit.posterior.mean))
    assert len(segments(ax)) == 260
    few = plots.shrinkage(CASES["18 tasks"])
    assert len(few.patches) == 18
    assert {text.get_text() for text in plots.shrinkage(CASES["3 tasks"]).texts} <= {
        "300",
        "301",
        "302",
    }
    with pytest.raises(InputError, match="two different"):
        plots.shrinkage(fit, "Days", 1)


def test_a_prior_density_integrates_to_one():
    ax = plots.prior(CASES["18 tasks"], "Days")
    for name in ("prior", "their average"):
        x, density = lines(ax, name).get_data()
        assert np.trapezoid(density, x) == pytest.approx(1.0, abs=3e-3)
    x, density = lines(ax, "prior").get_data()
    assert seen(x)[np.argmax(density)] == pytest.approx(10.5, abs=0.1)


def test_a_trace_shows_values_and_the_distance_to_the_least():
    fit = fake_fit(3)
    ax = plots.trace(fit)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [30.0, 12.0, 11.0])
    assert ax.get_yscale() == "linear"
    fit.trace = list(876 + 1000 * 0.9 ** np.arange(100.0))
    far = plots.trace(fit)
    assert far.get_yscale() == "log"
    assert seen(far.lines[0].get_ydata())[0] == pytest.approx(1000, rel=1e-3)
    assert "step 99" not in plots.caption("trace", fit)
    fit.trace = []
    assert "closed form" in plots.caption("trace", fit)
    assert overlaps(plots.draw("trace", fit)) == []
    with pytest.raises(InputError, match="view must be one of"):
        plots.trace(fit, view="log")


def test_unknown_names_are_answered_with_the_known_ones():
    fit = CASES["3 tasks"]
    with pytest.raises(InputError, match="spread, shrinkage, predictive, prior, trace, calibrat"):
        plots.draw("histogram", fit)
    with pytest.raises(InputError, match="no figure is named"):
        plots.caption("histogram", fit)
    with pytest.raises(InputError, match="has no option 'level'; it has: coordinates, width"):
        plots.draw("prior", fit, level=0.5)
    with pytest.raises(InputError, match="there are: Intercept, Days"):
        plots.spread(fit, "days")
    with pytest.raises(InputError, match="coordinate 2 of 2"):
        plots.spread(fit, 2)
    with pytest.raises(InputError, match="between 0 and 1"):
        plots.spread(fit, level=90)


def test_labels_name_columns_and_units():
    fit = CASES["3 coordinates"]
    assert label(fit, 0) == "Intercept (Reaction)"
    assert label(fit, 1) == "Days (Reaction per Days)"
    assert label(fit, 2) == "I(Days ** 2) (Reaction per unit)"
    assert label(CASES["no table"], 1) == "Days"
    fit = fake_fit(3, 1)
    fit.likelihood.name = "poisson"
    assert label(fit, 0) == "Intercept (log mean)"
    torch_names = fake_fit(3, 2)
    torch_names.prior.names = ("weight[0,1]", "bias[0]")
    assert label(torch_names, 0) == "Days (Reaction per Days)"
    assert label(torch_names, 1) == "Intercept (Reaction)"
    long = fake_fit(3, 2).family.with_table(response="a response with a very long $name$")
    fit.family = long
    fit.likelihood.name = "gaussian"
    assert "\n" in axis_label(fit, 0)
    assert "$" not in axis_label(fit, 0).replace(r"\$", "")


def test_captions_hold_the_numbers_of_the_fit():
    fit = CASES["300 tasks, some without an estimate"]
    words = plots.caption("spread", fit, coordinates=["Days"])
    assert "300 tasks" in words
    assert "N(10.5, 5.7²)" in words
    assert "40 tasks have no estimate" in words
    assert "40 tasks have no estimate" in plots.caption("shrinkage", fit)
    assert "2120 observations in 300 tasks" in plots.caption("calibration", fit)
    assert r"\$" not in plots.caption("spread", CASES["long names"])


def test_of_many_coordinates_those_are_drawn_in_which_tasks_differ():
    fit = fake_fit(10, 3)
    wide: Any = SimpleNamespace(
        prior=SimpleNamespace(names=tuple("abcdefgh")),
        posterior=SimpleNamespace(
            mean=np.stack([np.arange(5.0) * (i in (2, 7)) for i in range(8)], -1),
            sd=lambda: np.ones((5, 8)),
        ),
    )
    assert interesting(wide, most=2) == [2, 7]
    assert interesting(fit) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_figure_is_the_same_file(tmp_path, kind):
    fit = CASES["3 tasks"]
    paths = [plots.save(plots.draw("spread", fit), tmp_path / f"{i}.{kind}") for i in (1, 2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"1.{kind}", f"2.{kind}"]


def test_a_png_has_200_dots_per_inch_and_folders_are_made(tmp_path):
    path = plots.save(plots.prior(CASES["3 tasks"]).figure, tmp_path / "new" / "prior.png")
    width = int.from_bytes(path.read_bytes()[16:20], "big")
    assert width == int(plots.SINGLE * 200)
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plots.save(plots.prior(CASES["3 tasks"]).figure, tmp_path / "prior.gif")


def test_what_shares_a_colour_differs_by_line_or_marker():
    methods = set(plots.LINES)
    looks = {m: (plots.COLOURS[m], plots.LINES[m], plots.MARKERS[m]) for m in methods}
    assert len(set(looks.values())) == len(methods)
    grey = {r: np.dot(to_rgb(plots.COLOURS[r]), [0.299, 0.587, 0.114]) for r in plots.COLOURS}
    assert abs(grey["posterior"] - grey["no_pooling"]) > 0.08
    assert set(plots.MARKERS) <= set(plots.COLOURS)


def test_half_widths_of_normal_intervals():
    assert z(0.5) == pytest.approx(0.67448975)
    assert z(0.95) == pytest.approx(1.95996398)
