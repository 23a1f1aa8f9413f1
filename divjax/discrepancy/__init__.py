"""Between two samples: kernel discrepancies, energy distances, and their tests."""

__all__: list[str] = []
