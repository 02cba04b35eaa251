"""Packing: every element once, documents never mixed, whatever their sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.sequence import (
    LATENT,
    PADDING,
    Document,
    LatentSpan,
    TextSpan,
    class_conditional,
    pack,
)


def make_document(number: int, sizes: list[int]) -> Document:
    """Spans of text and latents by turns, all their elements different from all others'."""
    spans: list[TextSpan | LatentSpan] = []
    for index, size in enumerate(sizes):
        first = 1000 * number + 100 * index
        if index % 2:
            values = (first + np.arange(size * 2)).reshape(size, 2).astype(np.float32)
            spans.append(LatentSpan(values, scored=number % 3 != 0))
        else:
            spans.append(TextSpan(first + np.arange(size, dtype=np.int64), scored=index == 0))
    return tuple(spans)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=8))
def test_every_element_stands_once_in_its_own_document(sizes: list[list[int]]) -> None:
    documents = [make_document(number, size) for number, size in enumerate(sizes)]
    batch = pack(documents, length=13, latent_width=2)
    for number, document in enumerate(documents):
        rows, columns = (batch.document_BT == number).nonzero(as_tuple=True)
        assert len(set(rows.tolist())) == 1
        assert columns.tolist() == list(range(columns[0], columns[0] + len(columns)))
        here = (rows[0], slice(int(columns[0]), int(columns[-1]) + 1))
        assert batch.position_BT[here].tolist() == list(range(len(columns)))
        ids, latents, scored = [], [], []
        for span in document:
            scored += [span.scored] * len(span)
            if isinstance(span, TextSpan):
                ids += span.token_ids.tolist()
                latents += [[0.0, 0.0]] * len(span)
            else:
                ids += [LATENT] * len(span)
                latents += span.latents_NZ.tolist()
        assert batch.ids_BT[here].tolist() == ids
        assert batch.latents_BTZ[here].tolist() == latents
        assert batch.scored_BT[here].tolist() == scored
    padding = batch.document_BT == PADDING
    assert int((~padding).sum()) == sum(map(sum, sizes))
    assert not batch.scored_BT[padding].any()


def test_documents_share_rows_first_fit() -> None:
    sizes = [[6], [5], [4], [2]]
    batch = pack([make_document(n, s) for n, s in enumerate(sizes)], length=10, latent_width=2)
    found = [sorted(set(row.tolist()) - {PADDING}) for row in batch.document_BT]
    assert found == [[0, 2], [1, 3]]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="document 1 has 7 positions, but rows hold 1 to 6"):
        pack([make_document(0, [6]), make_document(1, [7])], length=6, latent_width=2)
    with pytest.raises(ValueError, match=r"latents of shape \(3, 2\), the batch needs \(N, 5\)"):
        pack([make_document(1, [1, 3])], length=6, latent_width=5)


def test_class_conditional_rows_are_packed_documents() -> None:
    latents, labels = torch.randn(3, 4, 2), torch.tensor([2, 0, 1])
    documents = [
        (TextSpan(np.array([label]), scored=False), LatentSpan(item.numpy()))
        for label, item in zip(labels.tolist(), latents, strict=True)
    ]
    for ours, packed in zip(
        class_conditional(latents, labels),
        pack(documents, length=5, latent_width=2),
        strict=True,
    ):
        assert torch.equal(ours, packed)
