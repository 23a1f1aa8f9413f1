"""Sweeps: the same numbers as a loop over settings and seeds, under the names of the results."""

import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from jaxtyping import Array, Float

from divjax import fdiv, flows, kernels, ot, pytree, sweep, sweeps
from divjax.core.keys import own_key
from divjax.sweeps import compilation
from tests.contract.promises import COMPILED

KEY = jax.random.key(0)


def noisy(key, scale, shift=0.0):
    return scale * jax.random.normal(key) + shift


def quiet(fn, grid, **options):
    return sweep(options.pop("key", KEY), fn, grid, progress=False, **options)


def seeds(num):
    """The keys of the seeds, as documented: `fold_in(key, s)` of the sweep's own key."""
    return [jax.random.fold_in(own_key(KEY), s) for s in range(num)]


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_cells_are_those_of_a_loop(batch_size):
    scales, shifts = [0.5, 1.0, 2.0], [0.0, 10.0]
    result = quiet(noisy, {"scale": scales, "shift": shifts}, num_seeds=4, batch_size=batch_size)
    loop = [[[noisy(k, a, b) for k in seeds(4)] for b in shifts] for a in scales]
    np.testing.assert_allclose(result["value"], np.array(loop), rtol=1e-6)
    assert result["value"].dims == ("scale", "shift", "seed")
    assert result["value"].dtype == np.float32


def test_seeds_are_common_to_settings_and_stay_when_more_are_added():
    few = quiet(noisy, {"scale": [1.0, 1.5]}, num_seeds=2)
    many = quiet(noisy, {"scale": [3.0, 1.0]}, num_seeds=5)
    np.testing.assert_array_equal(few["value"].sel(scale=1.0), many["value"].sel(scale=1.0)[:2])
    np.testing.assert_allclose(few["value"].sel(scale=1.5), 1.5 * few["value"].sel(scale=1.0))


def test_no_dimension_but_seeds():
    result = quiet(lambda key: jax.random.normal(key), {}, num_seeds=3)
    assert dict(result.sizes) == {"seed": 3}
    np.testing.assert_allclose(result["value"], [jax.random.normal(k) for k in seeds(3)])


def test_zipped_is_one_dimension_with_all_coordinates():
    grid = {"setting": sweeps.zipped(scale=[1.0, 2.0, 3.0], shift=[0.0, 5.0, 0.0])}
    result = quiet(noisy, grid, num_seeds=2)
    assert dict(result.sizes) == {"setting": 3, "seed": 2}
    np.testing.assert_array_equal(result.scale, [1, 2, 3])
    np.testing.assert_array_equal(result["shift"], [0, 5, 0])
    np.testing.assert_allclose(
        result["value"][1], [noisy(k, 2.0, 5.0) for k in seeds(2)], rtol=1e-6
    )


def test_choices_are_compiled_one_by_one_and_keep_their_place():
    """Among numbers, in the order of the grid, and zipped with numbers."""

    def power(key, scale, num_factors, name, shift):
        assert isinstance(num_factors, int)
        assert isinstance(name, str)
        x = jnp.prod(jnp.full(num_factors, scale)) + shift
        return -x if name == "minus" else x

    grid = {
        "scale": [2.0, 3.0],
        "num_factors": sweeps.choices([1, 3]),
        "sign": sweeps.zipped(name=["plus", "minus", "double"], shift=[0.0, 0.0, 1.0]),
    }
    result = quiet(power, grid, num_seeds=2)
    assert result["value"].dims == ("scale", "num_factors", "sign", "seed")
    expected = [
        [[[f * (s**n + t)] * 2 for f, t in [(1, 0), (-1, 0), (1, 1)]] for n in (1, 3)]
        for s in (2.0, 3.0)
    ]
    np.testing.assert_allclose(result["value"], expected, rtol=1e-6)
    assert float(result["value"].sel(scale=3.0, num_factors=3)[0, 0]) == 27.0
    assert result["name"].values.tolist() == ["plus", "minus", "double"]


def test_methods_are_choices():
    """Objects of divjax itself, whose numbers are leaves, by labels."""
    x = jax.random.normal(KEY, (20, 2))

    def value(key, kernel, scale):
        return jnp.sum(kernel(scale * x, x))

    grid = {"kernel": {"g": kernels.Gaussian(1.0), "e": kernels.Energy()}, "scale": [1.0, 2.0]}
    result = quiet(value, grid, num_seeds=1)
    assert result.kernel.values.tolist() == ["g", "e"]
    np.testing.assert_allclose(
        result["value"].sel(kernel="e", scale=2.0), jnp.sum(kernels.Energy()(2 * x, x)), rtol=1e-5
    )


