"""Judge the leaders of a search: re-rank, confirmed latency, held-out accuracy, and controls at the same latency."""
