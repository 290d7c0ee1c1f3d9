"""Benchmarks under a policy: `lmms-eval --model vidsieve --model_args pretrained=MODEL,policy=policy.yaml`."""
