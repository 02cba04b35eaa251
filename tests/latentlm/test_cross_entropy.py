"""The chunked softmax head against torch's cross-entropy, value and gradients."""

import pytest
import torch
import torch.nn.functional as F

from latentlm import cross_entropy
from latentlm.cross_entropy import SoftmaxHead


def make_head() -> SoftmaxHead:
    torch.manual_seed(0)
    head = SoftmaxHead(width=16, vocabulary=50, norm_eps=1e-6, learned_norm=True)
    torch.nn.init.normal_(head.weight, std=0.5)
    return head


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_loss_and_gradients_are_torchs(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 50 * chunk_rows)
    ids = torch.randint(50, (7,), generator=torch.Generator().manual_seed(1))
    found = []
    for chunked in (True, False):
        head = make_head()
        hidden = torch.randn(7, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
        loss, each = head(hidden, ids)
        if not chunked:
            each = F.cross_entropy(head(hidden), ids, reduction="none").detach()
            loss = F.cross_entropy(head(hidden), ids, reduction="sum")
        (2.5 * loss).backward()
        weights = [parameter.grad for parameter in head.parameters()]
        found.append([loss.detach(), each, hidden.grad, *weights])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
        assert torchs.abs().max() > 0


def test_no_logits_of_all_rows_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 100)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (50,) and len(out) != 16:
                largest = max(largest, out.numel())
            return out

    head, hidden = make_head(), torch.randn(40, 16, requires_grad=True)
    with Watch():
        head(hidden, torch.zeros(40, dtype=torch.int64)).total.backward()
    assert 0 < largest <= 100


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    head, hidden = make_head(), torch.randn(7, 16, requires_grad=True)
    ids = torch.arange(7)
    exact = head(hidden, ids).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(hidden, ids).total
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert loss.item() != exact.item()
    (exact_gradient,) = torch.autograd.grad(exact, hidden)
    assert hidden.grad is not None
    error = (hidden.grad - exact_gradient).abs().max() / exact_gradient.abs().max()
    assert 0 < error < 0.03
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.norm(hidden).bfloat16() @ head.weight.bfloat16().T
        wanted = F.cross_entropy(logits.float(), ids, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
