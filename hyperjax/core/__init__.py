"""Arrays, phi and the three places where it touches a transformer: of jax, flax, numpy, qwix."""
