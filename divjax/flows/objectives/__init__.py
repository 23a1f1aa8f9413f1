"""Objectives: functionals of a distribution, by their first variation at the particles."""
