"""Schrödinger bridges: stochastic processes from one distribution to another."""
