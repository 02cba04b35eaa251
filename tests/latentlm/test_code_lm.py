"""The model of codes: its loss written out, and sampling against its definition."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentlm.generate import sample_latents
from latentlm.models import CodeLM, LossTerms, find_targets, flops_per_item
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import class_conditional_codes
from latentlm.settings import CodeLMSettings, SamplerSettings, TextSamplerSettings

SMALL = CodeLMSettings(
    classes=3, codes=11, latent_count=5, width=16, depth=2, heads=4, kv_heads=2, ffn_width=24
)
LABELS = torch.tensor([0, 1, 2, 2, 0])
SCALES = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5])
TEXT = TextSamplerSettings(temperature=0.8, top_k=7, top_p=0.95)


def make_model(settings: CodeLMSettings = SMALL) -> CodeLM:
    """Weights large enough that what comes before decides."""
    generator = torch.Generator().manual_seed(0)
    model = CodeLM(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """(codes, labels, ids)."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(11, (6, 5), generator=generator)
    return codes, torch.arange(6) % 3, torch.arange(6) + 100


def compute_loss(model: CodeLM, rows: slice = slice(None), *, dropout: float = 0.3) -> LossTerms:
    codes, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids[rows], epochs_B=2)
    batch = class_conditional_codes(codes[rows], labels[rows])
    targets = find_targets(batch, model.settings, noise=noise, condition_dropout=dropout)
    terms: LossTerms = model(batch, targets, noise=noise, timesteps_per_token=4)
    return terms


def logits_after(model: CodeLM, label: int, codes: list[int]) -> Tensor:
    """(V,): the whole prefix anew, without a cache."""
    embedded = [model.class_embedding(torch.tensor([label]))]
    embedded += [model.code_embedding(torch.tensor([code])) for code in codes]
    hidden = model.backbone(torch.stack(embedded, dim=1))[0, -1]
    return model.softmax_head(hidden[None])[0]


@torch.no_grad()
def test_loss_is_the_cross_entropy_written_out() -> None:
    model = make_model()
    codes, labels, ids = make_batch()
    dropped = RowNoise(seed=9, ids_B=ids, epochs_B=2).uniform(Draw.LABEL_DROPOUT) < 0.3
    assert 0 < dropped.sum() < 6
    total = 0.0
    for row in range(6):
        label = 3 if dropped[row] else int(labels[row])
        for place in range(5):
            logits = logits_after(model, label, codes[row, :place].tolist())
            total += float(F.cross_entropy(logits, codes[row, place]))
    terms = compute_loss(model)
    assert terms.sums_K.tolist() == [0, pytest.approx(total, rel=1e-5), 0, 0]
    assert terms.counts_K.tolist() == [0, 30, 0, 0]
    assert not terms.bin_counts_10.any()


def test_batches_add_up_to_the_whole_and_so_do_gradients() -> None:
    model = make_model()
    compute_loss(model, dropout=0.5).sums_K[1].backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 6)):
        compute_loss(model, rows, dropout=0.5).sums_K[1].backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_label_dropout_of_one_hides_every_label_and_of_zero_none() -> None:
    model = make_model()
    for dropout, expected in ((1.0, [False] * 3 + [True]), (0.0, [True] * 3 + [False])):
        model.zero_grad()
        compute_loss(model, dropout=dropout).sums_K[1].backward()
        gradient = model.class_embedding.weight.grad
        assert gradient is not None
        assert (gradient.abs().sum(-1) > 0).tolist() == expected


