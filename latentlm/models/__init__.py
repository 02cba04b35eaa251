"""Whole models: a backbone, its heads and the losses that train them."""

from latentlm.models.code_lm import CodeLM
from latentlm.models.dit import DiT
from latentlm.models.dit_sampling import sample_all_latents
from latentlm.models.flops import FlopLaw, flop_law, flops_per_item, flops_per_sequence
from latentlm.models.latent_lm import LatentLM
from latentlm.models.loss_terms import BINS, LOSSES, LossTerms
from latentlm.models.targets import Targets, find_targets, null_ids

__all__ = [
    "BINS",
    "LOSSES",
    "CodeLM",
    "DiT",
    "FlopLaw",
    "LatentLM",
    "LossTerms",
    "Targets",
    "find_targets",
    "flop_law",
    "flops_per_item",
    "flops_per_sequence",
    "null_ids",
    "sample_all_latents",
]
