"""Diffusion models: architectures, text states, noise predictions, LoRA layers."""
