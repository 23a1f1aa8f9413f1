"""Divergences as means of integrands of the log ratio, and their plug-in values at samples."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.arguments import Leaf, as_leaves
from divjax.core.checks import check_shape
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers
from divjax.core.simplex import sum_to_one
from divjax.fdiv.special import as_floats

T = TypeVar("T")

__all__ = ["Divergence", "PlugIn", "compiled", "normalized", "weighted_mean", "where_weighted"]


class PlugIn(NamedTuple):
    """A divergence at given log ratios of samples.

    Attributes:
        value: the divergence, in nats if it has a logarithm.
        influence_p: each sample's first-order effect on it, up to a constant. With equal weights
            the squared standard error of `value` is var(influence_p)/n + var(influence_q)/m.
        influence_q: each sample's first-order effect, for the samples of q.
    """

    value: Float[Array, ""]
    influence_p: Float[Array, " n"]
    influence_q: Float[Array, " m"]


def compiled(cls: type[T]) -> type[T]:
    """Compile each public method that takes arrays, in a class whose instances are pytrees."""
    for name, method in list(vars(cls).items()):
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        arguments = list(inspect.signature(method).parameters)[1:]
        if arguments:
            setattr(cls, name, _compiled_method(method, arguments))
    return cls


def _compiled_method(method: Callable[..., T], arguments: list[str]) -> Callable[..., T]:
    """The compiled method, which accepts arrays in any form that `as_leaves` does."""
    program = jax.jit(method)

    @functools.wraps(method)
    def called(self: PyTree, *args: Numbers, **kwargs: Numbers) -> T:
        # An instance of a class that is not a pytree is a leaf, which compiled functions refuse.
        if jax.tree_util.all_leaves([self]):
            raise ValueError(
                f"{type(self).__name__} must be a pytree: decorate the class with divjax.pytree."
            )
        # Surplus arguments are passed on unchanged: the method's own signature refuses them.
        numbers = [_as_leaf(name, value) for name, value in zip(arguments, args, strict=False)]
        named = {name: _as_leaf(name, value) for name, value in kwargs.items()}
        return program(self, *numbers, *args[len(numbers) :], **named)

    return called


def _as_leaf(name: str, value: Numbers | None) -> Leaf:
    return value if value is None else as_leaves(**{name: value})[0]


@compiled
class Divergence:
    """A divergence of the form D(p‖q) = transform(E_p[integrand_p(u)] + E_q[integrand_q(u)])."""

    # NumPy numbers on the left of an operator defer to the methods of generators.
    __array_ufunc__ = None

    def integrand_p(self, u: ArrayLike) -> Array:
        """The integrand under p."""
        raise NotImplementedError

    def integrand_q(self, u: ArrayLike) -> Array:
        """The integrand under q."""
        raise NotImplementedError

    def curvature(self, u: ArrayLike) -> Array:
        """The curvature r² f''(r), which weights the squared error of a log ratio."""
        raise NotImplementedError

    def transform(self, mean: ArrayLike) -> Array:
        """The divergence from the sum of both means: the identity for f-divergences."""
        return as_floats(mean)[0]

    def dual_integrand_p(self, u: ArrayLike) -> Array:
        """The integrand under p of the variational form, which errs to second order in u only."""
        raise NotImplementedError

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """The integrand under q of the variational form, which errs to second order in u only."""
        raise NotImplementedError

    def plug_in(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> PlugIn:
        """The divergence from the log ratios of samples of p and of q, with its influences.

        Weights sum to one (otherwise the result is NaN), and are equal by default. Samples of
        weight zero are ignored: no derivative is taken in them or in their weights.

        Example:
            >>> from divjax.fdiv import KL
            >>> u = jnp.log(jnp.array([2.0, 2.0])), jnp.log(jnp.array([2.0, 2.0, 1e-9, 1e-9]))
            >>> float(KL().plug_in(*u).value)
            0.6931
        """
        for name, u in (("u_p", u_p), ("u_q", u_q)):
            if jnp.size(u) == 0:
                raise ValueError(f"{name} must hold at least one log ratio; got shape {u.shape}.")
        a, b = normalized("a", a, u_p), normalized("b", b, u_q)
        # Log ratios at weight zero are replaced, as derivatives there would be NaN, and so are the
        # integrands, which need not be zero at the replacement.
        integrand_p = where_weighted(self.integrand_p(where_weighted(u_p, a)), a)
        integrand_q = where_weighted(self.integrand_q(where_weighted(u_q, b)), b)
        mean = weighted_mean(integrand_p, a) + weighted_mean(integrand_q, b)
        # By the chain rule the influences on the sum are multiplied by the slope of `transform`.
        value, slope = jax.jvp(self.transform, (mean,), (jnp.ones_like(mean),))
        return PlugIn(value, slope * integrand_p, slope * integrand_q)

    def sensitivities(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The derivatives of the variational form in each log ratio, per unit of its weight.

        They are finite even if the samples lie far apart: beyond 0.9 of the logarithm of the
        dtype's largest number an integrand is continued as a straight line.

        Example:
            >>> from divjax.fdiv import KL
            >>> u = jnp.array([0.0, 300.0])
            >>> KL().sensitivities(u, -u)
            (Array([1., 1.], dtype=float32), Array([-1., -0.], dtype=float32))
        """
        scale, _, slopes = self._linearized(u_p, u_q, a, b)
        return scale * slopes[0], scale * slopes[1]

    def potentials(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The first variations δD/δp and δD/δq at the samples, each up to a constant.

        They are the derivatives of the variational form in each weight, for changes that keep the
        sum of the weights. Beyond the same limit as for `sensitivities` they are constant.

        Example:
            >>> from divjax.fdiv import KL
            >>> u = jnp.log(jnp.array([1.0, 3.0]))
            >>> of_p, of_q = KL().potentials(u, u)  # log r + 1 and −r, here less their values at 1
            >>> of_p.round(3).tolist(), of_q.round(3).tolist()
            ([0.0, 1.099], [0.0, -2.0])
        """
        scale, values, _ = self._linearized(u_p, u_q, a, b)
        return scale * values[0], scale * values[1]

    def _linearized(
        self, u_p: Array, u_q: Array, a: Array | None, b: Array | None
    ) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
        """The slope of `transform`, and the dual integrands with their slopes, all finite."""
        u_p, u_q = as_floats(u_p, u_q)
        # Rows of weight zero may hold NaN, which the limits below would not remove.
        u_p, u_q = where_weighted(u_p, a), where_weighted(u_q, b)
        # Within this limit exponentials are finite, with room left for factors.
        limit = 0.9 * jnp.log(jnp.finfo(u_p.dtype).max)
        u_p, u_q = jnp.clip(u_p, -limit, limit), jnp.clip(u_q, -limit, limit)
        # Integrands act on each log ratio alone: one tangent of ones gives all derivatives.
        at_p, slope_p = jax.jvp(self.dual_integrand_p, (u_p,), (jnp.ones_like(u_p),))
        at_q, slope_q = jax.jvp(self.dual_integrand_q, (u_q,), (jnp.ones_like(u_q),))
        mean = weighted_mean(at_p, a) + weighted_mean(at_q, b)
        scale = jax.jvp(self.transform, (mean,), (jnp.ones_like(mean),))[1]
        return scale, (at_p, at_q), (slope_p, slope_q)


def normalized(
    name: str, weights: Float[Array, " n"] | None, u: Float[Array, " n"]
) -> Float[Array, " n"] | None:
    """Weights of the rows of u, NaN unless they sum to one, or None if None is given."""
    if weights is None:
        return None
    check_shape(name, weights, *jnp.shape(u))
    return nan_unless(sum_to_one(weights), weights)


def weighted_mean(values: Float[Array, " n"], weights: Float[Array, " n"] | None) -> Array:
    """Σ w_i v_i over the positive weights, or the mean."""
    if weights is None:
        return jnp.mean(values)
    return jnp.dot(weights, where_weighted(values, weights))


def where_weighted(values: Float[Array, " n"], weights: Float[Array, " n"] | None) -> Array:
    """The values, replaced by 0 at a weight of zero (padding) and by NaN at a negative one."""
    if weights is None:
        return values
    return jnp.where(weights > 0, values, jnp.where(weights == 0, 0, jnp.nan))
