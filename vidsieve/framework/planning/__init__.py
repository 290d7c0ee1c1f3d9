"""From stages to a plan: call them in order, check what they say, count, and reconcile."""
