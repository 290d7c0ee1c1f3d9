"""The prompt: which of its tokens are visual, and how it becomes shorter."""
