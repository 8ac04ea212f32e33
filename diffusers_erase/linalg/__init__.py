"""Linear algebra shared by solvers and stacks."""
