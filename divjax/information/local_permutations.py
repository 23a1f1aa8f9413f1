"""A test of conditional independence, by permutations among neighbours in the condition."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import check_count
from divjax.core.keys import own_key
from divjax.core.numerics import at_least_single
from divjax.core.samples import Numbers
from divjax.core.types import status_of
from divjax.inference.hypothesis import TestResult
from divjax.information.entropy_sums import CONDITIONAL, InformationMethod
from divjax.information.joint_neighbors import in_like_units, joint_neighbors
from divjax.information.measures import check_method, paired_variables
from divjax.information.neighbor_methods import KSG

__all__ = ["conditional_independence_test"]

# Noise that breaks ties in the condition, in units of standard deviations: less than the steps of a
# discrete variable.
_TIES = 1e-4


def conditional_independence_test(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    z: Float[Numbers, "n f"],
    *,
    method: InformationMethod = KSG(),
    num_neighbors: int = 5,
    num_permutations: int = 199,
    batch_size: int | None = None,
) -> TestResult:
    """A test of whether x and y are independent given z, by their conditional information.

    Under the hypothesis x may be exchanged among rows with equal z. A row whose z occurs again
    takes the x of one of these rows, or its own. Any other row takes that of one of its nearest
    rows in z, itself among them. Each x is taken once if possible: the rows choose in random order,
    each the first of its shuffled neighbours that is still free, or the last if none is. The
    p-value is (1 + #{null ≥ observed})/(1 + number of permutations).

    For a discrete z the permutations are those within its levels, and only a row that is alone in
    its level takes from others. For a continuous z the level of the test is approximate: it needs
    neighbourhoods in which the distributions of x and y hardly change, and is too high in many
    features of z, or for few rows. Fewer neighbours are nearer to the level and have less power.

    Args:
        key: a typed key.
        x: samples of one variable, one row each.
        y: samples of the other, in paired rows.
        z: samples of the condition, in paired rows.
        method: as for `conditional_mutual_information`. `KSG` takes repeated values as they are.
        num_neighbors: the largest number of rows among which x is exchanged, static, at most n.
        num_permutations: the number of permutations N, static. The least p-value is 1/(1 + N).
        batch_size: the number of permutations at a time under vmap, one by default.

    Returns:
        A `TestResult` whose statistic is the estimate of I(x; y | z).

    Raises:
        ValueError: as `mutual_information`, and for a count that is out of range.

    Example:
        >>> z, noise_x, noise_y = jax.random.normal(jax.random.key(2), (3, 200, 1))
        >>> x, y = z + noise_x, z + noise_y
        >>> options = dict(num_permutations=39)
        >>> given_z = conditional_independence_test(jax.random.key(1), x, y, z, **options)
        >>> given_noise = conditional_independence_test(jax.random.key(1), x, y, noise_x, **options)
        >>> bool(given_z.p_value > 0.05), bool(given_noise.p_value < 0.05)
        (True, True)

    References:
        Runge 2018, algorithm 1.
    """
    key = own_key(key)
    variables = paired_variables(x=x, y=y, z=z)
    check_method(method)
    check_count(1, num_permutations=num_permutations)
    check_count(2, num_neighbors=num_neighbors)
    # A row is one of its own neighbours.
    if num_neighbors > len(variables[0]):
        raise ValueError(
            f"num_neighbors must be at most the number of rows, {len(variables[0])}; "
            f"got {num_neighbors}."
        )
    if batch_size is not None:
        check_count(1, batch_size=batch_size)
    counts = {"num_neighbors": num_neighbors, "num_permutations": num_permutations}
    return _tested(key, *variables, method, **counts, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("num_neighbors", "num_permutations", "batch_size"))
def _tested(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    y: Float[Array, "n e"],
    z: Float[Array, "n f"],
    method: InformationMethod,
    *,
    num_neighbors: int,
    num_permutations: int,
    batch_size: int | None,
) -> TestResult:
    n = x.shape[0]
    tie_key, key = jax.random.split(key)
    # Rows of equal z are in random order, another for each of them: the first rows of a level would
    # otherwise be the neighbours of all others in it.
    units = in_like_units(z.astype(at_least_single(z.dtype)))
    ties = _TIES * jax.random.uniform(tie_key, z.shape, units.dtype)
    others = joint_neighbors(units + ties, num_neighbors - 1).index
    near = jnp.concatenate([jnp.arange(n, dtype=others.dtype)[:, None], others], axis=1)
    # Those of its own level come first, and are all that a row in a level may take from.
    equal = jnp.all(z[near] == z[:, None], axis=2)
    near = jnp.take_along_axis(near, jnp.argsort(~equal, axis=1, stable=True), axis=1)
    copies = jnp.sum(equal, axis=1)
    choices = jnp.where(copies > 1, copies, num_neighbors)
    # Only the value is used: the interval's level is irrelevant.
    statistic = lambda x: method.estimate((x, y, z), CONDITIONAL, 0.5).value
    observed = statistic(x)
    permuted = lambda key: statistic(x[_local_permutation(key, near, choices)])
    keys = jax.random.split(key, num_permutations)
    # One permutation at a time by default: each holds the neighbours of all rows.
    null = jax.lax.map(permuted, keys, batch_size=batch_size)
    finite = jnp.isfinite(null).all() & jnp.isfinite(observed)
    # Statistics that are equal up to rounding are ties.
    tolerance = 100 * jnp.finfo(null.dtype).eps
    at_least = jnp.sum(null >= observed - tolerance).astype(null.dtype)
    p_value = jnp.where(finite, (1 + at_least) / (1 + num_permutations), jnp.nan)
    return TestResult(observed, p_value, null, status_of(converged=True, finite=finite))


def _local_permutation(
    key: Key[Array, ""], near: Int[Array, "n k"], count: Int[Array, " n"]
) -> Int[Array, " n"]:
    """For each row one of its first `count` neighbours, each taken once where possible."""
    n, k = near.shape
    key_rows, key_neighbors = jax.random.split(key)
    # In random order, those that may not be taken after all others.
    places = jax.random.uniform(key_neighbors, (n, k))
    places = jnp.where(jnp.arange(k) < count[:, None], places, 2.0)
    choices = jnp.take_along_axis(near, jnp.argsort(places, axis=1), axis=1)

    def take(taken: Bool[Array, " n"], row: Int[Array, ""]) -> tuple[Array, tuple[Array, Array]]:
        # The first that is free; the last if none is.
        free = (~taken[choices[row]]).at[count[row] - 1].set(True)
        chosen = choices[row, jnp.argmax(free)]
        return taken.at[chosen].set(True), (row, chosen)

    # A scan, since each row takes from those that the earlier ones have left.
    order = jax.random.permutation(key_rows, n)
    rows, chosen = jax.lax.scan(take, jnp.zeros(n, bool), order)[1]
    return jnp.zeros_like(chosen).at[rows].set(chosen)
