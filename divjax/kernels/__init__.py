"""Kernels between particles, their bandwidth rules, and their weighted sums."""

from divjax.kernels.bandwidth import BandwidthRule, Mean, Median, MultiScale
from divjax.kernels.radial import Energy, Gaussian, InverseMultiquadric, Kernel, Laplace
from divjax.kernels.sums import kernel_sums

__all__ = [
    "BandwidthRule",
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Mean",
    "Median",
    "MultiScale",
    "kernel_sums",
]
