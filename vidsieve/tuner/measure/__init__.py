"""Latency: timed beside the uncompressed model, as a function of retention, within a target."""