class Fit(NamedTuple):
    value: Float[Array, ""]
    curve: Float[Array, " num_steps"]
    clash: Float[Array, " num_steps"]


def test_results_become_variables_by_fields_and_axes_by_annotations():
    def fn(key, scale):
        fit = Fit(scale, scale * jnp.arange(4.0), jnp.ones(3))
        return {"fit": fit, "other": (scale, jnp.zeros((2, 2))), "key": key, "i": jnp.int32(1)}

    result = quiet(fn, {"scale": [1.0, 2.0]}, num_seeds=1, dims={"other_1": ("row", "column")})
    assert set(result.data_vars) == {
        "fit", "fit_curve", "fit_clash", "other_0", "other_1", "i", "finite",
    }  # fmt: skip
    assert result["fit"].dims == ("scale", "seed")
    assert result.fit_curve.dims == ("scale", "seed", "num_steps")
    # Its annotation names an axis of another size.
    assert result.fit_clash.dims == ("scale", "seed", "fit_clash_0")
    assert result.other_1.dims == ("scale", "seed", "row", "column")
    np.testing.assert_allclose(result.fit_curve.sel(scale=2.0)[0], [0, 2, 4, 6])
    assert result.i.dtype == np.int32


def test_the_fields_of_estimates_and_solvers():
    x, y = jax.random.normal(KEY, (2, 40, 2))
    result = quiet(
        lambda key, epsilon: ot.sinkhorn(x, y, epsilon=epsilon),
        {"epsilon": [0.5, 1.0]},
        num_seeds=1,
    )
    assert {"value", "status"} <= set(result.data_vars)
    direct = ot.sinkhorn(x, y, epsilon=1.0)
    np.testing.assert_allclose(result["value"].sel(epsilon=1.0)[0], direct.value, rtol=1e-5)

    neighbors = lambda key, shift: {"kl": fdiv.knn_kl(x, y + shift)}
    estimate = quiet(neighbors, {"shift": [0.0, 1.0]}, num_seeds=2)
    assert {"kl", "kl_std_error", "kl_interval_lower", "kl_interval_upper"} <= set(estimate)


def test_values_that_are_not_finite_are_kept_and_flagged():
    def fn(key, x):
        return {"a": 1 / x, "b": jnp.array([1.0, jnp.nan]) * x, "c": jnp.ones(2)}

    result = quiet(lambda key, x: {"a": 1 / x, "c": jnp.ones(2)}, {"x": [0.0, 1.0]}, num_seeds=2)
    assert np.isinf(result.a.sel(x=0.0)).all()
    np.testing.assert_array_equal(result.finite, [[False, False], [True, True]])
    # One entry of an array that is NaN.
    assert not quiet(fn, {"x": [1.0]}).finite.any()


def test_hyper_parameters_are_weakly_typed():
    """As Python's numbers: half precision stays, and strict promotion allows them."""
    half = jnp.ones(3, jnp.bfloat16)
    dtypes = []

    def fn(key, scale):
        dtypes.append((scale * half).dtype)
        return (scale * half)[0]

    with jax.numpy_dtype_promotion("strict"):
        result = quiet(fn, {"scale": [0.5, 2.0]}, num_seeds=1)
    assert dtypes == [jnp.bfloat16]
    # Files and pandas do not know bfloat16.
    assert result["value"].dtype == np.float32
    np.testing.assert_array_equal(result["value"][:, 0], [0.5, 2.0])


def test_float64_reaches_all_threads():
    with jax.enable_x64(True):
        result = quiet(lambda key, x: x + 1, {"x": np.array([1e-12, 1e-13])}, num_seeds=3)
        assert result["value"].dtype == np.float64
        np.testing.assert_allclose(result["value"][:, 0] - 1, [1e-12, 1e-13], rtol=1e-3)
    assert quiet(lambda key, x: x + 1, {"x": [1.0]})["value"].dtype == np.float32


def test_a_second_sweep_compiles_nothing():
    """Of the same operations: with another key, other values, and other data of equal shapes."""

    def run(data, key, start):
        def fn(key, scale):
            # A custom derivative, whose rules are new objects in each trace.
            return jnp.sum(jax.nn.relu(data * scale)) + jax.random.normal(key)

        return quiet(fn, {"scale": [start, start + 1]}, num_seeds=2, key=key)

    run(jnp.arange(3.0), KEY, 1.0)
    key, data = jax.random.key(7), jnp.arange(3.0) + 1
    COMPILED.clear()
    second = run(data, key, 5.0)
    assert not COMPILED
    own = jax.random.fold_in(own_key(key), 1)
    np.testing.assert_allclose(second["value"][1, 1], 6 * 6.0 + jax.random.normal(own), rtol=1e-6)


