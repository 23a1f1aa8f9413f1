"""A progress bar, by a library that not every install has."""

import contextlib
from typing import Any

__all__ = ["progress_bar"]


def progress_bar(shown: bool, total: int, unit: str) -> contextlib.AbstractContextManager[Any]:
    """A bar of tqdm, with the rate and the time left, or one that shows nothing.

    Args:
        shown: whether it is drawn.
        total: the count at its end.
        unit: what is counted.

    Raises:
        ImportError: if it is to be drawn and tqdm is not installed.
    """
    # The caller counts on in any case.
    if not shown:
        return contextlib.nullcontext(_NoBar())
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True draws a bar with tqdm, which is not installed: install "
            "divjax[sweeps], or give progress=False."
        ) from error
    return tqdm(total=total, unit=unit)


class _NoBar:
    """A bar that is not drawn."""

    def update(self, count: int) -> None:
        """Count on."""

    def set_postfix(self, **shown: object) -> None:
        """Show nothing."""
