"""A codec's encoder from weights on disk: the paper starts its encoder from a trained one (App. B).

In: a codec folder, or a .safetensors or .pt file of tensors by name. Names are those of the codec
(`encoder.…`, the rest is ignored) or those of the encoder alone.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latentlm_platform.errors import UserError

KEY = "codec.training.encoder_weights"
PREFIX = "encoder."
FORMS = "give a codec folder, or a .safetensors or .pt file of tensors by name"


def load_encoder(encoder: nn.Module, path: Path | str) -> None:
    """Give the encoder the weights at `path`; UserError names the first that does not fit."""
    found, wanted = read_encoder(path), encoder.state_dict()
    for name, tensor in wanted.items():
        if name not in found:
            raise UserError(
                f"{KEY} = {path} has no {name}, which this encoder needs;"
                " give weights of an encoder with the settings of codec.encoder"
            )
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{KEY} = {path} has {name} of shape {tuple(found[name].shape)}, but this encoder"
                f" has {tuple(tensor.shape)}; change codec.encoder, codec.patch_size,"
                " codec.latent_width or corpus.image_size, or give other weights"
            )
    for name in found:
        if name not in wanted:
            raise UserError(
                f"{KEY} = {path} has {name}, which this encoder has not;"
                " give weights of an encoder with the settings of codec.encoder"
            )
    encoder.load_state_dict(found)


def read_encoder(path: Path | str) -> dict[str, Tensor]:
    """The encoder's tensors at `path`, on the CPU, under the encoder's own names."""
    found = _read(Path(path))
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{KEY} = {path} holds something else than tensors by name; {FORMS}")
    own = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in found.items()
        if name.startswith(PREFIX)
    }
    return own or found


def _read(path: Path) -> Any:
    file = path / "codec.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{KEY} = {path}: {file} does not exist; {FORMS}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
    ) as error:
        raise UserError(f"{KEY} = {path} cannot be read; {FORMS}") from error
