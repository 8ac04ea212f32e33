"""Ways out, at inference: erasers on a pipeline."""
