"""Two data frames compared: whether they differ, how far apart they are, and in which columns.

`encode` turns two tables into two matrices by one encoding, and `read_alike` reads text that is
numbers or dates. `lattices`, `own_levels` and `dequantize` are about values that repeat in one
table alone; `univariate_js` and `frequencies_js` are about one column. All need the extra `tables`:
`pip install "divjax[tables]"`.
"""

try:
    import pandas as _pandas  # noqa: F401
except ImportError as error:
    raise ImportError(
        'divjax.tables needs pandas, which is not installed: pip install "divjax[tables]".'
    ) from error

from divjax.tables.columns import frequencies_js, univariate_js
from divjax.tables.encoding import Encoded, encode, values_alike
from divjax.tables.lattices import Lattice, dequantize, lattices, own_levels
from divjax.tables.reading import Read, read_alike

__all__ = [
    "Encoded",
    "Lattice",
    "Read",
    "dequantize",
    "encode",
    "frequencies_js",
    "lattices",
    "own_levels",
    "read_alike",
    "univariate_js",
    "values_alike",
]
