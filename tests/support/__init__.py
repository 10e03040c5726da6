"""What several test packages share: tiny real models, real PEFT adapters, fakes with the real signatures."""
