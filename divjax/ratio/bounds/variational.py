"""Variational lower bounds on divergences, as functions of a critic's values.

A critic T is an estimate of the log ratio u = log p/q. Every bound here takes its values at samples
of p and at samples of q,

    u_p "n"  and  u_q "m"  or, with one row of samples of q per sample of p,  u_q "n k",

and returns nats. The bounds on KL, and `f_dual` on its divergence, are tight at T = log p/q. There
`kl_from_js` attains Ξ(JS), and `conjugate_dual` is tight at T = f'(p/q). `smile` and
`mean_log_ratio` are read-outs of a trained critic, not bounds. For the mutual information of pairs,
p is their joint distribution and q the product of its marginals: `critics.split_scores` extracts
both from the matrix T(x_i, y_j). A critic may be trained by the gradient of one function and read
out by another: SMILE and f-DIME are read-outs of a critic that was trained by a bound on an
f-divergence.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_number, check_positive, check_provides, check_scalar
from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_numbers, without_offset
from divjax.fdiv.divergences import KL
from divjax.fdiv.generators import Generator, check_generator
from divjax.fdiv.inequalities import kl_lower_bound_from_cross_entropy
from divjax.fdiv.special import as_singles, log_mixture
from divjax.ratio.protocols import cross_entropy

__all__ = [
    "MINE",
    "MINEState",
    "bounded_values",
    "conjugate_dual",
    "critic_values",
    "donsker_varadhan",
    "f_dual",
    "jensen_shannon",
    "kl_from_js",
    "mean_log_ratio",
    "nwj",
    "smile",
]


def critic_values(u_p: Numbers, u_q: Numbers, symbol: str = "u") -> tuple[Array, Array]:
    """Check a critic's values and return them as arrays."""
    of_p, of_q = f"{symbol}_p", f"{symbol}_q"
    u_p, u_q = jnp.asarray(as_numbers(of_p, u_p)), jnp.asarray(as_numbers(of_q, u_q))
    for name, values, shapes in ((of_p, u_p, "(n,)"), (of_q, u_q, "(m,) or (n, k)")):
        # Only values under q may be a matrix, with a row of false pairs for each true one.
        fits = values.ndim == 1 or (name == of_q and values.ndim == 2)
        if not fits or values.size == 0:
            raise ValueError(f"{name} must be non-empty of shape {shapes}; got {values.shape}.")
    if u_q.ndim == 2 and u_q.shape[0] != u_p.shape[0]:
        raise ValueError(
            f"{of_q} must have a row for each value of {of_p}; "
            f"got {u_q.shape[0]} rows and {u_p.shape[0]} values."
        )
    # Exponentials, and sums over many rows, leave the range of half precision.
    u_p, u_q = as_singles(u_p, u_q)
    return u_p, u_q


def bounded_values(u_p: Array, u_q: Array) -> tuple[Array, Array]:
    """Critic values clipped so that squared exponentials, and sums of them, do not overflow.

    A clipped critic is another critic, so that its value is still a lower bound.
    """
    # Squares of e^T are then below the 0.8th power of the largest number, with headroom for sums.
    limit = 0.4 * math.log(float(jnp.finfo(jnp.result_type(u_p, u_q)).max))
    return jnp.clip(u_p, -limit, limit), jnp.clip(u_q, -limit, limit)


@jax.jit
def _log_mean_exp(u: Array) -> Array:
    return jax.nn.logsumexp(u) - math.log(u.size)