def test_flops_agree_with_torchs_counter() -> None:
    settings = dataclasses.replace(SMALL, width=128, latent_count=64, codes=300, kv_heads=None)
    model, noise = CodeLM(settings), RowNoise(seed=0, ids_B=torch.arange(2))
    codes_BN = torch.zeros(2, 64, dtype=torch.int64)
    batch = class_conditional_codes(codes_BN, codes_BN[:, 0])
    targets = find_targets(batch, settings, noise=noise, condition_dropout=0.0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        terms = model(batch, targets, noise=noise, timesteps_per_token=4)
        terms.sums_K[1].backward()
    assert flops_per_item(settings, 4) == pytest.approx(counter.get_total_flops() / 2, rel=0.04)


def sample(
    model: CodeLM,
    rows: slice = slice(None),
    *,
    scales: Tensor = SCALES,
    text: TextSamplerSettings | None = TEXT,
    sampler: SamplerSettings | None = None,
) -> Tensor:
    return sample_latents(
        model,
        LABELS[rows],
        cfg_scales_B=scales[rows],
        sampler=sampler or SamplerSettings(),
        noise=RowNoise(seed=4, ids_B=torch.arange(5)[rows]),
        text=text,
    )


@torch.no_grad()
def by_definition(model: CodeLM, row: int, schedule: str) -> list[int]:
    """One image alone: both streams anew for every code, the drawing written out."""
    codes: list[int] = []
    noise = RowNoise(seed=4, ids_B=torch.tensor([row]))
    for place in range(5):
        conditional, null = (logits_after(model, y, codes) for y in (int(LABELS[row]), 3))
        share = {"constant": 1.0, "rising": place / 4, "falling": 1 - place / 4}[schedule]
        scale = 1 + (float(SCALES[row]) - 1) * share
        shares = torch.softmax((null + scale * (conditional - null)).double() / 0.8, 0)
        kept = shares.sort(descending=True)
        shares = kept.values[:7] / kept.values[:7].sum()
        before = shares.cumsum(0) - shares
        shares = shares * (before < 0.95)
        wanted = float(noise.at(place + 1).uniform(Draw.TEXT)) * float(shares.sum())
        codes.append(int(kept.indices[int((shares.cumsum(0) <= wanted).sum())]))
    return codes


@pytest.mark.parametrize("schedule", ["constant", "rising", "falling"])
def test_a_batch_samples_what_each_row_is_by_definition(schedule: str) -> None:
    model = make_model()
    sampler = SamplerSettings(guidance_schedule=schedule)  # type: ignore[arg-type]
    whole = sample(model, sampler=sampler)
    assert whole.shape == (5, 5, 1)
    for row in range(5):
        assert whole[row, :, 0].tolist() == by_definition(model, row, schedule)
        alone = sample(model, slice(row, row + 1), sampler=sampler)
        assert torch.equal(alone[0], whole[row])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 5


def test_scale_one_is_the_conditional_model_and_scale_zero_ignores_the_label() -> None:
    model = make_model()
    rows, conditional = sample(model), sample(model, scales=torch.ones(5))
    assert torch.equal(rows[[0, 2]], conditional[[0, 2]])
    nothing = [
        sample_latents(
            model,
            labels,
            cfg_scales_B=torch.zeros(5),
            sampler=SamplerSettings(),
            noise=RowNoise(seed=4, ids_B=torch.arange(5)),
        )
        for labels in (LABELS, (LABELS + 1) % 3)
    ]
    assert torch.equal(*nothing)


def test_a_tiny_model_learns_the_codes_of_two_classes() -> None:
    """Class k starts with code k or k + 2, each as likely; every later code is the one before."""
    torch.manual_seed(0)
    settings = dataclasses.replace(SMALL, classes=2, codes=4, latent_count=3)
    model = CodeLM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98))
    for step in range(120):
        noise = RowNoise(seed=0, ids_B=torch.arange(64) + 64 * step)
        labels = torch.arange(64) % 2
        first = labels + 2 * (noise.uniform(Draw.CODEC_NOISE, 1)[:, 0] < 0.5)
        batch = class_conditional_codes(first[:, None].expand(-1, 3), labels)
        targets = find_targets(batch, settings, noise=noise, condition_dropout=0.1)
        terms = model(batch, targets, noise=noise, timesteps_per_token=1)
        optimizer.zero_grad()
        (terms.sums_K[1] / terms.counts_K[1]).backward()
        optimizer.step()
    mean = float(terms.sums_K[1].detach() / terms.counts_K[1])
    assert mean == pytest.approx(torch.tensor(2.0).log().item() / 3, abs=0.1)
    found = sample_latents(
        model,
        torch.arange(400) % 2,
        cfg_scales_B=torch.ones(400),
        sampler=SamplerSettings(),
        noise=RowNoise(seed=1, ids_B=torch.arange(400)),
    ).squeeze(-1)
    assert float((found[:, 0] % 2 == torch.arange(400) % 2).double().mean()) > 0.97
    assert float((found[:, 1:] == found[:, :1]).double().mean()) > 0.97
    assert 0.35 < float((found[:, 0] > 1).double().mean()) < 0.65


def test_wrong_shapes_are_named() -> None:
    model, noise = make_model(), RowNoise(seed=0, ids_B=torch.arange(2))
    codes_BN = torch.zeros(2, 4, dtype=torch.int64)
    batch = class_conditional_codes(codes_BN, codes_BN[:, 0])
    targets = find_targets(batch, SMALL, noise=noise, condition_dropout=0.0)
    with pytest.raises(ValueError, match="2 rows have 4 codes; the model needs latent_count = 5"):
        model(batch, targets, noise=noise, timesteps_per_token=1)
