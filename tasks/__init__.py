"""Tasks that hyperjax registers with seqio; imported as `hyperjax.tasks`."""
