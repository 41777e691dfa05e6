"""One file a command of the console: `EXAMPLE`, `add_arguments(sub)` and `run(args)`."""
