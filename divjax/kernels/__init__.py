"""Kernels between points, their bandwidth rules, and their weighted sums and means."""

from divjax.kernels.bandwidth import (
    BandwidthRule,
    Mean,
    Median,
    MedianDistance,
    MultiScale,
)
from divjax.kernels.inner_product import Polynomial
from divjax.kernels.matern import Matern
from divjax.kernels.means import kernel_mean
from divjax.kernels.pooled import resolved_kernel
from divjax.kernels.protocols import GramKernel, Kernel, LogKernel, SpectralKernel
from divjax.kernels.radial import Energy, Gaussian, InverseMultiquadric, Laplace
from divjax.kernels.sums import kernel_sums

__all__ = [
    "BandwidthRule",
    "Energy",
    "Gaussian",
    "GramKernel",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "LogKernel",
    "Matern",
    "Mean",
    "Median",
    "MedianDistance",
    "MultiScale",
    "Polynomial",
    "SpectralKernel",
    "kernel_mean",
    "kernel_sums",
    "resolved_kernel",
]
