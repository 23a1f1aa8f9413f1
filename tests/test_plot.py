"""Figures: what is drawn where, and what is refused."""

import itertools
from typing import Any

import jax.numpy as jnp
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

from divjax import plot


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def dataset(values, **coordinates):
    values = np.asarray(values, float)
    names = list(coordinates)
    return xarray.Dataset({"loss": ([*names, "seed"], values)}, coordinates)


class TestCurves:
    def test_the_band_is_one_standard_error_around_the_mean(self):
        values = np.random.default_rng(0).normal(size=(6, 5))
        ax = plot.curves(values, steps=[0, 2, 4, 6, 8], label="a")
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values.mean(0))
        assert np.asarray(ax.lines[0].get_xdata()).tolist() == [0, 2, 4, 6, 8]
        band = np.asarray(ax.collections[0].get_paths()[0].vertices)
        error = values.std(0, ddof=1) / np.sqrt(6)
        assert band[:, 1].max() == pytest.approx((values.mean(0) + error).max())
        assert band[:, 1].min() == pytest.approx((values.mean(0) - error).min())
        # One entry of a legend for the curve and its band.
        assert ax.get_legend_handles_labels()[1] == ["a"]

    def test_a_step_at_which_a_seed_is_not_finite_is_a_gap(self):
        ax = plot.curves([[1.0, 2.0, 3.0], [np.nan, 4.0, np.inf], [3.0, 6.0, -np.inf]])
        np.testing.assert_equal(ax.lines[0].get_ydata(), [np.nan, 4.0, np.nan])

    @pytest.mark.parametrize(
        ("values", "lone"),
        [
            ([[2.0], [4.0]], [(0, 3.0)]),
            ([5.0, np.nan, 6.0, 7.0, np.inf, 8.0], [(0, 5.0), (5, 8.0)]),
        ],
    )
    def test_steps_between_gaps_are_dots(self, values, lone):
        ax = plot.curves(values)
        dots = ax.lines[1]
        assert dots.get_linestyle() == "None"
        assert list(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == lone
        assert dots.get_color() == ax.lines[0].get_color()

    def test_the_error_of_a_single_step_is_drawn(self):
        ((bar,),) = (bars.get_segments() for bars in plot.curves([[2.0], [4.0]]).containers[0][2])
        np.testing.assert_allclose(bar, [[0, 2], [0, 4]])  # 3 ± √2/√2

    def test_one_curve_has_no_band(self):
        assert not plot.curves([1.0, 2.0]).collections

    def test_it_draws_on_the_axis_it_is_given(self):
        _, (left, right) = plt.subplots(1, 2)
        assert plot.curves([1.0, 2.0], ax=left) is left
        assert not right.lines

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"got shape \(1, 1, 2\)"):
            plot.curves(np.ones((1, 1, 2)))


class TestStyle:
    def test_lines_differ_in_dashes_and_lightness_not_in_colour_alone(self):
        with plot.style():
            cycle = list(plt.rcParams["axes.prop_cycle"])
        assert len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
        grey = [np.dot(matplotlib.colors.to_rgb(e["color"]), [0.299, 0.587, 0.114]) for e in cycle]
        assert all(abs(a - b) > 0.1 for a, b in itertools.pairwise(grey))

    def test_it_ends_where_it_was_opened(self):
        before = dict(plt.rcParams)
        with plot.style():
            assert plt.rcParams["axes.grid"]
        assert dict(plt.rcParams) == before


