"""One file per model family: the layout of its visual tokens and a few facts. Each defines `ADAPTER`."""
