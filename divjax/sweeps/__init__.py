"""Sweeps of hyper-parameters: a function at every setting and seed, as a labelled dataset.

`sweep(key, fn, grid)` evaluates `fn(key, **hyperparameters)` at the product of a grid's values and
at several seeds, in one compilation, and returns an `xarray.Dataset`. Values of a grid are numbers,
ranges (`uniform`, `log_uniform`) or choices (`choices`: methods, texts, counts); `zipped` and
`sobol` change several hyper-parameters along one dimension. `summarize` gives means and standard
errors over seeds, and `best` the best setting.
"""

from divjax.sweeps.dataset import best, summarize
from divjax.sweeps.grid import choices, log_uniform, sobol, uniform, zipped
from divjax.sweeps.runs import sweep

__all__ = ["best", "choices", "log_uniform", "sobol", "summarize", "sweep", "uniform", "zipped"]
