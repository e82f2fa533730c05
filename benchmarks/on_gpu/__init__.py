"""One command that measures everything on one GPU, in 25 minutes; see `__main__`."""