class TestHeatmap:
    def test_means_over_seeds_lie_at_their_settings(self):
        values = np.arange(12.0).reshape(2, 3, 2)
        ax = plot.heatmap(dataset(values, rate=[0.1, 0.2], width=[1.0, 10.0, 100.0]), "loss")
        np.testing.assert_allclose(ax.collections[0].get_array(), values.mean(-1))
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("width", "rate")
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
        assert ax.figure.axes[1].get_ylabel() == "loss, mean over seeds"
        swapped = plot.heatmap(
            dataset(values, rate=[0.1, 0.2], width=[1.0, 10.0, 100.0]), "loss", x="rate",
            ax=plt.subplots()[1],
        )  # fmt: skip
        np.testing.assert_allclose(swapped.collections[0].get_array(), values.mean(-1).T)
        assert swapped.get_ylabel() == "width"

    def test_choices_have_their_labels(self):
        ax = plot.heatmap(dataset(np.ones((2, 2, 1)), method=["a", "b"], rate=[1.0, 2.0]), "loss")
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]

    def test_settings_that_are_not_finite_are_left_out(self):
        values = np.ones((2, 2, 2))
        values[0, 1, 1] = np.nan
        ax = plot.heatmap(dataset(values, a=[1.0, 2.0], b=[1.0, 2.0]), "loss")
        assert np.ma.getmaskarray(ax.collections[0].get_array()).sum() == 1
        assert ax.patch.get_hatch() == "///"

    @pytest.mark.parametrize(
        ("settings", "edges"),
        [
            ([0.01, 0.1, 1.0], [10**-2.5, 10**-1.5, 10**-0.5, 10**0.5]),
            ([1.0, 3.0, 2.0], [0.5, 1.5, 2.5, 3.5]),
            ([100, 1, 10], [10**-0.5, 10**0.5, 10**1.5, 10**2.5]),
            (np.array([100, 175, 250], np.uint8), [62.5, 137.5, 212.5, 287.5]),
            ([5.0], [-0.5, 0.5]),
            (["b", "a"], [-0.5, 0.5, 1.5]),
        ],
    )
    def test_cells_end_halfway_between_settings(self, settings, edges):
        values = np.arange(2.0 * len(settings)).reshape(2, -1, 1)
        ax = plot.heatmap(dataset(values, a=[0.0, 1.0], b=settings), "loss")
        mesh: Any = ax.collections[0]
        np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], edges)
        assert ax.get_xlim() == pytest.approx((edges[0], edges[-1]))
        # A number's own mean is in the cell around it.
        if len(settings) > 2:
            cells = np.searchsorted(edges, settings) - 1
            np.testing.assert_allclose(mesh.get_array()[:, cells], values[..., 0])

    def test_few_settings_are_labelled_and_many_are_not(self):
        """Unevenly spaced ones have cells of one width; no axis shows settings that are none."""
        values = np.arange(6.0).reshape(3, 2, 1)
        ax = plot.heatmap(dataset(values, a=[0.2, 0.05, 1.0], b=[1.0, 100.0]), "loss", scale="log")
        assert [label.get_text() for label in ax.get_yticklabels()] == ["0.05", "0.2", "1"]
        assert ax.get_ylim() == (-0.5, 2.5)
        np.testing.assert_allclose(ax.collections[0].get_array()[0], values[1, :, 0])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "100"]
        assert len(ax.figure.axes[1].get_yticks()) >= 3
        many = np.arange(13.0) ** 2
        ax = plot.heatmap(dataset(np.ones((13, 2, 1)), a=many, b=[1.0, 2.0]), "loss")
        assert ax.get_ylim() == (-0.5, 155.5)

    def test_logarithmic_colours_leave_out_what_has_none(self):
        values = np.array([[-1.0, 0.0, 2.0], [3.0, 4.0, np.inf]])[..., None]
        data = dataset(values, a=[0.0, 1.0], b=[0.0, 1.0, 2.0])
        ax = plot.heatmap(data, "loss", scale="log")
        missing = np.ma.getmaskarray(ax.collections[0].get_array())
        assert missing.tolist() == [[True, True, False], [False, False, True]]
        assert ax.patch.get_hatch() == "///"
        with pytest.raises(ValueError, match="no mean is positive"):
            plot.heatmap(-np.abs(data), "loss", scale="log")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variable": "other"}, "variable must be one of the dataset, .*; got 'other'"),
            ({"x": "c"}, "x and y must be a and b; got c"),
            ({"x": "a", "y": "a"}, "got a and a"),
            ({"scale": "square"}, "scale must be one of linear, log"),
        ],
    )
    def test_refusals(self, options, message):
        data = dataset(np.ones((2, 2, 1)), a=[1.0, 2.0], b=[1.0, 2.0])
        with pytest.raises(ValueError, match=message):
            plot.heatmap(data, **{"variable": "loss", **options})
        with pytest.raises(ValueError, match="two dimensions beside seed"):
            plot.heatmap(data.isel(a=0), "loss")