def test_other_operations_are_another_program():
    data = jnp.arange(3.0)
    first = quiet(lambda key, scale: jnp.sum(jnp.sin(data * scale)), {"scale": [1.0]}, num_seeds=1)
    second = quiet(lambda key, scale: jnp.sum(jnp.cos(data * scale)), {"scale": [1.0]}, num_seeds=1)
    np.testing.assert_allclose(first["value"][0, 0], np.sin([0, 1, 2]).sum(), rtol=1e-6)
    np.testing.assert_allclose(second["value"][0, 0], np.cos([0, 1, 2]).sum(), rtol=1e-6)


def test_callbacks_are_never_taken_for_each_other():
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def run(function):
        call = lambda key, x: jax.pure_callback(function, shape, x)
        return float(quiet(call, {"x": [3.0]}, num_seeds=1)["value"][0, 0])

    assert run(lambda x: np.float32(x + 1)) == 4.0
    assert run(lambda x: np.float32(x * x)) == 9.0


class Accelerator(NamedTuple):
    platform: str = "gpu"


def test_lanes_of_an_accelerator_are_the_cells_of_a_loop(monkeypatch):
    """Batches as on an accelerator, whatever their size, compiled here for the CPU."""
    grid = {"scale": [0.5, 1.0, 2.0], "shift": [0.0, 3.0]}
    loop = quiet(noisy, grid, num_seeds=3)
    single = compilation.compile_cells

    def as_there(cells, batch_size, mesh):
        monkeypatch.setattr(compilation, "_budget", lambda device: 2**30)
        return compilation._batched(cells, batch_size, mesh, Accelerator())

    monkeypatch.setattr("divjax.sweeps.runs.compile_cells", as_there)
    for batch_size in (None, 1, 4, 100):
        result = quiet(noisy, grid, num_seeds=3, batch_size=batch_size)
        np.testing.assert_allclose(result["value"], loop["value"], rtol=1e-6)
    assert single is not as_there


def test_a_batch_is_made_small_enough_for_the_memory(monkeypatch):
    large = lambda key, scale: jnp.sum(scale * jax.random.normal(key, (1000,)) ** 2)
    sizes = []

    def compiled(*args):
        sizes.append(args[-1])
        return real(*args)

    real = compilation._compile_batch
    monkeypatch.setattr(compilation, "_compile_batch", compiled)
    monkeypatch.setattr(compilation, "_budget", lambda device: 50_000)
    monkeypatch.setattr(
        "divjax.sweeps.runs.compile_cells",
        lambda cells, size, mesh: compilation._batched(cells, size, mesh, Accelerator()),
    )
    result = quiet(large, {"scale": np.arange(1.0, 101.0)}, num_seeds=1)
    assert sizes[0] == 100
    assert 1 <= sizes[1] < 100
    expected = np.arange(1.0, 101.0) * float(jnp.sum(jax.random.normal(seeds(1)[0], (1000,)) ** 2))
    np.testing.assert_allclose(result["value"][:, 0], expected, rtol=1e-5)


def test_a_mesh_of_one_device():
    mesh = jax.make_mesh((1,), ("any",))
    grid = {"scale": [0.5, 1.0, 2.0]}
    np.testing.assert_allclose(
        quiet(noisy, grid, mesh=mesh, batch_size=4)["value"], quiet(noisy, grid)["value"], rtol=1e-6
    )


