"""Latency: timed in pairs with the uncompressed model, as a function of retention, within a target."""
