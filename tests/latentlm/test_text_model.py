"""LatentLM with text: targets, losses by modality, packed = unpacked, stop decisions, learning."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentlm.models import LatentLM, LossTerms, find_targets
from latentlm.randomness import RowNoise
from latentlm.sequence import Document, LatentSpan, TextSpan, pack
from latentlm.settings import HeadSettings, LatentLMSettings
from latentlm.vocabulary import special_ids

SETTINGS = LatentLMSettings(
    vocabulary=30,
    latent_width=4,
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=32,
    stop="continue",
    head=HeadSettings(depth=2, ffn_width=24),
)
END, CONTINUE, EOD, BOD, PAD = special_ids(30)


def latent_span(seed: int, count: int) -> LatentSpan:
    return LatentSpan(np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32))


def text_span(*ids: int, scored: bool = True) -> TextSpan:
    return TextSpan(np.array(ids), scored=scored)


DOCUMENTS: list[Document] = [
    (text_span(1, 2, 3, BOD), latent_span(0, 3), text_span(EOD, 4, END)),
    (text_span(5, 6, 7, END),),
    (text_span(8, BOD, scored=False), latent_span(1, 4), text_span(EOD)),
]


def make_model(settings: LatentLMSettings = SETTINGS) -> LatentLM:
    torch.manual_seed(0)
    model = LatentLM(settings)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return model


def loss_of(
    model: LatentLM, numbers: list[int], *, length: int = 20, dropout: float = 0.0
) -> LossTerms:
    batch = pack([DOCUMENTS[n] for n in numbers], length=length, latent_width=4)
    noise = RowNoise(seed=3, ids_B=torch.tensor(numbers) + 50)
    targets = find_targets(batch, model.settings, noise=noise, condition_dropout=dropout)
    terms: LossTerms = model(batch, targets, noise=noise, timesteps_per_token=3)
    return terms


def test_what_each_state_predicts() -> None:
    noise = RowNoise(seed=0, ids_B=torch.tensor([0]))
    # 1 2 3 BOD z z z EOD 4 END: state i predicts element i + 1
    batch = pack(DOCUMENTS[:1], length=10, latent_width=4)
    found = find_targets(batch, SETTINGS, noise=noise, condition_dropout=0.0)
    assert found.latent_L.tolist() == [3, 4, 5]
    assert list(zip(found.text_W.tolist(), found.text_ids_W.tolist(), strict=True)) == [
        (0, 2),
        (1, 3),
        (7, 4),
    ]
    assert found.structure_W.tolist() == [2, 8]
    assert found.structure_ids_W.tolist() == [BOD, END]
    assert list(zip(found.stop_W.tolist(), found.stop_ids_W.tolist(), strict=True)) == [
        (4, CONTINUE),
        (5, CONTINUE),
        (6, EOD),
    ]
    plain = dataclasses.replace(SETTINGS, stop="eod")
    found = find_targets(batch, plain, noise=noise, condition_dropout=0.0)
    assert found.stop_W.tolist() == []
    marks = zip(found.structure_W.tolist(), found.structure_ids_W.tolist(), strict=True)
    assert (6, EOD) in marks


def test_unscored_words_and_dropped_conditions_are_no_targets() -> None:
    batch = pack(DOCUMENTS, length=12, latent_width=4)
    noise = RowNoise(seed=0, ids_B=torch.arange(3))
    whole = find_targets(batch, SETTINGS, noise=noise, condition_dropout=0.0)
    # of document 2 only latents, stop decisions and nothing else: BOD is unscored
    assert len(whole.latent_L) == 3 + 4
    assert len(whole.text_W) == 3 + 2
    assert len(whole.structure_W) == 2 + 1
    dropped = find_targets(batch, SETTINGS, noise=noise, condition_dropout=1.0)
    shown = dropped.ids_BT[batch.document_BT == 0].tolist()
    assert shown == [PAD, PAD, PAD, BOD, -1, -1, -1, EOD, 4, END]
    assert dropped.ids_BT[batch.document_BT == 1].tolist() == [5, 6, 7, END]
    assert dropped.structure_ids_W.tolist().count(BOD) == 1  # BOD itself is not hidden
    assert not {2, 3} & set(dropped.text_ids_W.tolist())
    assert torch.equal(dropped.latent_L, whole.latent_L)


def test_stop_decisions_stay_within_scored_elements_of_one_document() -> None:
    silent = LatentSpan(latent_span(4, 2).latents_NZ, scored=False)
    documents: list[Document] = [
        (text_span(BOD, scored=False), silent, text_span(EOD, scored=False)),
        (latent_span(5, 2), text_span(EOD)),
        (latent_span(6, 1),),
    ]
    batch = pack(documents, length=9, latent_width=4)
    noise = RowNoise(seed=0, ids_B=torch.arange(3))
    found = find_targets(batch, SETTINGS, noise=noise, condition_dropout=0.0)
    assert found.stop_W.tolist() == [4, 5]
    assert found.stop_ids_W.tolist() == [CONTINUE, EOD]
    assert found.latent_L.tolist() == [4]


def test_interleaved_words_before_the_last_latent_are_the_condition() -> None:
    document: Document = (
        text_span(1, 2, BOD),
        latent_span(0, 1),
        text_span(EOD, 3, 4, BOD),
        latent_span(1, 1),
        text_span(EOD, 5, END),
    )
    batch = pack([document], length=12, latent_width=4)
    noise = RowNoise(seed=0, ids_B=torch.tensor([0]))
    dropped = find_targets(batch, SETTINGS, noise=noise, condition_dropout=1.0)
    shown = [PAD, PAD, BOD, -1, EOD, PAD, PAD, BOD, -1, EOD, 5, END]
    assert dropped.ids_BT[0].tolist() == shown
    assert dropped.text_ids_W.tolist() == [5]
    assert dropped.structure_ids_W.tolist() == [BOD, BOD, END]


def test_losses_are_written_out_per_modality() -> None:
    model = make_model()
    terms = loss_of(model, [0])
    batch = pack(DOCUMENTS[:1], length=10, latent_width=4)
    with torch.no_grad():
        states = model.backbone(model.embed(batch.ids_BT, batch.latents_BTZ))[0]
        logits = model.softmax_head(states)
        text = F.cross_entropy(logits[[0, 1, 7]], torch.tensor([2, 3, 4]), reduction="sum")
        marks = F.cross_entropy(logits[[2, 8]], torch.tensor([BOD, END]), reduction="sum")
        stop = F.cross_entropy(
            logits[[4, 5, 6]], torch.tensor([CONTINUE, CONTINUE, EOD]), reduction="sum"
        )
    assert terms.sums_K[1].item() == pytest.approx(text.item(), rel=1e-5)
    assert terms.sums_K[2].item() == pytest.approx(marks.item(), rel=1e-5)
    assert terms.sums_K[3].item() == pytest.approx(stop.item(), rel=1e-5)
    assert terms.counts_K.tolist() == [3 * 3, 3, 2, 3]


def test_losses_by_source_are_those_of_its_documents_alone() -> None:
    model = make_model()
    batch = pack(DOCUMENTS, length=10, latent_width=4)
    source_BT = (batch.document_BT == 1).long()
    noise = RowNoise(seed=3, ids_B=torch.arange(3) + 50)
    found = batch._replace(source_BT=source_BT)
    targets = find_targets(found, SETTINGS, noise=noise, condition_dropout=0.0, sources=2)
    terms = model(found, targets, noise=noise, timesteps_per_token=3)
    alone = loss_of(model, [1])
    torch.testing.assert_close(terms.source_sums_KS[:, 1], alone.sums_K.detach())
    torch.testing.assert_close(terms.source_sums_KS.sum(1), terms.sums_K.detach())
    assert torch.equal(terms.source_counts_KS[:, 1].double(), alone.counts_K)
    assert torch.equal(terms.source_counts_KS.sum(1).double(), terms.counts_K)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_packed_losses_and_gradients_are_the_documents_alone(dropout: float) -> None:
    model = make_model()
    packed = loss_of(model, [0, 1, 2], dropout=dropout)
    packed.sums_K.sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    alone = [loss_of(model, [n], dropout=dropout) for n in range(3)]
    sum(terms.sums_K.sum() for terms in alone).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(
        sum(terms.sums_K for terms in alone), packed.sums_K, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(sum(terms.counts_K for terms in alone), packed.counts_K)  # type: ignore
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
        assert gradient.abs().max() > 0


def test_without_a_modality_every_weight_still_gets_a_gradient_of_zero() -> None:
    model = make_model()
    terms = loss_of(model, [1])
    assert terms.counts_K.tolist() == [0, 2, 1, 0]
    terms.sums_K.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("head.", "latent_projection")):
            assert parameter.grad.abs().max() == 0, name
    assert terms.sums_K[0].item() == terms.sums_K[3].item() == 0
    assert terms.bin_counts_10.sum() == 0


def test_a_word_never_sees_what_it_predicts() -> None:
    model = make_model()
    batch = pack([DOCUMENTS[0]], length=10, latent_width=4)
    latents = batch.latents_BTZ.clone().requires_grad_()
    hidden = model.hidden(batch._replace(latents_BTZ=latents))
    for position in range(9):
        (gradient,) = torch.autograd.grad(hidden[0, position].sum(), latents, retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[position + 1 :] == 0).all()