class TestOthers:
    def test_particles_lie_on_the_contours_of_their_density(self):
        x = np.random.default_rng(0).normal(size=(30, 2))
        ax = plot.particles(x, lambda z: -(z**2).sum() / 2, limits=(-4, 4, -3, 3))
        # The outermost contour is the circle of radius two.
        outer = ax.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(np.linalg.norm(outer, axis=1), 2, atol=0.02)
        assert (ax.get_xlim(), ax.get_ylim()) == ((-4, 4), (-3, 3))
        with pytest.raises(
            ValueError, match=r"x must be points of the plane, of shape \(n, 2\); got \(30, 3\)"
        ):
            plot.particles(np.ones((30, 3)))

    def test_equal_particles_have_a_range(self):
        ax = plot.particles(np.ones((3, 2)))
        assert ax.get_xlim()[0] < 1 < ax.get_xlim()[1]

    def test_the_view_is_a_quarter_wider_than_the_particles_wherever_they_are(self):
        ax = plot.particles(1e6 + np.array([[0.0, 0.0], [4.0, 8.0]]))
        np.testing.assert_array_equal(
            np.subtract((*ax.get_xlim(), *ax.get_ylim()), 1e6), [-1, 5, -2, 10]
        )

    def test_the_staircase_is_what_is_not_dominated(self):
        values = np.random.default_rng(1).random((40, 2))
        line = plot.front(values).lines[0]
        best = [tuple(v) for v in values if not ((values <= v).all(1) & (values < v).any(1)).any()]
        assert set(zip(line.get_xdata(), line.get_ydata(), strict=True)) == set(best)

    @pytest.mark.parametrize("gap", [[0, np.nan], [np.nan, 0], [-np.inf, 0], [0, np.inf]])
    def test_points_that_are_not_finite_are_no_candidates(self, gap):
        ax = plot.front([gap, [1, 1], [2, 0.5]], label="runs")
        assert np.asarray(ax.lines[0].get_xydata()).tolist() == [[1, 1], [2, 0.5]]
        assert ax.get_legend_handles_labels()[1] == ["runs (1 not finite, left out)"]

    def test_contributions_are_ranked(self):
        ax = plot.contributions(["a", "b", "c"], [0.1, 0.5, 0.3], [0.01] * 3, most=2)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c"]
        assert ax.get_title() == "the 2 largest of 3"
        with pytest.raises(ValueError, match="equally many; got 2 names"):
            plot.contributions(["a", "b"], [1.0])
        with pytest.raises(ValueError, match="most must be an integer of at least 0; got -1"):
            plot.contributions(["a"], [1.0], most=-1)

    def test_contributions_that_are_not_finite_have_no_bar(self):
        ax: Any = plot.contributions(["a", "b", "c", "d"], [np.nan, 0.5, np.inf, -0.3])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "b", "d", "a"]
        np.testing.assert_equal(
            [bar.get_width() for bar in ax.patches], [np.nan, 0.5, -0.3, np.nan]
        )

    def test_particles_that_are_not_finite_leave_the_view_to_the_others(self):
        x = np.array([[0.0, 0.0], [1.0, 2.0], [np.nan, 0.0], [np.inf, 0.0]])
        ax = plot.particles(x, lambda z: jnp.where(z[0] > 0.5, jnp.inf, -(z**2).sum()))
        assert (ax.get_xlim(), ax.get_ylim()) == ((-0.25, 1.25), (-0.5, 2.5))
        with pytest.raises(ValueError, match="x must hold a point that is finite"):
            plot.particles(x[2:])


