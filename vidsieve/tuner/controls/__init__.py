"""What a winner must beat at its own latency: random tokens, fewer frames, fewer pixels."""
