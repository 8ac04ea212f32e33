"""The functions that make erasers: `erase()`, `debias()` and `stack()`."""
