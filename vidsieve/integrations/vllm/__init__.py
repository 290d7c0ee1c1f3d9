"""A policy served by vLLM: `VIDSIEVE_POLICY=policy.yaml vllm serve MODEL`."""
