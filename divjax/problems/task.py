"""A pair of distributions p, q with samplers, an exact log ratio and known divergences."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_shape
from divjax.core.numerics import nan_entries_unless
from divjax.core.samples import Numbers, as_samples
from divjax.problems.mixtures import check_draw

__all__ = ["RowMap", "Sampler", "Task", "points_of"]

Sampler = Callable[[Key[Array, ""], int], Float[Array, "n d"]]
RowMap = Callable[[Float[Array, "n d"]], Float[Array, "n d"]]
RowValue = Callable[[Float[Array, "n d"]], Float[Array, " n"]]


@dataclass(frozen=True)
class Task:
    """Two distributions, p and q, whose divergences are known. All numbers are in nats.

    Attributes:
        dim: the number of features d.
        sample_p: `(key, n) -> "n d"`, independent draws of p.
        sample_q: the same of q.
        log_ratio: `"b d" -> "b"`, log p(x)/q(x), ±∞ where one of the densities is zero, NaN at NaN.
        kl: KL(p‖q).
        reverse_kl: KL(q‖p).
        js: the Jensen–Shannon divergence.
        x_dim: the number of x's features in a task of mutual information: p is then their joint
            distribution with y, q the product of marginals and `kl` I(x; y).
    """

    dim: int
    sample_p: Sampler
    sample_q: Sampler
    log_ratio: RowValue
    kl: float
    reverse_kl: float
    js: float
    x_dim: int | None = None

    def __post_init__(self):
        # The dataclass is frozen, hence this way to replace a field.
        for name in ("sample_p", "sample_q"):
            object.__setattr__(self, name, _checked_sampler(getattr(self, name)))
        object.__setattr__(self, "log_ratio", _checked_log_ratio(self.log_ratio, self.dim))

    def sample(
        self, key: Key[Array, ""], n: int, m: int | None = None
    ) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
        """The pair of n draws of p and m draws of q, with m = n by default."""
        check_draw(key, n)
        key_p, key_q = jax.random.split(key)
        return self.sample_p(key_p, n), self.sample_q(key_q, n if m is None else m)

    def sample_pairs(
        self, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        """Draws (x, y) of the joint distribution, in a task of mutual information."""
        if self.x_dim is None:
            raise ValueError("sample_pairs is for tasks of mutual information, with an x_dim.")
        joint = self.sample_p(key, n)
        return joint[:, : self.x_dim], joint[:, self.x_dim :]

    def transformed(self, forward: RowMap, inverse: RowMap) -> "Task":
        """The task under an invertible map of rows, which preserves the divergences."""
        return Task(
            self.dim,
            lambda key, n: forward(self.sample_p(key, n)),
            lambda key, n: forward(self.sample_q(key, n)),
            # The map's Jacobian cancels in the ratio of the densities.
            lambda z: self.log_ratio(inverse(z)),
            self.kl,
            self.reverse_kl,
            self.js,
            self.x_dim,
        )


def _checked_sampler(sample: Sampler) -> Sampler:
    def checked(key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        check_draw(key, n)
        return sample(key, n)

    return checked


def _checked_log_ratio(log_ratio: RowValue, dim: int) -> RowValue:
    def checked(z: Float[Array, "b d"]) -> Float[Array, " b"]:
        z = points_of(z, dim)
        # Some log ratios test whether z lies in a support. NaN fails the test and would give −∞.
        return nan_entries_unless(~jnp.isnan(z).any(axis=1), log_ratio(z))

    return checked


def points_of(z: Numbers, dim: int) -> Float[Array, "n d"]:
    """A matrix of points with `dim` features, or a `ValueError`."""
    (points,) = as_samples(z=z)
    check_shape("z", points, "n", dim)
    return points
