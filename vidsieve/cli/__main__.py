"""`python -m vidsieve.cli`."""

from vidsieve.cli import main

main()
