"""Recipes that make experts. Writes PEFT adapters and manifests; knows nothing of the engine, the service or HTTP."""
