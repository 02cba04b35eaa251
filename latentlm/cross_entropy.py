"""The softmax head of Eq. 1 and its cross-entropy, whose logits never exist as a whole."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentlm.layers import RMSNorm

CHUNK_ELEMENTS = 2**24  # logits at once: 64 MiB in fp32


class SoftmaxHead(nn.Module):
    """h → logits over |V| words: softmax(RMSNorm(h) W_v)."""

    def __init__(
        self, *, width: int, vocabulary: int, norm_eps: float, learned_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(eps=norm_eps, learned_width=width if learned_norm else None)
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden_MD: Tensor, ids_M: Tensor | None = None) -> "Tensor | WordLosses":
        """Logits fp32 (M, V); with ids, `WordLosses` instead."""
        hidden_MD = self.norm(hidden_MD)
        if ids_M is None:
            return (hidden_MD @ self.weight.to(hidden_MD.dtype).T).float()
        device = hidden_MD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return WordLosses(*_ChunkedCrossEntropy.apply(hidden_MD, self.weight, ids_M, dtype))


class WordLosses(NamedTuple):
    """Cross-entropies fp32: their sum () with a gradient, and each one (M,) without."""

    total: Tensor
    each_M: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ -log softmax(h Wᵀ)[id]: gradients are made with the loss, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, ids_M: Tensor, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        dtype = dtype or weight_VD.dtype
        weight = weight_VD.to(dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_MD) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VD) if needs_weight else None
        losses_M = torch.empty(len(ids_M), dtype=torch.float32, device=hidden_MD.device)
        size = max(1, CHUNK_ELEMENTS // len(weight_VD))
        for start in range(0, len(ids_M), size):
            here = slice(start, start + size)
            hidden, ids = hidden_MD[here].to(dtype), ids_M[here, None]
            logits = (hidden @ weight.T).float()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            losses_M[here] = (normaliser - logits.gather(1, ids)).squeeze(1)
            if hidden_gradient is None and weight_gradient is None:
                continue
            error = logits.sub_(normaliser).exp_()  # softmax - one-hot, in the logits' memory
            error.scatter_add_(1, ids, torch.full_like(ids, -1, dtype=error.dtype))
            error = error.to(dtype)
            if hidden_gradient is not None:
                hidden_gradient[here] = error @ weight
            if weight_gradient is not None:
                weight_gradient += error.T @ hidden
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(losses_M)
        return losses_M.sum(), losses_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else weight * scale.to(weight.dtype),
            None,
            None,
        )
