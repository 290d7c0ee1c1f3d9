"""Evaluations in child processes: a crash, a leak or a full device costs one trial and not the search."""
