"""Drawing words from logits (Eq. 1, Sample): greedy, temperature, top-k, top-p."""

import torch
from torch import Tensor

from latentlm.settings import TextSamplerSettings


def sample_words(logits_WV: Tensor, *, settings: TextSamplerSettings, uniforms_W: Tensor) -> Tensor:
    """Ids (W,), each by the inverse distribution function at its row's own uniform in [0, 1).

    A word with logit -inf is never drawn. Words are ranked by logit; of those, the `top_k` first
    stay, and of those the fewest that reach `top_p` together.
    """
    if settings.temperature == 0:
        return logits_WV.argmax(dim=1)
    ranked_WV, ids_WV = (logits_WV.float() / settings.temperature).sort(dim=1, descending=True)
    if settings.top_k is not None:
        ranked_WV, ids_WV = ranked_WV[:, : settings.top_k], ids_WV[:, : settings.top_k]
    probabilities_WV = ranked_WV.softmax(dim=1, dtype=torch.float64)
    before_WV = probabilities_WV.cumsum(dim=1) - probabilities_WV
    probabilities_WV = probabilities_WV * (before_WV < settings.top_p)
    reached_WV = probabilities_WV.cumsum(dim=1)
    wanted_W1 = uniforms_W.double()[:, None] * reached_WV[:, -1:]
    places_W1 = torch.searchsorted(reached_WV, wanted_W1, right=True)
    last_W1 = (probabilities_WV > 0).sum(dim=1, keepdim=True) - 1
    return ids_WV.gather(1, places_W1.minimum(last_W1)).squeeze(1)
