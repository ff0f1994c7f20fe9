"""Arrays, phi and the two places where phi touches a transformer: jax, flax and numpy only."""
