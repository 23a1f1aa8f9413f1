"""Entropic transport: the problem, the solver, its result, and the divergence built on it."""
