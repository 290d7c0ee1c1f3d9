"""Speed and memory of policies on this machine, beside the uncompressed model."""
