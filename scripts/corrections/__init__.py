"""Source tables of the built-in corpus `builtin:corrections`, one module a family."""