class TestMasks:
    """What is masked is missing, whatever lies beneath the mask."""

    masked = np.ma.masked_equal([[1.0, 2.0], [3.0, 999.0], [5.0, 4.0]], 999)

    def test_masked_numbers_are_not_drawn(self):
        np.testing.assert_equal(plot.curves(self.masked).lines[0].get_ydata(), [3, np.nan])
        front = plot.front(self.masked[:2], label="a")
        assert front.get_legend_handles_labels()[1][0] == "a (1 not finite, left out)"
        for draw in (plot.particles, lambda x, ax: plot.displacements(x, x, ax=ax)):
            assert draw(self.masked, ax=plt.subplots()[1]).get_ylim()[1] < 10
        bars: Any = plot.contributions(["a", "b"], self.masked[1]).patches
        assert bars[0].get_width() == 3

    @pytest.mark.parametrize(
        "call",
        [
            lambda m: plot.coupling([[0, 0]] * 3, [[1, 1]] * 2, m),
            lambda m: plot.reliability(m[1] / 999, [0, 1], num_bins=1),
            lambda m: plot.coverage([0.1, 0.2], m / 999),
        ],
    )
    def test_refusals(self, call):
        with pytest.raises(ValueError, match=r"without NaN|in \[0, 1\]"):
            call(self.masked)


class TestPlans:
    x, y = np.random.default_rng(2).normal(size=(2, 4, 2))

    def test_a_pair_is_a_line_as_dark_as_its_mass(self):
        plan = np.diag([0.1, 0.2, 0.3, 0.4])
        lines: Any = plot.coupling(self.x, self.y, plan).collections[0]
        for segment, i in zip(lines.get_segments(), range(4), strict=True):
            np.testing.assert_allclose(segment, [self.x[i], self.y[i]])
        opacity = np.asarray(lines.get_alpha())
        np.testing.assert_allclose(np.diff(opacity), opacity[1] - opacity[0])
        none: Any = plot.coupling(self.x, self.y, plan, most=0, ax=plt.subplots()[1]).collections[0]
        assert not none.get_segments()
        few: Any = plot.coupling(self.x, self.y, plan, most=2, ax=plt.subplots()[1]).collections[0]
        np.testing.assert_allclose(few.get_segments()[1], [self.x[3], self.y[3]])

    def test_arrows_end_at_the_images(self):
        ax = plot.displacements(self.x, self.y)
        arrows: Any = ax.collections[0]
        np.testing.assert_allclose(arrows.get_offsets(), self.x)
        np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), self.y - self.x)
        for low, high, column in (
            (*ax.get_xlim(), [*self.x[:, 0], *self.y[:, 0]]),
            (*ax.get_ylim(), [*self.x[:, 1], *self.y[:, 1]]),
        ):
            assert low <= min(column)
            assert max(column) <= high

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"plan must be of shape \(4, 4\)"):
            plot.coupling(self.x, self.y, np.ones((4, 3)))
        for number in (np.nan, np.inf):
            with pytest.raises(ValueError, match="without NaN or infinity"):
                plot.coupling(self.x, self.y, np.full((4, 4), number))
        with pytest.raises(ValueError, match="most must be an integer of at least 0; got -1"):
            plot.coupling(self.x, self.y, np.eye(4), most=-1)
        with pytest.raises(ValueError, match="got 3 of 4"):
            plot.displacements(self.x, self.y[:3])


