"""Codecs, the paper's tokenizers (§2.3): signals ↔ latents, how latents are drawn, and training."""
