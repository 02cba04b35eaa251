"""Exports: a folder of weights (safetensors) beside the settings (JSON) that rebuild the modules.

An export holds model.safetensors, model.json, codec.safetensors, codec.json; a trained codec
alone is a folder with the last two. `latentlm.load(folder)` is this module, called.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentlm.catalogue import CODECS, MODELS, Entry, build_codec, build_model, kind_of
from latentlm.codec.image_vit import ImageViTCodec
from latentlm.models.latent_lm import LatentLM


class Loaded(NamedTuple):
    """A model and its codec, both in evaluation mode on the CPU, and what the export says."""

    model: LatentLM
    codec: ImageViTCodec
    metadata: dict[str, str]


def save_export(
    folder: Path | str, *, model: LatentLM, codec: ImageViTCodec, metadata: dict[str, str]
) -> None:
    """Write an export into a folder, made where missing; model.json comes last."""
    save_codec(folder, codec=codec)
    kind = kind_of(model.settings, MODELS)
    _save(Path(folder) / "model", model, kind=kind, metadata=metadata)


def save_codec(folder: Path | str, *, codec: ImageViTCodec) -> None:
    """Write a codec alone."""
    _save(Path(folder) / "codec", codec, kind=kind_of(codec.settings, CODECS), metadata={})


def load(folder: Path | str) -> Loaded:
    """Read an export. Raises ValueError where a file is missing or does not fit the settings."""
    settings, metadata = _read_settings(Path(folder), "model", MODELS)
    with torch.device("meta"):  # weights come from the file; random ones would only cost time
        model = build_model(settings)
    load_weights(model, folder)
    codec = load_codec(folder)
    if codec.latent_width != model.settings.latent_width:
        raise ValueError(
            f"{folder}: the codec's latent_width is {codec.latent_width}, the model's"
            f" {model.settings.latent_width}; export a model with the codec it was trained on"
        )
    return Loaded(model.eval(), codec, metadata)


def load_codec(folder: Path | str) -> ImageViTCodec:
    """Read the codec of an export or of a codec folder, in evaluation mode on the CPU."""
    settings, _ = _read_settings(Path(folder), "codec", CODECS)
    with torch.device("meta"):
        codec = build_codec(settings)
    _fill(codec, Path(folder) / "codec.safetensors")
    return codec.eval()


def load_weights(model: LatentLM, folder: Path | str) -> None:
    """Give a model the weights of an export. Raises ValueError where names or shapes differ."""
    _fill(model, Path(folder) / "model.safetensors")


def _save(stem: Path, module: Any, *, kind: str, metadata: dict[str, str]) -> None:
    """Write `stem`.safetensors, then `stem`.json."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, stem.with_suffix(".safetensors"))
    description = {
        "kind": kind,
        "settings": dataclasses.asdict(module.settings),
        "metadata": metadata,
    }
    stem.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")


def _read_settings(
    folder: Path, stem: str, entries: Mapping[str, Entry[Any, Any]]
) -> tuple[Any, dict[str, str]]:
    """(settings, metadata) from `stem`.json."""
    path = folder / f"{stem}.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no {stem}.json; give the folder of an export")
    description = json.loads(path.read_text())
    kind = description["kind"]
    if kind not in entries:
        raise ValueError(f"{path}: kind {kind} is none of {', '.join(entries)}")
    try:
        settings = _settings(entries[kind].settings, description["settings"])
    except (TypeError, KeyError) as problem:
        raise ValueError(f"{path} does not describe a {kind}: {problem}") from problem
    return settings, description["metadata"]


def _settings(kind: Any, value: Any) -> Any:
    """`value` as JSON gives it → the type `kind`: nested dataclasses, told apart by `kind`."""
    if isinstance(kind, UnionType) and isinstance(value, dict):
        kind = next(choice for choice in get_args(kind) if choice.kind == value["kind"])
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return value
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(**{name: _settings(types[name], part) for name, part in value.items()})


def _fill(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a module that may still be on the meta device."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the folder of an export")
    found, wanted = load_file(path), module.state_dict()
    _check_sizes(module, found, path=path)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"{path} does not fit its settings: it lacks {_some(missing)} and has {_some(extra)}"
            " besides; use the settings it was saved with"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, the settings say"
                f" {tuple(tensor.shape)}; use the settings it was saved with"
            )
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    module.load_state_dict(found, assign=on_meta)


def _check_sizes(module: nn.Module, found: dict[str, Tensor], *, path: Path) -> None:
    """Name the setting that differs, where the model can tell it from the shapes."""
    if not isinstance(module, LatentLM):
        return
    for name, size in module.sizes_in({key: tuple(t.shape) for key, t in found.items()}).items():
        stated = getattr(module.settings, name)
        if size != stated:
            raise ValueError(
                f"{path}: checkpoint has {name} {size}, settings say {stated};"
                " use the settings it was saved with"
            )


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _CallableModule(ModuleType):
    """Lets `latentlm.load` be both this module and the function, whichever is imported first."""

    def __call__(self, folder: Path | str) -> Loaded:
        return load(folder)


sys.modules[__name__].__class__ = _CallableModule
