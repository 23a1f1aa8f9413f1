"""What every room stands on: pytrees, networks, pairwise reductions, training, checks."""