class TestAnimation:
    frames = np.random.default_rng(3).normal(size=(5, 6, 2))

    def test_each_frame_shows_its_particles(self, tmp_path):
        movie = plot.animation(self.frames, steps=[0, 10, 20, 30, 40], limits=(-9, 9, -8, 8))
        assert plt.gca().get_xlim() + plt.gca().get_ylim() == (-9, 9, -8, 8)
        movie.save(tmp_path / "flow.gif", writer="pillow")
        assert (tmp_path / "flow.gif").stat().st_size > 1000
        (axis,) = plt.gcf().axes
        np.testing.assert_allclose(axis.collections[-1].get_offsets(), self.frames[-1])
        assert axis.get_title() == "step 40"
        assert axis.get_xlim()[0] < self.frames[..., 0].min()

    def test_a_run_that_diverged_is_shown_as_far_as_it_went(self):
        frames = np.concatenate([self.frames, np.full((1, 6, 2), np.nan)])
        movie: Any = plot.animation(frames)
        movie._draw_was_started = True  # it is neither shown nor saved here
        limits = plt.gcf().axes[0].get_xlim()
        low, high = self.frames[..., 0].min(), self.frames[..., 0].max()
        assert limits == pytest.approx((low - (high - low) / 10, high + (high - low) / 10))

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"\(frames, n, 2\); got \(6, 2\)"):
            plot.animation(self.frames[0])
        with pytest.raises(ValueError, match="steps must be one a frame; got 2 for 5"):
            plot.animation(self.frames, steps=[0, 1])


class TestCalibration:
    def test_shares_of_bins_of_equal_counts(self):
        p = np.repeat([0.1, 0.5, 0.9], 40)
        happened = np.concatenate([np.arange(40) < share for share in (4, 20, 36)])
        ax = plot.reliability(p, happened, num_bins=3)
        drawn: Any = ax.containers[0]
        points = drawn.lines[0]
        np.testing.assert_allclose(points.get_xdata(), [0.1, 0.5, 0.9])
        np.testing.assert_allclose(points.get_ydata(), [0.1, 0.5, 0.9])
        bars = drawn.lines[2][0].get_segments()
        assert bars[1][1, 1] - bars[1][0, 1] == pytest.approx(2 * np.sqrt(0.25 / 40))

    @pytest.mark.parametrize(
        ("p", "happened", "num_bins", "points"),
        [
            ([0.5] * 100, [0] * 50 + [1] * 50, 2, [[0.5, 0.5]]),
            ([0.2] * 50 + [0.8] * 50, [0] * 40 + [1] * 10 + [0] * 10 + [1] * 40, 10,
             [[0.2, 0.2], [0.8, 0.8]]),
            ([0.1] * 9 + [0.3, 0.5, 0.7], [1] + [0] * 10 + [1], 3, [[0.1, 1 / 9], [0.5, 1 / 3]]),
            (np.arange(6) / 10, [0, 0, 0, 1, 1, 1], 3, [[0.05, 0], [0.25, 0.5], [0.45, 1]]),
        ],
    )  # fmt: skip
    def test_equal_predictions_share_a_bin(self, p, happened, num_bins, points):
        drawn: Any = plot.reliability(p, happened, num_bins=num_bins).containers[0]
        np.testing.assert_allclose(drawn.lines[0].get_xydata(), points)

    def test_coverage_is_a_share_of_repetitions(self):
        covered = np.array([[1, 1], [0, 1], [1, 1], [0, 1]], bool)
        drawn: Any = plot.coverage([0.5, 0.9], covered).containers[0]
        points = drawn.lines[0]
        np.testing.assert_allclose(points.get_ydata(), [0.5, 1.0])

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: plot.reliability([0.1], [1, 0]), "equally many"),
            (lambda: plot.reliability([0.1] * 5, [1] * 5), "at least 10"),
            (lambda: plot.reliability([1.1] * 10, [1] * 10), r"in \[0, 1\]"),
            (lambda: plot.coverage([0.5], np.ones((3, 2))), "a column for each of 1 levels"),
            (lambda: plot.coverage([0.5], [[np.nan], [1]]), r"in \[0, 1\]"),
            (lambda: plot.coverage([50], [[0], [1]]), r"in \[0, 1\]"),
        ],
    )
    def test_refusals(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
