"""One file a model family: vLLM's own class with the policy between its vision side and its language model."""
