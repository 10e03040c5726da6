"""Tensors and tokens: base model, adapters in its linear layers, attention, sampling. Knows no requests, no store, no HTTP."""
