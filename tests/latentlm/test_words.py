"""Drawing words: laws of greedy, temperature, top-k and top-p."""

import pytest
import torch

from latentlm.settings import TextSamplerSettings
from latentlm.words import sample_words

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))


def frequencies(settings: TextSamplerSettings, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """Shares of each word over an even grid of uniforms, which is exact to 1 / 20,000."""
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    drawn = sample_words(logits.expand(20_000, 5), settings=settings, uniforms_W=uniforms)
    return torch.bincount(drawn, minlength=5) / 20_000


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TextSamplerSettings(), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (TextSamplerSettings(temperature=0), [0, 1, 0, 0, 0]),
        (TextSamplerSettings(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (TextSamplerSettings(top_p=0.69), [0, 4 / 7, 0, 3 / 7, 0]),
        (TextSamplerSettings(top_p=0.71), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        (TextSamplerSettings(top_p=0.01), [0, 1, 0, 0, 0]),
        (TextSamplerSettings(top_k=1), [0, 1, 0, 0, 0]),
    ],
)
def test_words_come_with_their_probabilities(
    settings: TextSamplerSettings, expected: list[float]
) -> None:
    torch.testing.assert_close(
        frequencies(settings), torch.tensor(expected).float(), atol=1e-4, rtol=0
    )


def test_temperature_sharpens() -> None:
    expected = (LOGITS / 0.5).softmax(0)
    found = frequencies(TextSamplerSettings(temperature=0.5))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_forbidden_word_is_never_drawn_whatever_the_uniform() -> None:
    logits = LOGITS.clone()
    logits[1] = -torch.inf
    edges = torch.tensor([0.0, 0.5, 1 - 2**-24])
    drawn = sample_words(
        logits.expand(3, 5), settings=TextSamplerSettings(), uniforms_W=edges
    ).tolist()
    assert 1 not in drawn
    assert frequencies(TextSamplerSettings(top_k=4), logits)[1] == 0
