"""What only a GPU runs: FlexAttention's packed mask, and the head's solver loop as a CUDA graph.

The reference is the CPU. These tests have not run yet: no GPU was at hand when they were written.
"""

import copy

import pytest
import torch

from latentlm.backbone import Backbone
from latentlm.generate import sample_latents
from latentlm.models import LatentLM
from latentlm.randomness import RowNoise
from latentlm.settings import HeadSettings, LatentLMSettings, SamplerSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTINGS = LatentLMSettings(
    classes=3,
    latent_count=6,
    latent_width=4,
    width=64,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=96,
    head=HeadSettings(depth=2, ffn_width=96),
)


def test_packed_attention_equals_the_cpus() -> None:
    torch.manual_seed(0)
    backbone = Backbone(SETTINGS).eval()
    x = torch.randn(2, 128, 64)
    document = torch.arange(128).div(50, rounding_mode="floor").expand(2, 128).contiguous()
    position = (torch.arange(128) % 50).expand(2, 128).contiguous()
    with torch.no_grad():
        wanted = backbone(x, document_BT=document, position_BT=position)
        device = torch.device("cuda")
        found = copy.deepcopy(backbone).to(device)(
            x.to(device), document_BT=document.to(device), position_BT=position.to(device)
        )
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_captured_solver_loop_gives_what_the_cpu_gives(steps: int) -> None:
    torch.manual_seed(0)
    model = LatentLM(SETTINGS).eval()
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        found.append(
            sample_latents(
                copy.deepcopy(model).to(device),
                torch.arange(5, device=device) % 3,
                cfg_scales_B=torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5], device=device),
                sampler=SamplerSettings(steps=steps),
                noise=RowNoise(seed=1, ids_B=torch.arange(5, device=device)),
            ).cpu()
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
