"""The running system: one base model, a pool of LoRA experts, and the routers that choose among them."""
