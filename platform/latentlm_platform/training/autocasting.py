"""Mixed precision around a whole model."""

import contextlib
from typing import Any

import torch
from torch import nn


class Autocast(nn.Module):
    """A model computing in `dtype` where autocast allows it; `None` leaves it in fp32."""

    def __init__(
        self, model: nn.Module, *, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.model, self.device_type, self.dtype = model, device.type, dtype

    def forward(self, *inputs: Any, **named: Any) -> Any:
        on = self.dtype is not None
        with torch.autocast(self.device_type, self.dtype) if on else contextlib.nullcontext():
            return self.model(*inputs, **named)
