"""Eight virtual devices, so that sharded results can be compared with unsharded ones."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
