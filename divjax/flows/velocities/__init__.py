"""Velocities: estimates of the steepest descent of K objectives from the particles."""
