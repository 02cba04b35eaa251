"""The frozen codec in a Ray Data actor pool: rows of pixels in, rows of posteriors out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.load import load_codec
from latentlm.signals import pixels_to_signal
from latentlm_platform.latents.wire_rows import Row, pack_row, unpack_row


class EncoderActor:
    """Encodes the `pixels` of a row, in batches; adds `mean` and, where predicted, `std`.

    With two orientations each is [n, 2, N, Z], the second one of the mirrored image; with one,
    [n, 1, N, Z].
    """

    def __init__(self, codec_folder: Path, *, batch_size: int, orientations: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.codec = load_codec(codec_folder).to(self.device).eval()
        self.batch_size = batch_size
        self.orientations = orientations

    def __call__(self, row: Row) -> Row:
        arrays = unpack_row(row)
        pixels = arrays.pop("pixels")
        sides = [self._encode(pixels[:, :, ::-1] if side else pixels) for side in self._sides()]
        arrays["mean"] = np.stack([mean for mean, _ in sides], axis=1)
        stds = [std for _, std in sides if std is not None]
        if stds:
            arrays["std"] = np.stack(stds, axis=1)
        return pack_row(arrays)

    def _sides(self) -> range:
        return range(self.orientations)

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        means, stds = [], []
        for start in range(0, len(pixels), self.batch_size):
            batch = np.ascontiguousarray(pixels[start : start + self.batch_size])
            posterior = self.codec.encode(pixels_to_signal(torch.from_numpy(batch)).to(self.device))
            means.append(posterior.mean_BNZ.float().cpu().numpy())
            if posterior.std_BNZ is not None:
                stds.append(posterior.std_BNZ.float().cpu().numpy())
        shape = (0, self.codec.latent_count, self.codec.latent_width)
        empty = np.empty(shape, np.float32)
        return np.concatenate([empty, *means]), np.concatenate([empty, *stds]) if stds else None
