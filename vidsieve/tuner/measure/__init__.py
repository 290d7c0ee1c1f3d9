"""Measure latency in pairs with the uncompressed model, as a function of retention, and score examples."""
