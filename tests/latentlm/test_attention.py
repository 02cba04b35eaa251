"""Attention against its formulas and laws."""

import torch

from latentlm.attention import KeyValueCache, attend, rotary_table, rotate


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    table = rotary_table(torch.arange(50), head_width=16, base=10000.0, style="interleaved")
    query, key = torch.randn(16), torch.randn(16)
    queries = rotate(query.expand(1, 1, 50, 16), table)[0, 0]
    keys = rotate(key.expand(1, 1, 50, 16), table)[0, 0]
    scores = queries @ keys.T
    for distance in (-7, 0, 1, 20):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert (scores.diagonal(1)[0] - scores.diagonal(20)[0]).abs() > 1e-3


def test_rotation_turns_interleaved_pairs_by_frequencies_with_both_ends() -> None:
    table = rotary_table(torch.arange(4), head_width=6, base=100.0, style="interleaved")
    x = torch.randn(1, 1, 4, 6)
    pairs = torch.view_as_complex(x.reshape(1, 1, 4, 3, 2))
    angles = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    expected = torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)
    torch.testing.assert_close(rotate(x, table), expected)


def test_attention_of_the_last_positions_is_the_end_of_whole_attention() -> None:
    queries, keys, values = (
        torch.randn(2, 4, 9, 8),
        torch.randn(2, 4, 9, 8),
        torch.randn(2, 4, 9, 8),
    )
    scores = (queries @ keys.mT) / 8**0.5
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ values
    for count in (9, 4, 1):
        found = attend(queries[:, :, -count:], keys, values)
        torch.testing.assert_close(found, expected[:, :, -count:])


def test_grouped_queries_share_neighbouring_keys() -> None:
    queries, keys, values = (
        torch.randn(2, 6, 5, 8),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 2, 5, 8),
    )
    repeated = [x.repeat_interleave(3, dim=1) for x in (keys, values)]
    torch.testing.assert_close(attend(queries, keys, values), attend(queries, *repeated))


def test_cache_returns_all_positions() -> None:
    cache = KeyValueCache(capacity=5)
    keys, values = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    cache.append(keys[:, :, :2], values[:, :, :2])
    found = cache.append(keys[:, :, 2:], values[:, :, 2:])
    assert torch.equal(found[0], keys)
    assert torch.equal(found[1], values)
