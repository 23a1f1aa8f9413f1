"""The base of all rooms: pytrees, networks, pairwise reductions, training, checks."""
