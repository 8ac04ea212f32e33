"""`erase()`, `debias()` and `stack()`: from a request to an eraser."""
