"""The experiments that come with the package, one a file (:mod:`bdh_jax.config.catalogue`)."""
