"""Kernels of the inner product ⟨x, y⟩, which depend on where the points are."""

import dataclasses
from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import (
    check_count,
    check_nonnegative,
    check_nonnegative_values,
    check_positive,
    check_positive_values,
    check_scalar,
)
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_samples

__all__ = ["Polynomial"]


@pytree
class Polynomial:
    """The polynomial kernel, k(x, y) = (scale · ⟨x, y⟩ + offset)^degree.

    Its maximum mean discrepancy compares the moments of orders 1 to `degree` (of order `degree`
    alone without an offset), and no others. It depends on the samples' origin: samples are not
    centred, and NumPy's float64 must not need it. Image features are compared by degree 3, scale
    1/d and offset 1: the kernel inception distance.

    Attributes:
        degree: a positive integer, static.
        offset: a number of at least zero, in units of the scaled inner product.
        scale: a positive number, the reciprocal of a typical inner product.

    Raises:
        ValueError: if the degree is not a positive integer, or a Python number is out of its range.
            Traced ones make k NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> Polynomial(degree=2, offset=1.0)(jnp.array([[0.0], [2.0]])).tolist()
        [[1.0, 1.0], [1.0, 25.0]]

    References:
        Bińkowski, Sutherland, Arbel, Gretton 2018, section 4: the kernel inception distance.
    """

    degree: int = static(default=3)
    offset: ArrayLike = 1.0
    scale: ArrayLike = 1.0

    def __post_init__(self):
        check_count(1, degree=self.degree)
        check_nonnegative(offset=self.offset)
        check_positive(scale=self.scale)

    def init(self, x: Float[Numbers, "n d"]) -> tuple[()]:
        """The empty state; checks the points."""
        as_samples(x=x)
        return ()

    def resolve(self, x: Float[Numbers, "n d"], state: tuple[()]) -> tuple[Self, tuple[()]]:
        """The kernel itself."""
        # Stored numbers may be JAX's placeholders, hence values are checked only here.
        check_nonnegative_values(offset=self.offset)
        check_positive_values(scale=self.scale)
        return self, state

    def at(self, x: Float[Numbers, "n d"]) -> Self:
        """The kernel itself."""
        return self.resolve(x, self.init(x))[0]

    def __call__(
        self, x: Float[Numbers, "n d"], y: Float[Numbers, "m d"] | None = None
    ) -> Float[Array, "n m"]:
        """The kernel matrix; NaN for points that are not finite."""
        check_scalar(offset=self.offset, scale=self.scale)
        x, y = as_samples(x=x, y=x if y is None else y)
        # The inner product with an infinite row would be infinite or NaN, depending on the other.
        x, y = nan_unless(jnp.isfinite(x), x), nan_unless(jnp.isfinite(y), y)
        offset = nan_unless(jnp.asarray(self.offset) >= 0, self.offset)
        scale = nan_unless(jnp.asarray(self.scale) > 0, self.scale)
        return (matmul(x, y.T) * scale + offset) ** self.degree

    def about(self, origin: Float[Array, " d"]) -> "CenteredPolynomial":
        """The kernel of the same differences of samples that vanishes at the origin."""
        return CenteredPolynomial(self, origin)


@pytree
class CenteredPolynomial:
    """k(x, y) − k(x, z) − k(z, y) + k(z, z) for a polynomial kernel k and a point z.

    No term of the size of k arises, so that samples far from the kernel's origin, whose values are
    large and nearly alike, keep their differences.

    Attributes:
        kernel: k.
        origin: z.
    """

    kernel: Polynomial
    origin: Float[Array, " d"]

    def init(self, x: Float[Array, "n d"]) -> tuple[()]:
        """The empty state."""
        return ()

    def resolve(self, x: Float[Array, "n d"], state: tuple[()]) -> tuple[Self, tuple[()]]:
        """The kernel itself."""
        return self, state

    def __call__(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"] | None = None
    ) -> Float[Array, "n m"]:
        """The matrix."""
        z = self.origin[None]
        y = x if y is None else y
        u, v = (nan_unless(jnp.isfinite(rows), rows) - z for rows in (x, y))
        scale = nan_unless(jnp.asarray(self.kernel.scale) > 0, self.kernel.scale)
        # With a = scale · ⟨z, z⟩ + offset and the increments α = scale · ⟨u, z⟩, β = scale · ⟨z, v⟩
        # and γ = scale · ⟨u, v⟩, it is (a + α + β + γ)ⁿ − (a + α)ⁿ − (a + β)ⁿ + aⁿ.
        linear = dataclasses.replace(self.kernel, degree=1)
        base = linear(z)
        alpha, beta = matmul(u, z.T) * scale, matmul(z, v.T) * scale
        both = matmul(u, v.T) * scale
        of_x, of_y = base + alpha, base + beta
        whole = of_x + beta + both
        # By induction over n: each term is a product of increments, and none is of the size of k.
        value, rise_x, rise_y = jnp.zeros_like(both), jnp.zeros_like(alpha), jnp.zeros_like(beta)
        # `rise_x` is (a + α)ⁿ − aⁿ, `rise_y` the same for β, and `power` is aⁿ.
        power = jnp.ones_like(base)
        for _ in range(self.kernel.degree):
            value = (
                whole * value + beta * rise_x + alpha * rise_y + both * (rise_x + rise_y + power)
            )
            rise_x = of_x * rise_x + alpha * power
            rise_y = of_y * rise_y + beta * power
            power = power * base
        return value