def donsker_varadhan(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """KL(p‖q) ≥ E_p[T] − log E_q[e^T], invariant under a constant added to T.

    The mean is inside the logarithm: from samples the value is biased upwards, by about
    var(e^T)/(2m) for normalised T. The bias is limited only by the range of T if e^T has heavy
    tails.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.

    Returns:
        The value in nats.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> float(donsker_varadhan(jnp.array([2.0]), jnp.array([1.0, 1.0])))
        1.0

    References:
        Donsker, Varadhan 1983; Belghazi et al. 2018, theorem 1.
    """
    # Checked first: errors must name the caller's values, not those without an offset.
    critic_values(u_p, u_q)
    # A constant cancels: it is subtracted in float64, since it would cost accuracy in float32.
    u_p, u_q = critic_values(*without_offset(np.max, u_p=u_p, u_q=u_q))
    return jnp.mean(u_p) - _log_mean_exp(u_q)


def smile(
    u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."], clip: ArrayLike = 5.0
) -> Float[Array, ""]:
    """Donsker and Varadhan's value with e^T clipped under q: E_p[T] − log E_q[clip(e^T, e^±τ)].

    Clipping reduces variance at the cost of bias of either sign: the value is not a lower bound.
    Its own gradient is of little use. Train by `jensen_shannon`, as the authors do.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.
        clip: τ > 0; ∞ gives `donsker_varadhan`.

    Returns:
        The value in nats.

    Raises:
        ValueError: if the values are invalid or `clip` is a Python number that is not positive.

    Example:
        >>> float(smile(jnp.array([2.0]), jnp.array([9.0, 9.0]), clip=1.0))
        1.0

    References:
        Song, Ermon 2020, section 5.
    """
    check_number(clip=clip)
    check_positive(clip=clip)
    u_p, u_q = critic_values(u_p, u_q)
    clip = jnp.asarray(clip, u_q.dtype)
    clip = nan_unless(clip > 0, clip)
    return donsker_varadhan(u_p, jnp.clip(u_q, -clip, clip))


def mean_log_ratio(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """KL(p‖q) as E_p[T], for a T that is normalised by its training: f-DIME's read-out.

    It is not a bound. Of all read-outs it has the smallest variance, but T's error is its bias.
    f-DIME trains by `f_dual` on false pairs from a `derangement`. Trained by `jensen_shannon` it is
    GAN-DIME.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, not used.

    Returns:
        The value in nats.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> float(mean_log_ratio(jnp.array([2.0, 4.0]), jnp.array([1.0])))
        3.0

    References:
        Letizia, Novello, Tonello 2024: f-DIME.
    """
    u_p, u_q = critic_values(u_p, u_q)
    return jnp.mean(u_p)


def f_dual(
    u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."], generator: Generator
) -> Float[Array, ""]:
    """D_f(p‖q) ≥ E_p[f'(e^T)] + E_q[f(e^T) − e^T f'(e^T)], unbiased, for any generator f.

    Values beyond ±0.4 of the logarithm of the dtype's largest number, 35 in float32, are clipped.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.
        generator: the generator f, of `divjax.fdiv`.

    Returns:
        The value, in nats if the divergence has a logarithm.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> from divjax import fdiv
        >>> u_p, u_q = jnp.array([1.0]), jnp.array([-1.0])
        >>> float(f_dual(u_p, u_q, fdiv.ReverseKL())), float(1 - jnp.exp(-1) + 1)
        (1.6321, 1.6321)

    References:
        Nguyen, Wainwright, Jordan 2010, lemma 1; Nowozin, Cseke, Tomioka 2016, eq. 4.
    """
    u_p, u_q = bounded_values(*critic_values(u_p, u_q))
    check_generator(generator)
    check_provides("generator", generator, ("dual_integrand_p", "dual_integrand_q"), "a generator")
    return jnp.mean(generator.dual_integrand_p(u_p)) + jnp.mean(generator.dual_integrand_q(u_q))


def conjugate_dual(
    t_p: Float[Numbers, " n"], t_q: Float[Numbers, "..."], generator: Generator
) -> Float[Array, ""]:
    """D_f(p‖q) ≥ E_p[V] − E_q[f*(V)] for a critic V of f'(p/q), where `f_dual` takes log p/q.

    Args:
        t_p: V at samples of p.
        t_q: V at samples of q, a vector or a matrix, at most `generator.conjugate_supremum`.
        generator: the generator f, of `divjax.fdiv`.

    Returns:
        The value, in nats if the divergence has a logarithm, −∞ for V beyond the supremum.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> from divjax import fdiv
        >>> t_p, t_q = jnp.array([2.0]), jnp.array([1.0])
        >>> float(conjugate_dual(t_p, t_q, fdiv.ChiSquared()))  # f*(t) = t + t²/4
        0.75

    References:
        Nguyen, Wainwright, Jordan 2010, lemma 1.
    """
    t_p, t_q = critic_values(t_p, t_q, "t")
    check_generator(generator)
    check_provides("generator", generator, ("conjugate",), "a generator")
    return jnp.mean(t_p) - jnp.mean(generator.conjugate(t_q))


def nwj(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """KL(p‖q) ≥ 1 + E_p[T] − E_q[e^T]: the KL's `f_dual`, called NWJ, f-GAN KL or MINE-f.

    Unbiased. Its critic is that of the literature (E_p[T'] − E_q[e^{T' − 1}]) minus one. The
    variance is at least (e^KL − 1)/m even at the best critic. Values are clipped to ±35 (±284 in
    float64), which preserves the bound.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.

    Returns:
        The value in nats.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> float(nwj(jnp.array([2.0]), jnp.array([0.0, 0.0])))
        2.0

    References:
        Nguyen, Wainwright, Jordan 2010; Poole et al. 2019, section 2.2. Song, Ermon 2020, theorem
        2: the variance.
    """
    return f_dual(u_p, u_q, KL())


def jensen_shannon(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """JS(p‖q) ≥ log 2 − balanced cross-entropy: its `f_dual`, recommended for training.

    Unbiased, with values and slopes that are bounded for any p and q.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.

    Returns:
        The value in nats: a bound on JS, at most log 2, not on KL (`kl_from_js` bounds KL).

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> float(jensen_shannon(jnp.array([30.0]), jnp.array([-30.0])))
        0.6931

    References:
        Goodfellow et al. 2014, theorem 1; Nowozin, Cseke, Tomioka 2016, table 2.
    """
    u_p, u_q = critic_values(u_p, u_q)
    return math.log(2) - cross_entropy(u_p, u_q)


def kl_from_js(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """KL(p‖q) ≥ Ξ(log 2 − balanced cross-entropy), the largest bound that Jensen–Shannon implies.

    It is for reading out, not for training: the gradient is zero at an uninformative critic. Ξ is
    convex: from samples the value is biased upwards, by half of Ξ'' times the cross-entropy's
    variance. Even the best critic leaves a gap to KL, unless p and q attain the inequality of
    `fdiv.kl_lower_bound_from_js`.

    Args:
        u_p: critic values at samples of p.
        u_q: critic values at samples of q, a vector or a matrix.

    Returns:
        The value in nats, at least 0, or +∞ if the cross-entropy rounds to 0.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> u_p, u_q = jnp.array([2.0, 3.0]), jnp.array([-3.0, -2.0])
        >>> float(kl_from_js(u_p, u_q)), float(jensen_shannon(u_p, u_q))
        (3.1738, 0.6054)

    References:
        Dorent, Golland, Wells 2025, arXiv 2510.20644.
    """
    u_p, u_q = critic_values(u_p, u_q)
    return kl_lower_bound_from_cross_entropy(cross_entropy(u_p, u_q))


class MINEState(NamedTuple):
    """The moving average of E_q[e^T].

    Attributes:
        log_normalizer: the logarithm of the average.
        weight: the total weight of the batches so far, from 0 to 1.
    """

    log_normalizer: Float[Array, ""]
    weight: Float[Array, ""]


@pytree
class MINE:
    """Donsker and Varadhan's value with a gradient whose normaliser is averaged over batches.

    ∇ = E_p[∇T] − E_q[e^T ∇T]/N, where N is an exponential moving average of E_q[e^T], including the
    current batch. In Donsker and Varadhan's own gradient N is the batch's mean, and the ratio of
    two means from one batch is biased.

    Attributes:
        rate: the weight of the current batch in (0, 1]; 1 is `donsker_varadhan`. The average over
            the first batches is normalised by their total weight.

    Raises:
        ValueError: if the rate is a Python number outside of (0, 1].

    Example:
        >>> u_p, u_q = jnp.array([2.0]), jnp.array([1.0, 1.0])
        >>> value, state = MINE()(u_p, u_q, MINE().init(u_p.dtype))
        >>> float(value), float(state.log_normalizer)
        (1.0, 1.0)

    References:
        Belghazi et al. 2018, section 3.2.
    """

    rate: ArrayLike = 0.01

    def __post_init__(self):
        if isinstance(self.rate, (int, float)) and not 0 < self.rate <= 1:
            raise ValueError(f"rate must be a number in (0, 1]; got {self.rate}.")

    def init(self, dtype: DTypeLike) -> MINEState:
        """The state before the first batch."""
        return MINEState(jnp.zeros((), dtype), jnp.zeros((), dtype))

    def __call__(
        self, u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."], state: MINEState
    ) -> tuple[Float[Array, ""], MINEState]:
        """The value, with the gradient above, and the new state, with stopped gradients."""
        check_scalar(rate=self.rate)
        stop = jax.lax.stop_gradient
        # The value is that of Donsker and Varadhan. Only its gradient is replaced.
        value = donsker_varadhan(u_p, u_q)
        u_p, u_q = critic_values(u_p, u_q)
        log_mean = stop(_log_mean_exp(u_q))
        rate = jnp.asarray(self.rate, state.weight.dtype)
        rate = nan_unless((rate > 0) & (rate <= 1), rate)
        weight = (1 - rate) * state.weight + rate
        # The earlier batches have the share (1 − rate)·weight of the new weight. It starts at 0, so
        # that the first batches have full weight.
        log_normalizer = log_mean + log_mixture(
            state.log_normalizer - log_mean, (1 - rate) * state.weight / weight
        )
        new = stop(MINEState(log_normalizer, weight))
        # At a fixed N, E_p[T] − E_q[e^T]/N has the gradient of the docstring.
        surrogate = jnp.mean(u_p) - jnp.mean(jnp.exp(u_q - new.log_normalizer))
        return with_slopes_of(surrogate, nan_unless(~jnp.isnan(rate), value)), new
