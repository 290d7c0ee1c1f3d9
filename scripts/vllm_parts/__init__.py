"""Parts of `scripts/vllm_equality.py` that run inside vLLM's own environment."""
