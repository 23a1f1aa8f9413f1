"""Factorisations: NumPy's values, derivatives by differences, and batches that return."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core import linalg

RNG = np.random.default_rng(0)
SQUARE = RNG.normal(size=(2, 3, 5, 5))
MATRICES = SQUARE @ np.swapaxes(SQUARE, -1, -2) + np.eye(5)
RIGHT = RNG.normal(size=(2, 3, 5, 2))


def values_of_eigh(matrix, right):
    """A function of the eigenvectors that does not depend on their signs."""
    values, vectors = linalg.eigh(matrix)
    return vectors**2 @ right + values[..., None]


FUNCTIONS = {
    "cholesky": lambda a, b: linalg.cholesky(a) @ b,
    "lower": lambda a, b: linalg.solve_triangular(linalg.cholesky(a), b),
    "upper": lambda a, b: linalg.solve_triangular(linalg.cholesky(a), b, transposed=True),
    "cho_solve": lambda a, b: linalg.cho_solve(linalg.cholesky(a), b),
    "solve": linalg.solve,
    "inv": lambda a, b: linalg.inv(a) @ b,
    "eigh": values_of_eigh,
}


def numpy_eigh(a, b):
    values, vectors = np.linalg.eigh(a)
    return vectors**2 @ b + values[..., None]


NUMPY = {
    "cholesky": lambda a, b: np.linalg.cholesky(a) @ b,
    "lower": lambda a, b: np.linalg.solve(np.linalg.cholesky(a), b),
    "upper": lambda a, b: np.linalg.solve(np.swapaxes(np.linalg.cholesky(a), -1, -2), b),
    "cho_solve": np.linalg.solve,
    "solve": np.linalg.solve,
    "inv": np.linalg.solve,
    "eigh": numpy_eigh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value(name):
    with jax.enable_x64(True):
        expected = NUMPY[name](MATRICES, RIGHT)
        one = FUNCTIONS[name]
        np.testing.assert_allclose(one(MATRICES, RIGHT), expected, rtol=1e-9)
        np.testing.assert_allclose(jax.vmap(jax.vmap(one))(MATRICES, RIGHT), expected, rtol=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name):
    """Reverse mode, and reverse over forward, against differences; per matrix under `vmap`."""
    with jax.enable_x64(True):
        direction = RNG.normal(size=(5, 5))
        direction = direction + direction.T

        def along(t, matrix, right):
            return jnp.sum(jnp.sin(FUNCTIONS[name](matrix + t * direction, right)))

        def numpy_along(t):
            out = NUMPY[name](MATRICES + t * direction, RIGHT)
            return np.sum(np.sin(out), axis=(-2, -1))

        both = lambda *args: (jax.grad(along)(*args), jax.grad(jax.jacfwd(along))(*args))
        over = jax.jit(jax.vmap(jax.vmap(both, (None, 0, 0)), (None, 0, 0)))
        first, second = over(0.0, MATRICES, RIGHT)
    step = 1e-3
    below, at, above = (numpy_along(s) for s in (-step, 0.0, step))
    np.testing.assert_allclose(first, (above - below) / (2 * step), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(second, (above - 2 * at + below) / step**2, rtol=1e-2, atol=1e-2)


def test_vector_on_the_right():
    with jax.enable_x64(True):
        matrix, right = MATRICES[0, 0], RIGHT[0, 0, :, 0]
        np.testing.assert_allclose(linalg.solve(matrix, right), np.linalg.solve(matrix, right))


def test_svd():
    with jax.enable_x64(True):
        left, values, right = linalg.svd(SQUARE)
        np.testing.assert_allclose(values, np.linalg.svd(SQUARE)[1], rtol=1e-9)
        np.testing.assert_allclose((left * values[..., None, :]) @ right, SQUARE, atol=1e-9)


def test_not_positive_is_nan():
    assert jnp.isnan(linalg.cholesky(-jnp.eye(2))).any()


@pytest.mark.parametrize(("version", "expected"), [("0.9.2", False), ("0.10.2", True)])
def test_versions(version, expected):
    assert linalg._deadlocks(version) is expected
    assert linalg._deadlocks("0.11.0")
    assert not linalg._deadlocks("0.11.1")
    assert not linalg._deadlocks("0.12.0.1")


CONCURRENT = """
import jax, jax.numpy as jnp
from divjax.core import linalg
a = jnp.eye(200) + 0.01 * jnp.ones((4, 16, 200, 200))
function = jax.jit(lambda a: [{call} for i in range(4)])
for _ in range(60):
    jax.block_until_ready(function(a))
"""


@pytest.mark.parametrize(
    "call",
    [
        "linalg.solve(a[i], a[i, ..., :1])",
        "linalg.cholesky(a[i] @ a[i].mT + jnp.eye(200))",
        "jax.vmap(linalg.cholesky)(a[i] @ a[i].mT + jnp.eye(200))",
    ],
)
def test_concurrent_batches_return(call):
    """As many batches at once as workers: with `jnp.linalg`, jaxlib 0.10.2 hangs in this loop."""
    program = CONCURRENT.format(call=call)
    subprocess.run([sys.executable, "-c", program], timeout=120, check=True)
