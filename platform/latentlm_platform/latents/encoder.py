"""The frozen codec in a Ray Data actor pool: decoded chunks in, encoded chunks out."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from latentlm.load import load_codec
from latentlm.signals import pixels_to_signal
from latentlm_platform.hardware import pick_device
from latentlm_platform.latents.encoded import IMAGE, SIDES, SOUND
from latentlm_platform.latents.wire_rows import Arrays, Row, pack_row, unpack_row

Posterior = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


class EncoderActor:
    """Encodes the signals of a chunk, in batches: adds `mean` and, where predicted, `std`.

    A chunk is always encoded whole and in its own order: what a record is encoded to, to the last
    bit, does not depend on why it is. With two orientations `mean_mirrored` is of the mirrored
    pictures; a row that says `mirrored` (bool by picture) has that orientation of each instead.
    """

    def __init__(self, codec_folder: Path, *, batch_size: int, orientations: int) -> None:
        self.device = pick_device()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.codec = load_codec(codec_folder).to(self.device).eval()
        self.batch_size, self.orientations = batch_size, orientations

    def __call__(self, row: Row) -> Row:
        return pack_row(self.encode(unpack_row(row)))

    def encode(self, arrays: Arrays) -> Arrays:
        """The arrays of an `EncodedChunk` in place of the signals, beside whatever else came."""
        kinds, lengths = arrays["kinds"], arrays["lengths"].copy()
        pixels = arrays.pop("pixels", None)
        samples = arrays.pop("samples", None)
        sounds = [] if samples is None else np.split(samples, arrays.pop("sample_ends"))
        mirrored = arrays.pop("mirrored", None)
        for side in range(self.orientations):
            found: list[Posterior] = []
            if pixels is not None:
                turned = _turned(pixels, side=side, mirrored=mirrored)
                pictures = self._encode_pictures(turned)
                lengths[kinds == IMAGE] = pictures[0].shape[1]
                found.append(pictures)
            if sounds:
                # torch's own memory is aligned, on which the last bits of a product may depend
                spoken = [self._encode(torch.tensor(sound)[None]) for sound in sounds]
                lengths[kinds == SOUND] = [mean.shape[1] for mean, _ in spoken]
                found += spoken
            mean, std = self._joined(found)
            arrays[f"mean{SIDES[side]}"] = mean
            if std is not None:
                arrays[f"std{SIDES[side]}"] = std
        return arrays | {"lengths": lengths}

    def _encode_pictures(self, pixels_BYXC: npt.NDArray[np.uint8]) -> Posterior:
        parts = [
            self._encode(pixels_to_signal(torch.from_numpy(batch.copy())))
            for start in range(0, len(pixels_BYXC), self.batch_size)
            for batch in [pixels_BYXC[start : start + self.batch_size]]
        ]
        stds = [std for _, std in parts if std is not None]
        return np.concatenate([m for m, _ in parts]), np.concatenate(stds) if stds else None

    @torch.inference_mode()
    def _encode(self, signal: torch.Tensor) -> Posterior:
        posterior = self.codec.encode(signal.to(self.device))
        std = posterior.std_BNZ
        return posterior.mean_BNZ.float().cpu().numpy(), (
            None if std is None else std.float().cpu().numpy()
        )

    def _joined(self, found: list[Posterior]) -> Posterior:
        """All latents of the chunk, one below the other."""
        width = self.codec.latent_width
        empty = np.empty((0, width), np.float32)
        means = [mean.reshape(-1, width) for mean, _ in found]
        stds = [std.reshape(-1, width) for _, std in found if std is not None]
        return np.concatenate([empty, *means]), np.concatenate(stds) if stds else None


def _turned(
    pixels_BYXC: npt.NDArray[np.uint8], *, side: int, mirrored: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.uint8]:
    """The pictures of one orientation, or each in its own."""
    if mirrored is None:
        return pixels_BYXC[:, :, ::-1] if side else pixels_BYXC
    turned = pixels_BYXC.copy()
    turned[mirrored] = turned[mirrored][:, :, ::-1]
    return turned
