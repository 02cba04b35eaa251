"""Causal layers over time, each of which can go on where its last call stopped (§3.3).

In and out: (B, T, W), frames before widths, so that every dense convolution is one matrix product
and no layer transposes. With `past=None` a call sees a whole signal, zeros before it. With a dict,
layers keep in it the frames that the next call needs: never an output twice, and none again.
"""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Past = dict[nn.Module, Tensor]

NORM_EPS = 1e-5
INITIAL_LAYER_SCALE = 1e-6
FFN_RATIO = 4


class CausalConv(nn.Module):
    """Convolution whose output n sees inputs up to (n + 1) · stride - 1 and none later.

    T inputs give T / stride outputs; T is a multiple of the stride.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(outputs, kernel, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_BTW: Tensor, past: Past | None = None) -> Tensor:
        x_BTW = _continued(x_BTW, layer=self, length=self.kernel - self.stride, past=past)
        windows_BTWK = x_BTW.unfold(1, self.kernel, self.stride)
        windows_BTJ = windows_BTWK.transpose(2, 3).flatten(2)
        return F.linear(windows_BTJ, self.weight.flatten(1), self.bias)


class CausalDepthwiseConv(nn.Module):
    """One causal filter of `kernel` taps for each of `width` numbers."""

    def __init__(self, width: int, *, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(width, 1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTW: Tensor, past: Past | None = None) -> Tensor:
        x_BTW = _continued(x_BTW, layer=self, length=self.kernel - 1, past=past)
        # (B, W, 1, T) over the same memory is torch's channels-last format: conv2d has kernels for
        # it on every device where conv1d would first transpose
        x_BW1T = x_BTW.transpose(1, 2).unsqueeze(2)
        y_BW1T = F.conv2d(x_BW1T, self.weight, self.bias, groups=len(self.bias))
        return y_BW1T.squeeze(2).transpose(1, 2)


class CausalUpsampling(nn.Module):
    """Transposed convolution of kernel 2 · stride, its last `stride` outputs held back.

    Output frame n is A x[n] + B x[n - 1]. What the last input adds to the frame after it is what
    streaming keeps, so that every input is multiplied once. weight[:, 0] is A, weight[:, 1] is B.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, 2, stride, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_BTW: Tensor, past: Past | None = None) -> Tensor:
        stride, outputs = self.weight.shape[2:]
        both_BT2J = F.linear(x_BTW, self.weight.flatten(1).T).unflatten(-1, (2, -1))
        now_BTJ, later_BTJ = both_BT2J.unbind(2)
        earlier_BTJ = _continued(later_BTJ, layer=self, length=1, past=past)[:, :-1]
        y_BTSW = (now_BTJ + earlier_BTJ).unflatten(-1, (stride, outputs)) + self.bias
        return y_BTSW.flatten(1, 2)


class Widening(nn.Module):
    """A linear layer to more numbers than it takes; weight (inputs, outputs).

    A single frame is bound by reading the weights from memory, and long rows read twice as fast.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_BTW: Tensor) -> Tensor:
        return F.linear(x_BTW, self.weight.T, self.bias)


class ScaledRMSNorm(nn.Module):
    """weight · x / √(mean x² + eps) over the widths, computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTW: Tensor) -> Tensor:
        normal = F.rms_norm(x_BTW.float(), x_BTW.shape[-1:], self.weight.float(), NORM_EPS)
        return normal.to(x_BTW.dtype)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt in one causal dimension: depthwise convolution, then a feed-forward net.

    Both branches are normalised first and come in through a learned scale that starts near 0.
    """

    def __init__(self, width: int, *, kernel: int) -> None:
        super().__init__()
        self.conv_norm = ScaledRMSNorm(width)
        self.conv = CausalDepthwiseConv(width, kernel=kernel)
        self.conv_scale = nn.Parameter(torch.full((width,), INITIAL_LAYER_SCALE))
        self.ffn_norm = ScaledRMSNorm(width)
        self.ffn_in = Widening(width, FFN_RATIO * width)
        self.ffn_out = nn.Linear(FFN_RATIO * width, width)
        self.ffn_scale = nn.Parameter(torch.full((width,), INITIAL_LAYER_SCALE))

    def forward(self, x_BTW: Tensor, past: Past | None = None) -> Tensor:
        filtered_BTW = self.conv(self.conv_norm(x_BTW), past)
        x_BTW = torch.addcmul(x_BTW, filtered_BTW, self.conv_scale)
        mixed_BTW = self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x_BTW))))
        return torch.addcmul(x_BTW, mixed_BTW, self.ffn_scale)


class CausalChain(nn.Module):
    """Causal layers one after another."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTW: Tensor, past: Past | None = None) -> Tensor:
        for layer in self.layers:
            x_BTW = layer(x_BTW, past)
        return x_BTW


def initialise(module: nn.Module, generator: Generator | None) -> None:
    """Normal weights of variance 1 / (inputs of an output), zero biases: layers keep variance."""
    for layer in module.modules():
        if isinstance(layer, CausalConv | CausalDepthwiseConv | nn.Linear):
            inputs = layer.weight[0].numel()
        elif isinstance(layer, Widening):
            inputs = len(layer.weight)
        elif isinstance(layer, CausalUpsampling):
            inputs = 2 * len(layer.weight)
        else:
            continue
        nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)


def _continued(x_BTW: Tensor, *, layer: nn.Module, length: int, past: Past | None) -> Tensor:
    """x after the `length` frames before it: the last that `layer` saw, or zeros."""
    if not length:
        return x_BTW
    before_BTW = None if past is None else past.get(layer)
    if before_BTW is None:
        before_BTW = x_BTW.new_zeros(len(x_BTW), length, x_BTW.shape[2])
    x_BTW = torch.cat((before_BTW, x_BTW), dim=1)
    if past is not None:
        past[layer] = x_BTW[:, -length:].clone()  # a view would keep the whole chunk in memory
    return x_BTW
