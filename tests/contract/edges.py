"""What every public method does at the edge of its domain: NaN or a flag, never a wrong number.

Beside `Promises`, for the same rows and with the same compiled functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract.promises import KEY, WEIGHTS, D, N, Promises, Row, X, assert_close, floats

# A particle without weight may hold any of these, also on the left, where sums on the line begin.
ANYTHING = {"nan": np.nan, "inf": np.inf, "far": 1e8, "left": -1e4, "huge": 1e18}


class Edges(Promises):
    """The checks of `rows` at the edges; `Promises` has those in the middle."""

    def run(self, name: str, method: Any, x: Any, weights: Any) -> np.ndarray:
        return np.asarray(self.compiled(name)(method, KEY, x, weights))

    def flagged(self, name: str, method: Any, x: Any, weights: Any) -> bool:
        """Whether the output says that it is no answer: by NaN, or by the row's own flag."""
        output = self.run(name, method, x, weights)
        if np.isnan(output).any():
            return True
        flag = self.rows[name].flag
        return flag is not None and bool(flag(method, KEY, x, weights))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_flagged(self, name, value):
        """In a particle that has weight, unless an infinite number has a meaning there."""
        row = self.rows[name]
        if np.isinf(value) and row.infinite:
            pytest.skip(row.infinite)
        method = floats(row.method, jnp.float32)
        x = X.at[2].set(value)
        output = self.run(name, method, x, WEIGHTS)
        if np.isinf(value) and not np.isfinite(output).all():
            return  # an infinite answer to an infinite question is no wrong number
        assert self.flagged(name, method, x, WEIGHTS), output

    @pytest.mark.parametrize("content", ANYTHING)
    def test_particles_without_weight_change_nothing(self, name, content):
        row = self.rows[name]
        if not row.weighted:
            pytest.skip("takes no weights of particles")
        method = floats(row.method, jnp.float32)
        weights = (WEIGHTS.at[2].set(0) / (1 - WEIGHTS[2])).astype(jnp.float32)
        plain = self.run(name, method, X, weights)
        changed = self.run(name, method, X.at[2].set(ANYTHING[content]), weights)
        if row.output == "equivariant":
            plain, changed = (np.delete(out, 2, axis=-2) for out in (plain, changed))
        assert np.isfinite(plain).all()
        assert_close(changed, plain)

    @pytest.mark.parametrize("content", ANYTHING)
    def test_particles_without_weight_change_no_gradient(self, name, content):
        """In the other particles and in their weights."""
        row = self.rows[name]
        if not row.weighted:
            pytest.skip("takes no weights of particles")
        with jax.enable_x64(True):
            weights, x = WEIGHTS.at[2].set(0) / (1 - WEIGHTS[2]), X.astype(jnp.float64)
            plain = self.gradient(name, x, weights)[1:]
            changed = self.gradient(name, x.at[2].set(ANYTHING[content]), weights)[1:]
            for one, two in zip(changed, plain, strict=True):
                one, two = (np.delete(gradient, 2, axis=0) for gradient in (one, two))
                assert np.isfinite(two).all()
                assert_close(one, two)

    def test_gradients_do_not_depend_on_the_unit_of_the_loss(self, name):
        """A solver in the derivative may square a small cotangent, or compare it to one."""
        with jax.enable_x64(True):
            x, unit = X.astype(jnp.float64), 2.0**-600
            for one, two in zip(
                self.gradient(name, x), self.gradient(name, x, unit=unit), strict=True
            ):
                assert_close(np.asarray(two) / unit, one)

    def test_hyper_parameters_that_are_nan(self, name):
        """Each leaf in turn, given as an array under jit."""
        row = self.rows[name]
        leaves, structure = jax.tree.flatten(floats(row.method, jnp.float32))
        for index, leaf in enumerate(leaves):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                continue
            spoilt = list(leaves)
            spoilt[index] = jnp.full_like(leaf, jnp.nan)
            method = structure.unflatten(spoilt)
            assert self.flagged(name, method, X, WEIGHTS), f"leaf {index} of {row.method}"

    @pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
    def test_hyper_parameters_out_of_range(self, name, value):
        """What is refused as a Python number is flagged as an array under jit, at any depth."""
        row = self.rows[name]
        leaves, structure = jax.tree.flatten(floats(row.method, jnp.float32))
        for index, leaf in enumerate(leaves):
            if jnp.ndim(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                continue
            spoilt = list(leaves)
            spoilt[index] = value
            refusal = refusal_of(row, structure, spoilt)
            if refusal is not None or (index in row.positive and value < 0):
                spoilt[index] = jnp.full_like(leaf, value)
                method = structure.unflatten(spoilt)
                assert self.flagged(name, method, X, WEIGHTS), f"{index}: {refusal}"

    def test_strict_promotion(self, name):
        row = self.rows[name]
        method = floats(row.method, jnp.float32)
        with jax.numpy_dtype_promotion("strict"):
            out = jax.eval_shape(row.evaluate, method, KEY, X, WEIGHTS.astype(jnp.float32))
        assert out.dtype == jnp.float32

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_half_precision_works_or_is_refused(self, name, dtype):
        row = self.rows[name]
        args = floats(row.method, dtype), KEY, X.astype(dtype), WEIGHTS.astype(dtype)
        refusal = refused_with(lambda: jax.eval_shape(row.evaluate, *args))
        assert refusal is None or "float32" in refusal

    @pytest.mark.parametrize("rows", [0, 1, 2])
    def test_few_rows_work_or_are_refused(self, name, rows):
        """Nothing deeper than a `ValueError` comes up, and an estimate from no rows is refused."""
        row = self.rows[name]
        x, weights = jnp.zeros((rows, D)), jnp.ones(rows) / N
        method = floats(row.method, jnp.float32)
        refusal = refused_with(lambda: jax.eval_shape(row.evaluate, method, KEY, x, weights))
        if not rows and row.sampled:
            assert refusal is not None


def refusal_of(row: Row, structure: Any, leaves: list[Any]) -> str | None:
    """The message with which the row's method refuses these leaves; None if it takes them."""
    evaluate = lambda *args: row.evaluate(structure.unflatten(leaves), *args)
    return refused_with(lambda: jax.eval_shape(evaluate, KEY, X, WEIGHTS))


def refused_with(call: Callable[[], Any]) -> str | None:
    """The message of the call's `ValueError`; None if it went through."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None
