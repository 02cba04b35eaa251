"""Critics that train a codec against blur. In: signals. Out: one logit for each patch they see."""

from itertools import pairwise

from torch import Generator, Tensor, nn

INITIAL_STD = 0.02
SLOPE = 0.2
NORM_GROUPS = 8


class PatchCritic(nn.Module):
    """PatchGAN of the VQGAN and latent-diffusion recipe: 4x4 convolutions, `depth` halvings.

    It normalises over groups of channels where the original uses batch statistics, so that a step
    does not depend on how the batch is split over workers. Weights are drawn from `generator`.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        depth: int = 3,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        for level, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.GroupNorm(NORM_GROUPS, after),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.smallest = 3 * 2**depth
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INITIAL_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, signal_BCYX: Tensor) -> Tensor:
        """Logits (B, 1, rows, columns): high where the patch looks real."""
        if min(signal_BCYX.shape[2:]) < self.smallest:
            raise ValueError(
                f"the critic saw {signal_BCYX.shape[3]} x {signal_BCYX.shape[2]} pixels, but needs"
                f" {self.smallest} or more a side; enlarge corpus.image_size or set"
                " codec.training.objective.adversarial_weight to 0"
            )
        return self.layers(signal_BCYX)
