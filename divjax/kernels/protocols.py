"""Protocols of kernels: values at all pairs, and slopes if they are radial."""

from typing import Protocol, TypeGuard, runtime_checkable

from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import check_provides, provides
from divjax.core.numerics import safe_log

__all__ = [
    "GramKernel",
    "Kernel",
    "LogKernel",
    "SpectralKernel",
    "check_gram_kernel",
    "check_kernel",
    "check_smoother",
    "is_radial",
    "log_values",
]

_Block = Float[Array, "n m"]


@runtime_checkable
class GramKernel(Protocol):
    """A symmetric kernel k(x, y), of which discrepancies of samples need no more than its matrix.

    Unless it is a radial `Kernel` it may depend on where the points are, and samples are not
    centred for it.
    """

    def init(self, x: Float[Array, "n d"]) -> PyTree[Array]:
        """The bandwidth rule's state, `()` for a kernel without a rule."""
        ...

    def resolve(
        self, x: Float[Array, "n d"], state: PyTree[Array]
    ) -> tuple["GramKernel", PyTree[Array]]:
        """The kernel with its rule replaced by the bandwidth at x, and the next state."""
        ...

    def __call__(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"] | None = None
    ) -> Float[Array, "n m"]:
        """The kernel matrix."""
        ...


@runtime_checkable
class Kernel(GramKernel, Protocol):
    """A radial kernel. Derivatives are with respect to x, the first argument."""

    def resolve(
        self, x: Float[Array, "n d"], state: PyTree[Array]
    ) -> tuple["Kernel", PyTree[Array]]:
        """The radial kernel with its rule replaced by the bandwidth at x, and the next state."""
        ...

    def radial(self, squared: _Block) -> tuple[_Block, _Block]:
        """Values and slopes at squared distances: ∇_x k(x, y) = slope · (x − y)."""
        ...

    @property
    def positive_definite(self) -> bool:
        """Whether k > 0 and its Gram matrices are positive definite, as smoothing requires."""
        ...

    @property
    def log_slope(self) -> ArrayLike | None:
        """The ratio slope / value if it is one number for all pairs, otherwise None."""
        ...


@runtime_checkable
class LogKernel(Kernel, Protocol):
    """A radial kernel with logarithms of its values, which do not underflow for far points."""

    def log_radial(self, squared: _Block) -> _Block:
        """The logarithm of k at squared distances."""
        ...


@runtime_checkable
class SpectralKernel(Kernel, Protocol):
    """A positive definite kernel k(x − y) = E cos(ω·(x − y)), with draws of its frequencies ω."""

    def resolve(
        self, x: Float[Array, "n d"], state: PyTree[Array]
    ) -> tuple["SpectralKernel", PyTree[Array]]:
        """The kernel with its rule replaced by the bandwidth at x, and the next state."""
        ...

    def frequencies(
        self, key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike
    ) -> Float[Array, "k d"]:
        """Independent draws from the spectral distribution."""
        ...


def log_values(kernel: Kernel, squared: _Block) -> _Block:
    """The logarithm of k, −∞ where the values of a kernel without logarithms underflow."""
    if isinstance(kernel, LogKernel):
        return kernel.log_radial(squared)
    return safe_log(kernel.radial(squared)[0])


def check_gram_kernel(kernel: object, name: str = "kernel") -> None:
    """Raise `ValueError` for an object that is not a kernel, such as a function of two points."""
    provided = ("init", "resolve", "__call__")
    check_provides(name, kernel, provided, "a kernel such as kernels.Gaussian()")


def is_radial(kernel: GramKernel) -> TypeGuard[Kernel]:
    """Whether the kernel is a function of the distance, and so of differences alone."""
    # Not by `isinstance`, which would evaluate the properties of a kernel.
    return provides(kernel, "radial")


def check_kernel(kernel: object) -> None:
    """Raise `ValueError` for an object that is not a kernel, such as a function of two points."""
    provided = ("init", "resolve", "radial", "positive_definite", "log_slope")
    check_provides("kernel", kernel, provided, "a radial kernel such as kernels.Gaussian()")


def check_smoother(kernel: Kernel) -> None:
    """Raise `ValueError` for an object that cannot smooth a field or a density."""
    check_kernel(kernel)
    # With −‖x − y‖ a smoothed density is negative, and a smoothed velocity points uphill.
    if not kernel.positive_definite:
        raise ValueError(
            f"kernel must be positive definite to smooth with; got {type(kernel).__name__}, "
            "which is only for flows.MMD and flows.Interaction."
        )
