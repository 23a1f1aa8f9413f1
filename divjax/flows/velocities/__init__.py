"""Velocities: estimates of the steepest descent of K objectives from the particles."""

from divjax.flows.velocities.langevin import Langevin
from divjax.flows.velocities.neural import NeuralScore
from divjax.flows.velocities.smoothing import GFSD, GFSF, SVGD, Blob

__all__ = ["GFSD", "GFSF", "SVGD", "Blob", "Langevin", "NeuralScore"]
