"""What every public method promises, whatever it computes."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.contract.table import ROWS, D, N

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(5), (N, D))
WEIGHTS = jax.nn.softmax(0.3 * jax.random.normal(jax.random.key(6), (N,)))

every = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.exhaustive] * row.slow) for n, row in ROWS.items()],
)

TRACES = collections.Counter()


@functools.cache
def compiled(name):
    """The row's function, compiled once for all checks; `TRACES` counts how often it is traced."""

    def counted(*args):
        TRACES[name] += 1
        return ROWS[name].evaluate(*args)

    return jax.jit(counted)


def floats(tree, dtype):
    """The tree with Python numbers made arrays, and its floating leaves of one dtype."""

    def cast(leaf):
        return (
            jnp.asarray(leaf, dtype)
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            else leaf
        )

    return jax.tree.map(cast, tree)


def assert_close(one, two, rtol=2e-4):
    scale = np.abs(np.asarray(two)).max() + 1e-30
    np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol * scale)


@every
def test_jit_equals_eager_and_a_new_leaf_does_not_retrace(name):
    method, evaluate, *_ = ROWS[name]
    method = floats(method, jnp.float32)
    assert_close(compiled(name)(method, KEY, X, WEIGHTS), evaluate(method, KEY, X, WEIGHTS))
    before = TRACES[name]
    compiled(name)(jax.tree.map(lambda leaf: leaf * 1.5, method), KEY, X, WEIGHTS)
    compiled(name)(method, jax.random.key(8), X + 1, WEIGHTS)
    assert TRACES[name] == before


@every
def test_vmap_over_every_leaf_equals_a_loop(name):
    method, evaluate, *_ = ROWS[name]
    leaves, structure = jax.tree.flatten(floats(method, jnp.float32))
    if not leaves:
        pytest.skip("no hyper-parameters")
    factors = jnp.array([0.8, 1.0, 1.3])
    stacked = structure.unflatten([jnp.stack([leaf * f for f in factors]) for leaf in leaves])
    swept = jax.jit(jax.vmap(evaluate, in_axes=(0, None, None, None)))(stacked, KEY, X, WEIGHTS)
    for factor, one in zip(factors, swept, strict=True):
        one_method = structure.unflatten([leaf * factor for leaf in leaves])
        alone = compiled(name)(one_method, KEY, X, WEIGHTS)
        assert_close(one, alone, rtol=2e-3)


@every
def test_the_same_key_gives_the_same_value(name):
    method = floats(ROWS[name].method, jnp.float32)
    one, two = (compiled(name)(method, KEY, X, WEIGHTS) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept(name, dtype):
    method, evaluate, *_ = ROWS[name]
    with jax.enable_x64(True):
        output = jax.eval_shape(
            evaluate, floats(method, dtype), KEY, X.astype(dtype), WEIGHTS.astype(dtype)
        )
        assert output.dtype == dtype
        # Python numbers are weakly typed: they must not promote.
        python = jax.tree.map(
            lambda leaf: float(leaf) if jnp.ndim(leaf) == 0 else jnp.asarray(leaf, dtype), method
        )
        output = jax.eval_shape(evaluate, python, KEY, X.astype(dtype), WEIGHTS.astype(dtype))
        assert output.dtype == dtype


@every
def test_gradients_are_finite_and_equal_differences(name):
    method, evaluate, _, smooth, _ = ROWS[name]
    with jax.enable_x64(True):
        x, weights = X.astype(jnp.float64), WEIGHTS.astype(jnp.float64)
        method = floats(method, jnp.float64)
        shape = jax.eval_shape(evaluate, method, KEY, x, weights).shape
        probe = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        compiled = jax.jit(
            jax.value_and_grad(lambda x: jnp.sum(probe * evaluate(method, KEY, x, weights)))
        )
        scalar = lambda x: compiled(x)[0]
        gradient = compiled(x)[1]
        assert jnp.isfinite(gradient).all()
        if not smooth:
            return
        direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
        step = 1e-5
        difference = (scalar(x + step * direction) - scalar(x - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-5, atol=1e-7)


@every
def test_gradients_are_finite_where_particles_coincide(name):
    method, evaluate, *_ = ROWS[name]
    x = X.at[1].set(X[0])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(evaluate(method, KEY, x, WEIGHTS))))(x)
    assert jnp.isfinite(gradient).all()


@every
def test_permuting_the_particles_permutes_the_output(name):
    method, _, output, *_ = ROWS[name]
    if output == "random":
        pytest.skip("draws are tied to positions")
    method = floats(method, jnp.float32)
    order = jnp.asarray(np.random.default_rng(2).permutation(N))
    permuted = compiled(name)(method, KEY, X[order], WEIGHTS[order])
    plain = compiled(name)(method, KEY, X, WEIGHTS)
    assert_close(permuted, plain[..., order, :] if output == "equivariant" else plain, rtol=1e-3)


@every
def test_sharded_particles_give_the_unsharded_result(name):
    if jax.device_count() < 8:
        pytest.skip("needs eight (virtual) devices")
    method = floats(ROWS[name].method, jnp.float32)
    mesh = jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("particles"))
    sharded = compiled(name)(method, KEY, jax.device_put(X, rows), jax.device_put(WEIGHTS, rows))
    assert_close(sharded, compiled(name)(method, KEY, X, WEIGHTS), rtol=1e-3)