def test_whole_flows_in_a_sweep():
    """A flow's own programs become part of the sweep's, whose cells are runs as one calls them."""
    particles = jax.random.normal(KEY, (8, 2))

    def fn(key, learning_rate, bandwidth):
        import optax

        flow = flows.Flow(
            objectives=(flows.KL(lambda x: -jnp.sum(x**2) / 2),),
            velocity=flows.SVGD(kernels.Gaussian(bandwidth)),
            optimizer=optax.sgd(learning_rate),
        )
        result = flow.run(key, particles, num_steps=3)
        return {"particles": result.particles, "norm": result.history.squared_norm}

    grid = {"learning_rate": [0.01, 0.1], "bandwidth": [0.5, 1.0]}
    result = quiet(fn, grid, num_seeds=1)
    direct = fn(seeds(1)[0], 0.1, 0.5)
    cell = result.sel(learning_rate=0.1, bandwidth=0.5, seed=0)
    np.testing.assert_allclose(cell.particles, direct["particles"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cell.norm, direct["norm"], rtol=1e-4)


def test_choices_may_return_different_variables():
    def fn(key, method):
        return {"a": jnp.ones(())} if method == "one" else {"a": jnp.zeros(()), "n": jnp.int32(3)}

    result = quiet(fn, {"method": ["one", "two"]}, num_seeds=2)
    np.testing.assert_array_equal(result["a"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(result["n"], [[np.nan, np.nan], [3, 3]])
    # What a choice does not return is not a value that is not finite.
    assert result.finite.all()


@pytree
class Three:
    a: Float[Array, " n"]


@pytree
class Four:
    b: Float[Array, " n"]


def test_axes_of_one_name_and_two_sizes_are_two_axes():
    """The results of two choices are in one dataset, where a dimension has one size."""
    grid = {"kind": ["three", "four"]}
    fn = lambda key, kind: Three(jnp.zeros(3)) if kind == "three" else Four(jnp.zeros(4))
    assert dict(quiet(fn, grid).sizes) == {"kind": 2, "seed": 5, "n": 3, "b_0": 4}
    named = quiet(fn, grid, dims={"b": ("m",)})
    assert dict(named.sizes) == {"kind": 2, "seed": 5, "n": 3, "m": 4}


def test_a_failing_cell_does_not_hang():
    def fail(x):
        raise RuntimeError("failed in a callback")

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    before = threading.active_count()
    with pytest.raises(Exception, match="failed in a callback"):
        quiet(lambda key, x: jax.pure_callback(fail, shape, x), {"x": np.arange(1.0, 30.0)})
    assert threading.active_count() <= before + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fn": lambda key: 1.0}, "fn must take a key and the hyper-parameters scale by name"),
        ({"fn": lambda key, scale, other: 1.0}, "missing a required argument: 'other'"),
        ({"fn": 3.0}, "fn must be"),
        ({"key": 0}, "key must be"),
        ({"num_seeds": 0}, "num_seeds must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"mesh": 2}, "mesh must be a jax.sharding.Mesh; got int"),
        ({"progress": 1}, "progress must be True or False"),
        ({"fn": lambda key, scale: [0.0] * int(scale)}, r"scale that select operations.*choices"),
        ({"fn": lambda key, scale: 1.0 if scale > 0 else 2.0}, r"choices\(\[...\]\)"),
        ({"fn": lambda key, scale: {"scale": scale}}, "must not name a result.*got scale"),
        ({"fn": lambda key, scale: {"finite": scale}}, "must not name a result.*got finite"),
        ({"fn": lambda key, scale: {"a_b": scale, "a": {"b": scale}}}, "got a_b twice"),
        ({"dims": {"other": ("n",)}}, "dims must name variables .*, value; got 'other'"),
        ({"fn": lambda key, scale: {"a": scale, "b": "x"}}, "pytree of arrays; got a str"),
        ({"fn": lambda key, scale: (key, None)}, "at least one array; got none"),
        ({"dims": {"value": ("n",)}}, r"name each axis of value, of shape \(\)"),
        (
            {"fn": lambda key, scale: jnp.ones(3), "dims": {"value": ("scale",)}},
            "a name of its own; got 'scale'",
        ),
        ({"grid": {"scale": [1e-50, 1.0]}}, "scale must hold numbers that JAX's float32 holds"),
        ({"grid": {"scale": [1e39, 1.0]}}, "scale must hold numbers that JAX's float32 holds"),
        ({"grid": {"scale": [1e8, 1e8 + 1]}}, "scale must hold numbers that JAX's float32 holds"),
        ({"grid": {"scale": np.array([1, 2**40])}}, "scale must hold integers within JAX's int32"),
        ({"grid": {"scale": np.array(["a", "b"])}}, "scale must hold real numbers; got an array"),
        (
            {"fn": lambda key, n: jnp.ones(n), "grid": {"n": sweeps.choices([1, 2])}},
            r"value of one shape for all choices; got \(1,\) and \(2,\)",
        ),
    ],
)  # fmt: skip
def test_arguments_are_refused(change, message):
    arguments = {"key": KEY, "fn": noisy, "grid": {"scale": [1.0, 2.0]}, "progress": False}
    with pytest.raises(ValueError, match=message):
        sweep(**{**arguments, **change})


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(ImportError, match=r"needs xarray.*install divjax\[sweeps\]"):
        quiet(noisy, {"scale": [1.0]})


def test_the_bar_counts_cells(capsys):
    sweep(KEY, noisy, {"scale": [1.0, 2.0]}, num_seeds=3)
    assert "6/6" in capsys.readouterr().err


class TestSummaries:
    grid = {"scale": [1.0, 2.0], "shift": [0.0, 10.0]}  # noqa: RUF012

    def test_means_and_standard_errors_of_seeds(self):
        result = quiet(noisy, self.grid, num_seeds=4)
        table = sweeps.summarize(result)
        draws = np.array([noisy(k, 2.0, 10.0) for k in seeds(4)])
        row = table.loc[(2.0, 10.0)]
        assert row["value", "mean"] == pytest.approx(draws.mean(), rel=1e-5)
        assert row["value", "std_error"] == pytest.approx(draws.std(ddof=1) / 2, rel=1e-5)
        assert row["finite", "share"] == 1.0
        assert len(table) == 4

    def test_means_of_close_numbers_are_in_double_precision(self):
        values = 1e8 + 8 * np.random.default_rng(0).integers(0, 2, (2, 50))
        data = {"value": (("x", "seed"), values.astype(np.float32))}
        result = xarray.Dataset({**data, "finite": (("x", "seed"), np.ones((2, 50), bool))})
        table = sweeps.summarize(result)["value"]
        np.testing.assert_array_equal(table["mean"], values.mean(1))
        error = values.std(1, ddof=1) / 50**0.5
        np.testing.assert_allclose(table["std_error"], error, rtol=1e-6)
        chosen = sweeps.best(result.assign_coords(x=[0, 1]), "value")
        assert int(chosen.x) == values.mean(1).argmin()

    def test_one_seed_has_no_standard_error_and_nan_stays(self):
        table = sweeps.summarize(quiet(noisy, self.grid, num_seeds=1))
        assert table["value", "std_error"].isna().all()
        assert table["value", "mean"].notna().all()
        odd = lambda key, x: jnp.where(jax.random.uniform(key) < x, jnp.nan, 1.0)
        table = sweeps.summarize(quiet(odd, {"x": [0.0, 0.5, 1.0]}, num_seeds=20))
        assert np.isnan(table["value", "mean"][0.5])
        assert 0 < table["finite", "share"][0.5] < 1

    def test_labels_of_zipped_settings(self):
        grid = {"setting": sweeps.zipped(scale=[1.0, 2.0], shift=[0.0, 5.0])}
        table = sweeps.summarize(quiet(noisy, grid, num_seeds=2))
        assert {"scale", "shift"} <= set(table.index.names)

    def test_no_setting(self):
        table = sweeps.summarize(quiet(lambda key: jax.random.normal(key), {}, num_seeds=3))
        assert len(table) == 1

    def test_best(self):
        square = lambda key, x, y: (x - 1) ** 2 + (y - 2) ** 2 + 0 * jax.random.normal(key)
        result = quiet(square, {"x": [0.0, 1.0, 4.0], "y": [2.0, 5.0]}, num_seeds=2)
        chosen = sweeps.best(result, "value")
        assert (float(chosen.x), float(chosen.y)) == (1.0, 2.0)
        assert dict(chosen.sizes) == {"seed": 2}
        chosen = sweeps.best(result, "value", maximize=True)
        assert (float(chosen.x), float(chosen.y)) == (4.0, 5.0)

    def test_best_passes_over_what_is_not_finite(self):
        result = quiet(lambda key, x: jnp.log(x), {"x": [0.0, 1.0, 2.0, -1.0]}, num_seeds=1)
        assert float(sweeps.best(result, "value").x) == 1.0
        with pytest.raises(ValueError, match="finite at a setting"):
            sweeps.best(quiet(lambda key, x: x / 0, {"x": [1.0]}), "value")

    def test_refusals(self):
        result = quiet(lambda key, x: {"v": jnp.ones(3)}, {"x": [1.0]})
        with pytest.raises(ValueError, match="metric must be a variable of the dataset, v, finite"):
            sweeps.best(result, "loss")
        with pytest.raises(ValueError, match="one number a cell"):
            sweeps.best(result, "v")
        with pytest.raises(ValueError, match="dimension seed"):
            sweeps.summarize(result.mean("seed"))
        with pytest.raises(ValueError, match="dataset must be"):
            sweeps.summarize([1.0])


def test_narrow_integers_do_not_wrap():
    """As columns of files have them: 300² is no number of 16 bits, nor is −3 one without a sign."""
    square = quiet(lambda key, x: x * x, {"x": np.array([300, 2], np.int16)})
    assert square["value"].values[:, 0].tolist() == [90000, 4]
    negative = quiet(lambda key, x: -x, {"x": np.array([1, 3], np.uint8)})
    assert negative["value"].values[:, 0].tolist() == [-1, -3]
    half = quiet(lambda key, x: x * x, {"x": np.array([300, 2], np.float16)})
    assert half["value"].values[:, 0].tolist() == [90000, 4]
