"""How far apart two tables are: estimates with intervals and diagnostics, column by column.

Three views of one pair of tables, since none of them is the truth alone:

- `as they are`: the encoding of `divjax.tables`. Its classifiers are smooth in numbers, and do
  not see that the values of a column lie on a lattice in one table and not in the other.
- `repeats counted`: joined by how often a number occurs, which such a lattice shows in.
- `lattices blurred`: both tables with the same noise on the columns of a lattice: what differs
  besides.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from divjax import plot, ratio, tables
from divjax.tables.columns import frequencies_js, univariate_js

__all__ = [
    "column_rows",
    "compare",
    "draw",
    "measurements",
    "view_rows",
]

VIEWS = ("as they are", "repeats counted", "lattices blurred")


def measurements(key: jax.Array, fit: ratio.RatioFit) -> dict[str, Any]:
    """All numbers of a fit: divergences, bounds, the two-sample test and the diagnostics.

    KL is in nats, JS in bits. The p-value is of a permutation test on the AUC of one fold's rows by
    the classifier fitted to the other folds: exact, but of a share of the rows only.
    """
    return _numbers(key, fit)


@jax.jit
def _numbers(key: jax.Array, fit: ratio.RatioFit) -> dict[str, jax.Array]:
    kl, js, auc, diagnostics = fit.kl(), fit.js(base=2), fit.auc(), fit.diagnostics
    return {
        "p_value": fit.two_sample_test(key).p_value,
        "kl": kl.value,
        "kl_error": kl.std_error,
        "kl_interval": jnp.stack(kl.interval),
        "reverse_kl": fit.reverse_kl().value,
        "js": js.value,
        "js_error": js.std_error,
        "js_interval": jnp.stack(js.interval),
        "certified_js": fit.certified_js(base=2),
        "certified_kl": fit.certified_kl(),
        "auc": auc.value,
        "auc_error": auc.std_error,
        "accuracy": fit.accuracy().value,
        "mean_ratio": diagnostics.mean_ratio,
        "effective_sample_size": diagnostics.effective_sample_size,
        "generalization_gap": diagnostics.generalization_gap,
        "beyond_log_n": diagnostics.beyond_log_n,
    }


def compare(
    key: jax.Array,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    estimator: ratio.ClassifierRatio,
    max_rows: int,
    seed: int = 0,
    categorical: Collection[str] = (),
    ignored: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Compare a synthetic table with a real one.

    Args:
        key: of the classifiers' folds and training.
        real: the table p.
        synthetic: the table q.
        estimator: how the log ratio is fitted.
        max_rows: of each table, drawn without replacement; lattices are looked for in all rows.
        seed: of that draw, of the blurring and of the columns' folds.
        categorical: columns of numbers that are categories.
        ignored: columns that are left out, such as identifiers.

    Returns:
        Arrays: `measurements` with an axis over `views`; for each of `columns` its own `column_js`
        in bits with `column_error`, `lattice_js` (0 where there is none; a column of very many
        levels that the tables do not share has one too) and the shares of rows on the lattice
        `lattice_shares`; `scores_p`, `scores_q`, the log ratios of the first view; `notes`; and
        `left_out`, the columns that no number here is of, with the reasons.

    Raises:
        ValueError: where the tables cannot be compared, or a table has fewer than two rows a fold;
            see `tables.encode`.
    """
    names, least = ("real", "synthetic"), 2 * estimator.num_folds
    rng = np.random.default_rng(seed)
    encoded = tables.encode(real, synthetic, categorical=categorical, ignored=ignored, names=names)
    for name, table in zip(names, (real, synthetic), strict=True):
        if (rows := min(len(table), max_rows)) < least:
            raise ValueError(f"{name} must hold at least {least} rows; got {rows}.")
    # As read in all rows: samples and views cannot be read differently.
    typed = encoded.tables
    codes = [str(column) for column in categorical if str(column) in encoded.groups]
    lattices = {lattice.column: lattice for lattice in tables.lattices(*typed, names=names)}
    apart = {lattice.column: lattice for lattice in tables.own_levels(*typed, names=names)}
    chosen, other = (
        table.sample(min(max_rows, len(table)), random_state=rng).reset_index(drop=True)
        for table in typed
    )
    pairs = [((chosen, other), False), ((chosen, other), True)]
    if lattices:
        pairs.append((tables.dequantize(rng, chosen, other, list(lattices)), False))
    measured, scores, left_out = [], [], dict(encoded.left_out)
    for index, (pair, repeats) in enumerate(pairs):
        fit_key = jax.random.fold_in(key, index)
        own = tables.encode(*pair, categorical=codes, repeats=repeats, names=names)
        # Among fewer rows, more columns look like identifiers or are constant.
        left_out |= {name: f"{why} among the rows drawn" for name, why in own.left_out.items()}
        fit = estimator.fit(fit_key, jnp.asarray(own.x), jnp.asarray(own.y))
        measured.append(measurements(jax.random.fold_in(fit_key, 1), fit))
        scores.append((fit.log_ratio_p, fit.log_ratio_q))
    univariate = []
    for column, group in encoded.groups.items():
        if encoded.columns[group.start].startswith(f"{column}="):
            # A category by all of its levels, of which the encoding merges the rarest.
            levels = tables.values_alike(*(table[column] for table in typed))
            univariate.append(frequencies_js(rng, *levels))
        else:
            univariate.append(univariate_js(rng, encoded.x[:, group], encoded.y[:, group]))
    on_lattice = [lattices.get(column, apart.get(column)) for column in encoded.groups]
    shares = [(lat.share_x, lat.share_y) if lat else (np.nan, np.nan) for lat in on_lattice]
    return {
        "views": np.array(VIEWS[: len(pairs)]),
        **{name: np.stack([np.asarray(m[name]) for m in measured]) for name in measured[0]},
        "columns": np.array(list(encoded.groups)),
        "column_js": np.array([value for value, _ in univariate]),
        "column_error": np.array([error for _, error in univariate]),
        "lattice_js": np.array([lattice.js_bits if lattice else 0.0 for lattice in on_lattice]),
        "lattice_shares": np.array(shares),
        "scores_p": np.asarray(scores[0][0]),
        "scores_q": np.asarray(scores[0][1]),
        "notes": np.array(encoded.notes),
        "left_out": np.array([f"{name} ({why})" for name, why in left_out.items()]),
        "num_rows": np.array([len(chosen), len(other)]),
        "num_features": np.array(len(encoded.columns)),
    }


