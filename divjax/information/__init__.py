"""Within and between variables: dependence, mutual information, entropies, dimension, density."""

__all__: list[str] = []
