"""What every room stands on: pytrees, protocols, pairwise reductions, training, checks."""
