"""Text to episodes to batches; TensorFlow and seqio live in `build` alone."""
