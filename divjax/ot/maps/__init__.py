"""Transport maps: entropic ones, between Gaussians, as networks, and the Monge gap of a map."""
