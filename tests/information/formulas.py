"""Neighbour estimates in NumPy float64, written from their definitions, by all pairs of rows."""

import numpy as np
from scipy.special import digamma


def distances(variable):
    """ "n n", the largest difference of a feature in units of its standard deviation."""
    variable = np.asarray(variable, float)
    scale = variable.std(axis=0)
    variable = variable / np.where(scale > 0, scale, 1)
    return np.abs(variable[:, None] - variable[None]).max(axis=2)


def _without_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)


def ksg(variables, groups, signs, k, algorithm=1):
    """The terms of Σ sign H(group), the last group all variables."""
    pairs = [distances(variable) for variable in variables]
    joint = np.max(pairs, axis=0)
    order = np.argsort(_without_diagonal(joint), axis=1)[:, :k]
    n, terms = len(joint), 0
    if algorithm == 1:
        radius = np.take_along_axis(_without_diagonal(joint), order[:, -1:], axis=1)
        for group, sign in zip(groups, signs, strict=True):
            of_group = _without_diagonal(np.max([pairs[i] for i in group], axis=0))
            inside = (of_group < radius).sum(axis=1) + 1
            number = k if group == groups[-1] else inside
            terms = terms + sign * (digamma(n) - digamma(number))
        return terms
    near = [np.take_along_axis(_without_diagonal(p), order, axis=1) for p in pairs]
    for group, sign in zip(groups, signs, strict=True):
        inside = np.ones((n, n - 1), bool)
        for i in group:
            inside &= _without_diagonal(pairs[i]) <= near[i].max(axis=1)[:, None]
        number = k if group == groups[-1] else inside.sum(axis=1)
        terms = terms + sign * (digamma(n) - digamma(number) + (len(group) - 1) / number)
    return terms


def mixed(variables, groups, signs, k):
    """As `ksg`, with all rows at the k-th distance if there are more than these."""
    pairs = [distances(variable) for variable in variables]
    joint = _without_diagonal(np.max(pairs, axis=0))
    radius = np.sort(joint, axis=1)[:, k - 1]
    # The differences of levels are rounded in other units.
    far, near = radius[:, None] * (1 + 1e-14), radius[:, None] * (1 - 1e-14)
    terms = 0
    for group, sign in zip(groups, signs, strict=True):
        of_group = _without_diagonal(np.max([pairs[i] for i in group], axis=0))
        closed = (of_group <= far).sum(axis=1)
        # Copies count as nearer.
        nearer = np.where(radius > 0, (of_group < near).sum(axis=1), closed)
        number = np.maximum(nearer + 1, closed)
        terms = terms + sign * (digamma(len(joint)) - digamma(number))
    return terms
