"""Entropic transport: the problem, the solver, its result, and the divergence built on it.

A call of `sinkhorn` passes through these modules, in this order:

    options           `Sinkhorn`, the solver's options
    solver            `sinkhorn`: the four steps below
    formulate         samples or a cost matrix → a `Formulation` with a centred `problem`
    initial           the potentials to start from, and annealing (`schedules`)
    loop              chunks of iterations (`updates`), over-relaxed (`over_relaxation`)
    finalize          value, potentials and status, with `derivatives` and rounding (`precision`)
    result            plan, marginals, potentials, map; `interchange` with ott-jax
"""
