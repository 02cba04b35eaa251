"""Inception-style score (Salimans et al. 2016) from the logits of any named classifier.

In: logits (N, K) of generated images. Out: exp(E KL(p(y|x) ‖ p(y))), between 1 and K. Only with
Inception-v3's logits may it be called the Inception score.
"""

import torch
from torch import Tensor

from latentlm.metrics import NORMAL_95, Interval


def inception_style_score(logits_NK: Tensor, *, splits: int = 10) -> Interval:
    """Mean over `splits` parts of the images, ± 1.96 standard errors of that mean.

    Part i takes every `splits`-th row from row i on, so images may come sorted by class. Fewer
    images a part make the score lower: compare only at equal N and splits. With one split the
    interval is the value alone.
    """
    if not 1 <= splits <= len(logits_NK):
        raise ValueError(
            f"{len(logits_NK)} rows cannot be cut into {splits} parts; use from 1 to that many"
        )
    scores = torch.stack([_score(logits_NK[part::splits]) for part in range(splits)])
    value = float(scores.mean())
    margin = NORMAL_95 * float(scores.std()) / splits**0.5 if splits > 1 else 0.0
    return Interval(value, value - margin, value + margin)


def _score(logits_NK: Tensor) -> Tensor:
    log_p_NK = logits_NK.detach().cpu().double().log_softmax(1)
    p_NK = log_p_NK.exp()
    log_marginal_K = p_NK.mean(0).log().clamp(min=torch.finfo(torch.float64).min)  # 0 · log 0 = 0
    return (p_NK * (log_p_NK - log_marginal_K)).sum(1).mean().exp()
