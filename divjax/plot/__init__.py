"""Figures of results: curves with bands, particles and couplings, fronts, heatmaps, calibration.

Functions take results or arrays and an axis of matplotlib, draw on it, and return it; nothing is
shown or saved. Without an axis they draw on the current one, as pyplot does. `with plot.style():`
gives figures one look: readable at half size, in greyscale, and with any colour vision.
"""

from divjax.plot.heatmaps import heatmap
from divjax.plot.look import style
from divjax.plot.planes import animation, coupling, displacements, particles
from divjax.plot.statistics import contributions, coverage, curves, front, reliability

__all__ = [
    "animation",
    "contributions",
    "coupling",
    "coverage",
    "curves",
    "displacements",
    "front",
    "heatmap",
    "particles",
    "reliability",
    "style",
]