def view_rows(name: str, found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a view: no number without its interval, the columns alone and what is left out."""
    lattices = found["columns"][found["lattice_js"] > 0]
    largest = int(np.argmax(found["column_js"]))
    alone = f"{found['column_js'][largest]:.3f} ± {found['column_error'][largest]:.3f}"
    rows = []
    for index, view in enumerate(found["views"]):

        def interval(kind, digits, index=index):
            value, (low, high) = found[kind][index], found[f"{kind}_interval"][index]
            return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

        rows.append(
            {
                "pair": name,
                "view": str(view),
                "JS bits": interval("js", 3),
                "certified JS": f"{max(0, found['certified_js'][index]):.3f}",
                "lattice JS ≥": f"{found['lattice_js'].max():.3f}",
                "largest column JS": f"{alone} ({found['columns'][largest]})",
                "KL nats": interval("kl", 2) + " > log n" * bool(found["beyond_log_n"][index]),
                "certified KL": f"{found['certified_kl'][index]:.2f}",
                "AUC": f"{found['auc'][index]:.3f} ± {found['auc_error'][index]:.3f}",
                "p": f"{found['p_value'][index]:.3f}",
                "E_q[r]": f"{found['mean_ratio'][index]:.2f}",
                "lattices": ", ".join(lattices) or "none",
                "left out": ", ".join(found["left_out"]) or "none",
            }
        )
    return rows


def column_rows(name: str, found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a column, the most different first."""
    largest = np.maximum(found["column_js"], found["lattice_js"])
    rows = []
    for index in np.argsort(-largest, kind="stable"):
        lattice, shares = found["lattice_js"][index], found["lattice_shares"][index]
        rows.append(
            {
                "pair": name,
                "column": str(found["columns"][index]),
                "JS bits": f"{found['column_js'][index]:.4f} ± {found['column_error'][index]:.4f}",
                "lattice JS ≥": f"{lattice:.3f}" if lattice else "",
                "on the lattice, real / synthetic": f"{shares[0]:.1%} / {shares[1]:.1%}"
                if lattice
                else "",
            }
        )
    return rows


def draw(name: str, found: Mapping[str, np.ndarray], most: int = 25) -> Figure:
    """The tables' JS, their columns' own with lattices marked, and the log ratios' distributions.

    Intervals are of 95 %. Of many columns those of the largest JS are drawn.
    """
    largest = np.maximum(found["column_js"], found["lattice_js"])
    chosen = np.argsort(-largest, kind="stable")[:most]
    js, lattice = found["column_js"][chosen], found["lattice_js"][chosen]
    heights = (len(found["views"]) + 1, max(6, len(chosen)) + 1)
    with plot.style():
        figure, axes = plt.subplot_mosaic(
            [["views", "scores"], ["columns", "scores"]],
            figsize=(11, 2 + 0.27 * sum(heights)),
            height_ratios=heights,
            width_ratios=(3, 2),
        )
        views, columns, scores = axes["views"], axes["columns"], axes["scores"]
        views.sharex(columns)
        places = np.arange(len(found["views"]))
        views.hlines(places, *found["js_interval"].T, color="C4")
        views.plot(found["js"], places, "D", color="C4")
        views.set_yticks(places, found["views"])
        views.set(ylim=(len(places) - 0.5, -0.5), title="all columns")
        views.tick_params(labelbottom=False)
        error = 1.96 * found["column_error"][chosen]
        names = found["columns"][chosen].tolist()
        bars = {"color": "C3", "error_kw": {"capsize": 2}, "label": "the column alone"}
        plot.contributions(names, js, error, most=most, ax=columns, **bars)
        # Where `contributions` has put the bars.
        lattice = lattice[np.argsort(-js, kind="stable")]
        (marked,) = np.nonzero(lattice > 0)
        if len(marked):
            least = {"color": "black", "marker": "^", "zorder": 3, "clip_on": False}
            columns.scatter(lattice[marked], marked, label="at least, by its lattice", **least)
            figure.legend(*columns.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        among = f"the {len(chosen)} largest of {len(found['columns'])} columns"
        title = among if len(chosen) < len(found["columns"]) else "the columns"
        columns.set(xlabel="Jensen–Shannon divergence, bits, with 95 % intervals", title=title)
        every = np.concatenate([found["scores_p"], found["scores_q"]])
        low, high = np.quantile(every, [0.001, 0.999])
        bins = np.linspace(low - 0.1, high + 0.1, 60)
        for label, name_of, line in (("p", "real", "-"), ("q", "synthetic", "--")):
            values = np.clip(found[f"scores_{label}"], bins[0], bins[-1])
            drawn = {"histtype": "step", "linestyle": line, "linewidth": 1.8, "label": name_of}
            scores.hist(values, bins, density=True, **drawn)
        scores.set(xlabel=f"log p/q out of fold, {found['views'][0]}, nats", ylabel="density")
        scores.set_ylim(0, 1.2 * scores.get_ylim()[1])
        scores.legend(loc="upper right", ncols=2)
        figure.suptitle(name)
    return figure
