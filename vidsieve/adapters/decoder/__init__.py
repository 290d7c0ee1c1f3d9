"""Inside the language model: attention taps, layer pruning, decode-time KV pruning."""
