"""Generators and divergences written out by hand, and the library's own compiled once."""

from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np

from divjax import fdiv


def power(alpha, scale=1):
    """f, f' and r² f'' of the power family, for α other than 0 and 1."""
    a, c = Decimal(alpha), Decimal(scale)
    return (
        lambda r: c * (r**a - 1 - a * (r - 1)) / (a * (a - 1)),
        lambda r: c * (r ** (a - 1) - 1) / (a - 1),
        lambda r: c * r**a,
    )


def skew(w):
    w = Decimal(w)
    mean = lambda r: w * r + 1 - w
    return (
        lambda r: r * (r / mean(r)).ln() - (1 - w) * (r - 1),
        lambda r: (r / mean(r)).ln() + 1 - w * r / mean(r) - (1 - w),
        lambda r: r * ((1 - w) / mean(r)) ** 2,
    )


# Generator, and f, f', r² f'' written out by hand.
FORMULAS = {
    "KL": (fdiv.KL(), lambda r: r * r.ln() - r + 1, lambda r: r.ln(), lambda r: r),
    "ReverseKL": (fdiv.ReverseKL(), lambda r: r - 1 - r.ln(), lambda r: 1 - 1 / r, lambda r: 1),
    "Jeffreys": (
        fdiv.Jeffreys(),
        lambda r: (r - 1) * r.ln(),
        lambda r: r.ln() + 1 - 1 / r,
        lambda r: 1 + r,
    ),
    "JensenShannon": (
        fdiv.JensenShannon(),
        lambda r: (r * r.ln() - (1 + r) * ((1 + r) / 2).ln()) / 2,
        lambda r: (2 * r / (1 + r)).ln() / 2,
        lambda r: r / (1 + r) / 2,
    ),
    "SquaredHellinger": (
        fdiv.SquaredHellinger(),
        lambda r: (r.sqrt() - 1) ** 2 / 2,
        lambda r: (1 - 1 / r.sqrt()) / 2,
        lambda r: r.sqrt() / 4,
    ),
    "TotalVariation": (
        fdiv.TotalVariation(),
        lambda r: abs(r - 1) / 2,
        lambda r: Decimal(1).copy_sign(r - 1) / 2,
        lambda r: 0,
    ),
    "ChiSquared": (
        fdiv.ChiSquared(),
        lambda r: (r - 1) ** 2,
        lambda r: 2 * (r - 1),
        lambda r: 2 * r * r,
    ),
    "NeymanChiSquared": (
        fdiv.NeymanChiSquared(),
        lambda r: (r - 1) ** 2 / r,
        lambda r: 1 - 1 / r**2,
        lambda r: 2 / r,
    ),
    "SoftenedReverseKL": (
        fdiv.SoftenedReverseKL(),
        lambda r: (1 + r) * ((1 + r) / (2 * r)).ln() + r - 1,
        lambda r: ((1 + r) / (2 * r)).ln() + 1 - 1 / r,
        lambda r: 1 / (1 + r),
    ),
    "Alpha(0.25)": (fdiv.Alpha(0.25), *power(0.25)),
    "Alpha(-0.5)": (fdiv.Alpha(-0.5), *power(-0.5)),
    "CressieRead(0.5)": (fdiv.CressieRead(0.5), *power(1.5)),
    "SkewKL(0.125)": (fdiv.SkewKL(0.125), *skew(0.125)),
    "Combination": (
        3 * fdiv.KL() + fdiv.ChiSquared(),
        lambda r: 3 * (r * r.ln() - r + 1) + (r - 1) ** 2,
        lambda r: 3 * r.ln() + 2 * (r - 1),
        lambda r: 3 * r + 2 * r * r,
    ),
    "Mixed(ChiSquared)": (
        fdiv.Mixed(fdiv.ChiSquared(), 0.25),
        lambda r: (Decimal("0.75") * (r - 1)) ** 2 / (r / 4 + Decimal("0.75")),
        lambda r: (
            Decimal("0.5625") * (r - 1) * (r / 4 + Decimal("1.75")) / (r / 4 + Decimal("0.75")) ** 2
        ),
        lambda r: 2 * r**2 * Decimal("0.5625") / (r / 4 + Decimal("0.75")) ** 3,
    ),
}

# Integrands of the divergences, in terms of both densities.
DEFINITIONS = {
    "KL": lambda p, q: p * np.log(p / q),
    "ReverseKL": lambda p, q: q * np.log(q / p),
    "Jeffreys": lambda p, q: (p - q) * np.log(p / q),
    "JensenShannon": lambda p, q: (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))) / 2,
    "SquaredHellinger": lambda p, q: (np.sqrt(p) - np.sqrt(q)) ** 2 / 2,
    "TotalVariation": lambda p, q: np.abs(p - q) / 2,
    "ChiSquared": lambda p, q: (p - q) ** 2 / q,
    "NeymanChiSquared": lambda p, q: (p - q) ** 2 / p,
    "SoftenedReverseKL": lambda p, q: (p + q) * np.log((p + q) / (2 * p)),
    "Alpha(0.25)": lambda p, q: (q - p**0.25 * q**0.75) / (0.25 * 0.75),
    "Alpha(-0.5)": lambda p, q: (p**-0.5 * q**1.5 - q) / 0.75,
    "CressieRead(0.5)": lambda p, q: p * (np.sqrt(p / q) - 1) / 0.75,
    "SkewKL(0.125)": lambda p, q: p * np.log(p / (0.125 * p + 0.875 * q)),
    "Combination": lambda p, q: 3 * p * np.log(p / q) + (p - q) ** 2 / q,
    "Mixed(ChiSquared)": lambda p, q: (0.75 * (p - q)) ** 2 / (0.25 * p + 0.75 * q),
}

METHODS = (
    "f",
    "derivative",
    "second_derivative",
    "curvature",
    "integrand_p",
    "integrand_q",
    "dual_integrand_q",
)


WIDTH = 64


def compiled(function):
    """The function of arrays of any size, compiled once for every class of generator and dtype."""
    jitted = jax.jit(
        function,
        # Many programs, each run a few times: what takes time is LLVM.
        compiler_options={"xla_backend_optimization_level": 0},
    )

    def call(generator, x):
        x = jnp.atleast_1d(x)
        blocks = [
            jitted(
                generator,
                jnp.pad(x[i : i + WIDTH], (0, max(0, i + WIDTH - x.size)), mode="edge"),
            )
            for i in range(0, x.size, WIDTH)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: x.size], *blocks)

    return call


@compiled
def evaluate_jet(generator, u):
    ones = jnp.ones_like(u)
    jets = {m: jax.jvp(getattr(generator, m), (u,), (ones,)) for m in METHODS}
    return {**jets, "dual_integrand_p": jets["derivative"]}


def evaluate(generator, u):
    return {method: jet[0] for method, jet in evaluate_jet(generator, u).items()}


def slopes(generator, u):
    return {method: jet[1] for method, jet in evaluate_jet(generator, u).items()}


@compiled
def conjugate(generator, t):
    return jax.vmap(jax.value_and_grad(generator.conjugate))(t)


def ratios(generator, dtype=jnp.float64):
    """The generator with leaves of one dtype, so that jitted functions are shared."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), generator)
