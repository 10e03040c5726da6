"""Tensors and tokens: base model, adapters in its layers, attention, sampling. Knows no requests, store or HTTP."""
