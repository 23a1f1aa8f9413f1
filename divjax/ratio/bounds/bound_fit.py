"""A trained critic and the estimates that it gives on held-out samples.

Standard errors are those of a jackknife over groups of these samples.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from divjax.core.checks import check_probability
from divjax.core.pytrees import pytree
from divjax.core.types import Estimate, Interval, summary
from divjax.fdiv.generators import Generator
from divjax.ratio.bounds.critics import Critic
from divjax.ratio.bounds.named_bounds import Bound, StatefulBound, as_bound
from divjax.ratio.protocols import cross_entropy

__all__ = ["BoundDiagnostics", "BoundFit", "TrainingState", "ungrouped"]


class TrainingState(NamedTuple):
    """What training carries from step to step: parameters, states of the optimizer and the bound.

    `bound` is None for a bound without a state.
    """

    params: PyTree[Array]
    optimizer: optax.OptState
    bound: PyTree[Array]


@pytree
class BoundDiagnostics:
    """Diagnostics of the reliability of an estimate.

    Attributes:
        mean_ratio: the mean of e^T under q, one for the true log ratio.
        cross_entropy: the balanced cross-entropy, log 2 for an uninformative critic.
        beyond_log_n: whether the value exceeds the logarithm of the number of samples of q (of
            pairs, for mutual information), beyond which no lower bound from samples is reliable.
        finite: whether training, held-out values and the estimate are finite.
    """

    mean_ratio: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    beyond_log_n: Bool[Array, ""]
    finite: Bool[Array, ""]


@pytree
class BoundFit:
    """A trained critic and its values at held-out samples.

    Attributes:
        critic: log p/q, a function of rows.
        u_p: the critic's values at held-out samples of p, in g disjoint groups, clipped to the
            range of its values at the validation rows (not for a stream).
        u_q: its values at held-out samples of q; for mutual information, at k false pairs for each
            row of u_p.
        values: values of the training bound on the validation rows, before the first step and at
            each check; for a stream, on the batch of each step.
        finite: whether training stayed finite.
        training: parameters and the states of optimizer and bound, from which `stream` continues.
    """

    critic: Critic
    u_p: Float[Array, "g n"]
    u_q: Float[Array, "g m *k"]
    values: Float[Array, " checks"]
    finite: Bool[Array, ""]
    training: TrainingState

    __repr__ = summary

    def value(self, read_out: Bound | Generator | str = "dv") -> Float[Array, ""]:
        """A bound's value at all held-out samples; see `estimate`."""
        return _read_out(read_out)(*ungrouped(self.u_p, self.u_q))

    def estimate(
        self, read_out: Bound | Generator | str = "dv", confidence_level: float = 0.95
    ) -> Estimate:
        """A bound's value on held-out samples, independent of the bound that trained the critic.

        Standard error and interval are those of the jackknife over groups, with Student's quantile.
        They hold for the expectation of the read-out at *this* critic, which for lower bounds is a
        lower bound on the divergence. If e^T has heavy tails under q (a small
        `effective_sample_size`) both value and error of "dv" and "nwj" are meaningless.

        Args:
            read_out: a name ("dv", "nwj", "js", "kl_from_js", "infonce", "smile", "log_ratio"), a
                generator of `divjax.fdiv`, or any function of (u_p "n", u_q "m" or "n k").
            confidence_level: the level of the interval.

        Returns:
            The estimate in nats. Its `effective_sample_size` is that of the weights e^T under q.

        Raises:
            ValueError: if the name is unknown, the level is outside of (0, 1), or there is only one
                group.
        """
        check_probability(confidence_level=confidence_level)
        groups = self.u_p.shape[0]
        if groups < 2:
            raise ValueError("num_groups must be at least 2 for a standard error; got 1.")
        # g groups leave g − 1 degrees of freedom.
        quantile = float(scipy.special.stdtrit(groups - 1, 0.5 + confidence_level / 2))
        # A user's function may depend on mutable state, hence it is not compiled.
        ours = isinstance(read_out, (str, Generator))
        estimate = _compiled_jackknife if ours else _jackknife
        return estimate(_read_out(read_out), self.u_p, self.u_q, self.finite, quantile)


def _read_out(bound: Bound | Generator | str) -> Bound:
    """A bound without a state, checked."""
    if bound is None or isinstance(bound, (type, StatefulBound)):
        raise ValueError(
            "read_out must be a name, a generator such as fdiv.KL(), or a function of u_p and u_q; "
            f"got {bound!r}."
        )
    return as_bound(bound)


def _jackknife(
    read_out: Bound,
    groups_p: Float[Array, "g n"],
    groups_q: Float[Array, "g m *k"],
    finite: Bool[Array, ""],
    quantile: ArrayLike,
) -> Estimate:
    """A bound's value at all held-out samples, with its leave-one-group-out jackknife error."""
    groups = groups_p.shape[0]
    u_p, u_q = ungrouped(groups_p, groups_q)
    value = read_out(u_p, u_q)
    # Row g holds all groups except for g, "g g-1".
    others = (jnp.arange(groups)[:, None] + jnp.arange(1, groups)) % groups
    without = jax.lax.map(lambda kept: read_out(*ungrouped(groups_p[kept], groups_q[kept])), others)
    # The jackknife's variance (g − 1)/g Σ_g (v_{−g} − v̄)², with v_{−g} the value without group g.
    std_error = jnp.sqrt((groups - 1) * jnp.mean(jnp.square(without - jnp.mean(without))))
    half = quantile * std_error
    # Sums of e^T in log space, as critic values may be beyond the range of exp.
    log_sum = jax.nn.logsumexp(u_q)
    diagnostics = BoundDiagnostics(
        mean_ratio=jnp.exp(log_sum - math.log(u_q.size)),
        cross_entropy=cross_entropy(u_p, u_q),
        beyond_log_n=value > math.log(u_q.shape[0]),
        finite=finite & jnp.isfinite(u_p).all() & jnp.isfinite(u_q).all() & jnp.isfinite(value),
    )
    effective = jnp.exp(2 * log_sum - jax.nn.logsumexp(2 * u_q))
    return Estimate(value, std_error, Interval(value - half, value + half), effective, diagnostics)


_compiled_jackknife = jax.jit(_jackknife)


def ungrouped(u_p: Array, u_q: Array) -> tuple[Array, Array]:
    """The critic's values of all groups together."""
    return u_p.reshape(-1), u_q.reshape(-1, *u_q.shape[2:])
