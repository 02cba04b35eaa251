"""Whole models: a backbone, its heads and the losses that train them."""

from latentlm.models.flops import flops_per_item, flops_per_sequence
from latentlm.models.latent_lm import BINS, LOSSES, LatentLM, LossTerms
from latentlm.models.targets import Targets, find_targets, null_ids

__all__ = [
    "BINS",
    "LOSSES",
    "LatentLM",
    "LossTerms",
    "Targets",
    "find_targets",
    "flops_per_item",
    "flops_per_sequence",
    "null_ids",
]
