"""Find the policy that keeps the most accuracy within a latency target.

The tuner is handed a `Bench` that runs policies and a task with examples; it knows no model and no video.
"""
