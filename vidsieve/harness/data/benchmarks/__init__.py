"""Local folders of published benchmarks as tasks: one file for the layout of each."""
