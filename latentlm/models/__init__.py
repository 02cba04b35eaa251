"""Whole models: a backbone, its heads and the loss that trains them."""

from latentlm.models.latent_lm import LatentLM, LossTerms, flops_per_item

__all__ = ["LatentLM", "LossTerms", "flops_per_item"]
