"""The five demo tasks and the prompts that belong to none; knows text only, nothing of models or training."""
