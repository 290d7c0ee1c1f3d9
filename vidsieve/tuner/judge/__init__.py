"""Accuracy: scores, intervals, the re-rank, and the held-out judgement."""
