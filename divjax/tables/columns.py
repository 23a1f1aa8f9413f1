"""How far apart one column of two tables is: its own Jensen–Shannon divergence, in bits."""

import numpy as np

__all__ = ["frequencies_js", "univariate_js"]


def univariate_js(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    num_bins: int = 32,
    num_folds: int = 5,
) -> tuple[float, float]:
    """JS in bits between one column of two tables, and its standard error.

    Numbers are counted in bins of equal pooled counts, at most 2n^{1/3} of them, so that one typing
    error moves one row; values that repeat often, and all values where they are few, are bins of
    their own. See `frequencies_js`.

    Args:
        rng: of the folds.
        x: the encoded columns of one original column, "n k".
        y: the same of the other table, "m k".
        num_bins: of a number, at most, besides values that repeat.
        num_folds: of the cross-fitting.
    """
    # More bins have less bias, and more variance; the cube root of the rows balances them.
    num_bins = max(2, min(num_bins, round(2 * min(len(x), len(y)) ** (1 / 3))))
    bins = []
    for column in np.concatenate([x, y]).T:
        distinct, counts = np.unique(column, return_counts=True)
        # A few values are bins of their own.
        if len(distinct) <= num_bins:
            bins.append(np.searchsorted(distinct, column))
            continue
        edges = np.unique(np.quantile(column, np.arange(1, num_bins) / num_bins, method="lower"))
        repeated = distinct[counts > len(column) / (4 * num_bins)]
        # Below a repeated value, it, above it: three bins, since it is an edge as well.
        edges = np.union1d(edges, repeated)
        bins.append(
            np.searchsorted(edges, column, "right") + np.searchsorted(repeated, column, "left")
        )
    # A number and its indicator of gaps are one column: cells of their bins are compared.
    _, codes = np.unique(np.stack(bins, axis=1), axis=0, return_inverse=True)
    return frequencies_js(rng, codes[: len(x)], codes[len(x) :], num_folds)


def frequencies_js(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, num_folds: int = 5
) -> tuple[float, float]:
    """JS in bits between integers of two samples, and its standard error.

    By the classifier of their frequencies in the other folds (half a row added to each), so that
    the value is a lower bound in expectation: a level that the other folds lack contributes
    nothing. The error is that of `RatioFit.divergence`: that of the mean, and the gap by which the
    frequencies fit their own rows better than others.

    Args:
        rng: of the folds.
        x: integers from zero on, "n".
        y: the same of the other sample, "m".
        num_folds: of the cross-fitting.
    """
    # Half a row for each level keeps the logarithm of its share finite.
    codes = (x, y)
    size = max(part.max() for part in codes) + 1
    folds = [rng.permutation(len(part)) % num_folds for part in codes]
    terms, gaps = [np.empty(len(part)) for part in codes], []
    for fold in range(num_folds):
        # The log ratio of a level, by the rows of the other folds.
        log_shares = []
        for part, place in zip(codes, folds, strict=True):
            count = np.bincount(part[place != fold], minlength=size) + 0.5
            log_shares.append(np.log(count / count.sum()))
        log_ratio, gap = log_shares[0] - log_shares[1], 0.0
        # How far the log loss of each row of this fold is below log 2, in bits.
        for term, part, place, sign in zip(terms, codes, folds, (-1, 1), strict=True):
            each = ((1 - np.logaddexp(0, sign * log_ratio) / np.log(2)) / 2)[part]
            term[place == fold] = each[place == fold]
            gap += each[place != fold].mean() - each[place == fold].mean()
        gaps.append(gap)
    # Shares of the other folds fit their own rows better: that gap is a part of the error.
    variance = sum(term.var(ddof=1) / len(term) for term in terms)
    error = np.sqrt(variance + max(0, np.mean(gaps)) ** 2)
    return float(sum(term.mean() for term in terms)), float(error)
