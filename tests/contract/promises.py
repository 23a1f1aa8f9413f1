"""What every public method promises, whatever it computes; a room's own file lists its rows."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

N, D = 8, 2
KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(5), (N, D))
WEIGHTS = jax.nn.softmax(0.3 * jax.random.normal(jax.random.key(6), (N,)))


X_MOVED = X + 1

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)

# By the names of rows.
TRACES: collections.Counter = collections.Counter()
FUNCTIONS: dict[str, Callable[..., Any]] = {}
GRADIENTS: dict[str, Callable[..., Any]] = {}


class Row(NamedTuple):
    """A method and how to evaluate it on particles.

    Attributes:
        method: the pytree whose leaves are hyper-parameters.
        evaluate: `(method, key, x "n d", weights "n") -> array`.
        output: what permuting the particles does to the output: "equivariant" (axis −2 is the
            particles'), "invariant", or "random" where the key's draws are tied to positions.
        smooth: whether finite differences in x make sense.
        slow: whether it takes seconds to compile: checked by the exhaustive tests alone, as are
            variations of a name after its first row.
        eager: whether what jit must equal is computed operation by operation. Where that takes
            seconds it is one program without arguments: the method still sees concrete arrays.
        weighted: whether the weights are the particles' masses, so that those of weight zero may
            hold anything.
        sampled: whether the particles are a sample of which nothing can be said if it is empty.
        infinite: what an infinite feature means, if it has a meaning.
        on_host: whether it calls back to the host, which no other device can do by itself.
        positive: which leaves of the method must not be negative.
        flag: `(method, key, x, weights) -> bool`, for results that are flagged by a status.
    """

    method: Any
    evaluate: Callable[..., jax.Array]
    output: str = "invariant"
    smooth: bool = True
    slow: bool = False
    eager: bool = True
    weighted: bool = False
    sampled: bool = False
    infinite: str = ""
    on_host: bool = False
    positive: tuple[int, ...] = ()
    flag: Callable[..., Any] | None = None


def samples(dtype: Any = jnp.float32) -> jax.Array:
    """A fixed second sample, "5 d"."""
    return jax.random.normal(jax.random.key(7), (5, D)).astype(dtype)


def of_samples(estimator: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """An estimator `(x, y, weights, method)` of two samples, the second one fixed."""
    return lambda method, key, x, weights: estimator(x, samples(x.dtype), weights, method)


def of_scores(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function `(method, p, q, weights)` of two samples of scores."""
    return lambda method, key, x, weights: function(method, x[:, 0], x[:, 1], weights)


class Promises:
    """The checks of `rows`. A function is compiled once for all of them."""

    rows: dict[str, Row]

    def pytest_generate_tests(self, metafunc):
        shown: set[str] = set()
        names = []
        for name, row in self.rows.items():
            # A public name is checked once in `make test`, its variations by the exhaustive tests.
            public = public_name(name)
            later = row.slow or public in shown
            shown |= set() if row.slow else {public}
            names.append(pytest.param(name, marks=[pytest.mark.exhaustive] * later))
        metafunc.parametrize("name", names)

    def compiled(self, name):
        """The row's function; `TRACES` counts how often it is traced."""

        def counted(*args):
            TRACES[name] += 1
            return self.rows[name].evaluate(*args)

        return FUNCTIONS.setdefault(name, jax.jit(counted))

    def gradient(self, name, x, weights=WEIGHTS, unit=1.0):
        """In x and in the weights, of the output along a fixed direction, which comes first.

        In double precision, and without the outputs of particles of weight zero.
        """
        method, evaluate, output, *_ = self.rows[name]
        method = floats(method, jnp.float64)

        def projected(x, weights, unit):
            values = evaluate(method, KEY, x, weights)
            if output == "equivariant":
                values = jnp.where(weights[:, None] > 0, values, 0)
            return unit * jnp.sum(jnp.cos(jnp.arange(values.size)) * values.ravel())

        compiled = jax.jit(jax.value_and_grad(projected, argnums=(0, 1)))
        value, gradients = GRADIENTS.setdefault(name, compiled)(
            x, weights.astype(jnp.float64), unit
        )
        return value, *gradients

    def test_jit_equals_eager_and_a_new_leaf_does_not_retrace(self, name):
        method = floats(self.rows[name].method, jnp.float32)
        row = self.rows[name]
        concrete = lambda: row.evaluate(method, KEY, X, WEIGHTS)
        expected = concrete() if row.eager else jax.jit(concrete)()
        assert_close(self.compiled(name)(method, KEY, X, WEIGHTS), expected)
        before = TRACES[name]
        self.compiled(name)(jax.tree.map(lambda leaf: scaled(leaf, 1.5), method), KEY, X, WEIGHTS)
        self.compiled(name)(method, jax.random.key(8), X + 1, WEIGHTS)
        assert TRACES[name] == before

    def test_a_second_eager_call_compiles_nothing(self, name):
        """As in a notebook: a loop that is not compiled as a whole is compiled anew every time."""
        row = self.rows[name]
        if not row.eager:
            pytest.skip("takes seconds operation by operation")
        method = floats(row.method, jnp.float32)
        row.evaluate(method, KEY, X, WEIGHTS)
        COMPILED.clear()
        row.evaluate(method, KEY, X_MOVED, WEIGHTS)
        assert not COMPILED

    def test_vmap_over_every_leaf_equals_a_loop(self, name):
        method, evaluate, *_ = self.rows[name]
        leaves, structure = jax.tree.flatten(floats(method, jnp.float32))
        if not leaves:
            pytest.skip("no hyper-parameters")
        methods = [
            structure.unflatten([scaled(leaf, factor) for leaf in leaves])
            for factor in (0.8, 1.0, 1.3)
        ]
        stacked = jax.tree.map(lambda *scaled: np.stack(scaled), *methods)
        swept = jax.jit(jax.vmap(evaluate, in_axes=(0, None, None, None)))(stacked, KEY, X, WEIGHTS)
        for one_method, one in zip(methods, np.asarray(swept), strict=True):
            alone = self.compiled(name)(one_method, KEY, X, WEIGHTS)
            assert_close(one, alone, rtol=2e-3)

    def test_the_same_key_gives_the_same_value(self, name):
        method = floats(self.rows[name].method, jnp.float32)
        one, two = (self.compiled(name)(method, KEY, X, WEIGHTS) for _ in range(2))
        np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_dtypes_are_kept(self, name, dtype):
        method, evaluate, *_ = self.rows[name]
        with jax.enable_x64(True):
            particles = X.astype(dtype), WEIGHTS.astype(dtype)
            assert jax.eval_shape(evaluate, floats(method, dtype), KEY, *particles).dtype == dtype
            # Python numbers are weakly typed: they must not promote.
            python = jax.tree.map(
                lambda leaf: float(leaf) if jnp.ndim(leaf) == 0 else jnp.asarray(leaf, dtype),
                method,
            )
            assert jax.eval_shape(evaluate, python, KEY, *particles).dtype == dtype

    def test_gradients_are_finite_and_equal_differences(self, name):
        with jax.enable_x64(True):
            x = X.astype(jnp.float64)
            _, gradient, _ = self.gradient(name, x)
            assert jnp.isfinite(gradient).all()
            if not self.rows[name].smooth:
                return
            direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
            step = 1e-5
            above, below = (self.gradient(name, x + s * direction)[0] for s in (step, -step))
            slope = jnp.sum(gradient * direction)
            np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-5, atol=1e-7)

    def test_gradients_in_the_weights_equal_differences(self, name):
        row = self.rows[name]
        if not row.weighted or not row.smooth:
            pytest.skip("takes no weights of particles, or is not smooth")
        with jax.enable_x64(True):
            x, weights = X.astype(jnp.float64), WEIGHTS.astype(jnp.float64)
            _, _, gradient = self.gradient(name, x)
            direction = jnp.asarray(np.random.default_rng(1).normal(size=weights.shape))
            direction = weights * (direction - jnp.dot(weights, direction))  # sums stay one
            step = 1e-5
            above, below = (
                self.gradient(name, x, weights + s * direction)[0] for s in (step, -step)
            )
            slope = jnp.sum(gradient * direction)
            np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-5, atol=1e-7)

    def test_gradients_are_finite_where_particles_coincide(self, name):
        with jax.enable_x64(True):
            x = X.astype(jnp.float64)
            assert jnp.isfinite(self.gradient(name, x.at[1].set(x[0]))[1]).all()

    def test_permuting_the_particles_permutes_the_output(self, name):
        method, _, output, *_ = self.rows[name]
        if output == "random":
            pytest.skip("draws are tied to positions")
        method = floats(method, jnp.float32)
        order = jnp.asarray(np.random.default_rng(2).permutation(N))
        permuted = self.compiled(name)(method, KEY, X[order], WEIGHTS[order])
        plain = self.compiled(name)(method, KEY, X, WEIGHTS)
        expected = np.asarray(plain)[..., order, :] if output == "equivariant" else plain
        assert_close(permuted, expected, rtol=1e-3)

    def test_it_lowers_for_accelerators(self, name):
        """For CUDA and TPU, without such a device."""
        row = self.rows[name]
        if row.on_host:
            pytest.skip("calls back to the host")
        export = jax.export.export(jax.jit(row.evaluate), platforms=("cuda", "tpu"))
        exported = export(floats(row.method, jnp.float32), KEY, X, WEIGHTS)
        assert exported.platforms == ("cuda", "tpu")

    def test_sharded_particles_give_the_unsharded_result(self, name):
        if jax.device_count() < 8:
            pytest.skip("needs eight (virtual) devices")
        method = floats(self.rows[name].method, jnp.float32)
        mesh = jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec("particles"))
        x, weights = jax.device_put(X, rows), jax.device_put(WEIGHTS, rows)
        sharded = self.compiled(name)(method, KEY, x, weights)
        assert_close(sharded, self.compiled(name)(method, KEY, X, WEIGHTS), rtol=1e-3)


def public_name(row: str) -> str:
    """The public name that a row is of: what follows a space or a bracket is a variation.

    >>> public_name("ot.sinkhorn map"), public_name("information.KSG(algorithm=2)")
    ('ot.sinkhorn', 'information.KSG')
    """
    return row.split("(")[0].split(" ")[0]


def floats(tree: Any, dtype: Any) -> Any:
    """The tree with Python numbers made arrays, and its floating leaves of one dtype."""

    def cast(leaf):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else leaf

    return jax.tree.map(cast, tree)


def scaled(leaf: Any, factor: float) -> np.ndarray:
    """A leaf times a number, without a program for every shape of leaves."""
    return np.multiply(leaf, factor, dtype=np.float32)


def assert_close(one: Any, two: Any, rtol: float = 2e-4) -> None:
    """Up to the scale of all numbers together."""
    scale = np.abs(np.asarray(two)).max() + 1e-30
    np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol * scale)
