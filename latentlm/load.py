"""Exports: a folder of weights (safetensors) beside the settings (JSON) that rebuild the modules.

An export holds model.safetensors, model.json, codec.safetensors, codec.json and, where the model
has text, vocabulary.tiktoken; a trained codec alone is a folder with the codec's two.
`latentlm.load(folder)` is this module, called.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentlm.catalogue import CODECS, MODELS, AnyModel, Entry, build_codec, build_model, kind_of
from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.codec.vector_quantized import VectorQuantizedCodec
from latentlm.decoder import Elements
from latentlm.generate import flush_right, generate, sample_latents
from latentlm.models import CodeLM, DiT, LatentLM
from latentlm.parts import Part, to_document, to_parts
from latentlm.randomness import RowNoise
from latentlm.sequence import Document, LatentSpan
from latentlm.settings import SamplerSettings, TextSamplerSettings
from latentlm.vocabulary import Vocabulary

SignalCodec = ImageViTCodec | SpeechConvCodec | VectorQuantizedCodec
VOCABULARY_FILE = "vocabulary.tiktoken"
CLASS_NAMES = "class_names"  # of the metadata: a JSON list of names, in the order of the labels


class Loaded(NamedTuple):
    """A model and its codec, both in evaluation mode on the CPU, its vocabulary where it has text,
    and what the export says."""

    model: AnyModel
    codec: SignalCodec
    vocabulary: Vocabulary | None
    metadata: dict[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by their number; empty where the export does not say them."""
        return tuple(json.loads(self.metadata.get(CLASS_NAMES, "[]")))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[Part]],
        *,
        seed: int = 0,
        ask_signal: bool = False,
        sampler: SamplerSettings | None = None,
        text: TextSamplerSettings | None = None,
        cfg_scales: Sequence[float] | None = None,
        capacity: int = 1024,
        on_step: Callable[[Elements], None] | None = None,
    ) -> list[list[Part]]:
        """What follows each prompt, as text, pictures or sounds (see `latentlm.parts`).

        ask_signal starts a signal at once. Row i is drawn with (seed, i), so it depends on no
        other row. capacity: words and latents at most. on_step streams words and latents as they
        are drawn. Raises ValueError for parts that the model does not know.
        """
        if self.vocabulary is None:
            capacity = self.model.settings.latent_count or capacity
        sampler = sampler or SamplerSettings()
        device = self.model.device
        noise = RowNoise(seed=seed, ids_B=torch.arange(len(prompts), device=device))
        documents = [
            to_document(prompt, self, noise=noise.rows(slice(row, row + 1)), ask_signal=ask_signal)
            for row, prompt in enumerate(prompts)
        ]
        if not isinstance(self.model, LatentLM):
            if on_step is not None:
                kind = self.model.settings.kind
                raise ValueError(f"a {kind} gives a picture's latents at once; leave out on_step")
            scales = [sampler.cfg_scale] * len(documents) if cfg_scales is None else cfg_scales
            found = _drawn_at_once(
                self.model, documents, sampler=sampler, text=text, noise=noise, scales=scales
            )
            return [to_parts(document, self) for document in found]
        found = generate(
            self.model,
            documents,
            sampler=sampler,
            noise=noise,
            capacity=capacity,
            text=text,
            cfg_scales=cfg_scales,
            on_step=on_step,
        )
        return [to_parts(document, self) for document in found]


def _drawn_at_once(
    model: DiT | CodeLM,
    prompts: Sequence[Document],
    *,
    sampler: SamplerSettings,
    text: TextSamplerSettings | None,
    noise: RowNoise,
    scales: Sequence[float],
) -> list[Document]:
    """Documents of latents alone, one for each prompt of a class label."""
    labels_B = flush_right(prompts, model=model, device=model.device).ids_BT[:, 0]
    latents_BNZ = sample_latents(
        model,
        labels_B,
        cfg_scales_B=torch.tensor(list(scales), dtype=torch.float32, device=model.device),
        sampler=sampler,
        noise=noise,
        text=text,
    )
    return [(LatentSpan(latents_NZ),) for latents_NZ in latents_BNZ.cpu().numpy()]


def save_export(
    folder: Path | str,
    *,
    model: AnyModel,
    codec: SignalCodec,
    metadata: dict[str, str],
    vocabulary: Vocabulary | None = None,
) -> None:
    """Write an export into a folder, made where missing; model.json comes last.

    metadata["class_names"], a JSON list of a name for each class, lets prompts name classes.
    """
    save_codec(folder, codec=codec)
    if vocabulary is not None:
        shutil.copyfile(vocabulary.path, Path(folder) / VOCABULARY_FILE)
    kind = kind_of(model.settings, MODELS)
    _save(Path(folder) / "model", model, kind=kind, metadata=metadata)


def save_codec(folder: Path | str, *, codec: SignalCodec) -> None:
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
    if isinstance(model, CodeLM) and codec.codebook_size != model.settings.codes:
        raise ValueError(
            f"{folder}: the codec has {codec.codebook_size} codes, the model"
            f" {model.settings.codes}; export a model with the codec it was trained on"
        )
    loaded = Loaded(model.eval(), codec, _vocabulary(model, Path(folder)), metadata)
    if model.settings.classes and len(loaded.class_names) not in (0, model.settings.classes):
        raise ValueError(
            f"{folder}: model.json names {len(loaded.class_names)} classes, the model knows"
            f" {model.settings.classes}; name each class, or none"
        )
    return loaded


def load_codec(folder: Path | str) -> Any:
    """Read the codec of an export or of a codec folder, in evaluation mode on the CPU."""
    settings, _ = _read_settings(Path(folder), "codec", CODECS)
    with torch.device("meta"):
        codec = build_codec(settings)
    _fill(codec, Path(folder) / "codec.safetensors")
    return codec.eval()


def load_weights(model: AnyModel, folder: Path | str) -> None:
    """Give a model the weights of an export. Raises ValueError where names or shapes differ."""
    _fill(model, Path(folder) / "model.safetensors")


def _vocabulary(model: AnyModel, folder: Path) -> Vocabulary | None:
    size = model.settings.vocabulary
    return None if size is None else Vocabulary(folder / VOCABULARY_FILE, size=size)


def _save(stem: Path, module: Any, *, kind: str, metadata: dict[str, str]) -> None:
    """Write `stem`.safetensors, then `stem`.json."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    partial = stem.with_name(f"{stem.name}.{os.getpid()}.partial")
    save_file(weights, partial)
    partial.rename(stem.with_suffix(".safetensors"))
    description = {
        "kind": kind,
        "settings": dataclasses.asdict(module.settings),
        "metadata": metadata,
    }
    partial.write_text(json.dumps(description, indent=2) + "\n")
    partial.rename(stem.with_suffix(".json"))


def _read_settings(
    folder: Path, stem: str, entries: Mapping[str, Entry[Any, Any]]
) -> tuple[Any, dict[str, str]]:
    """(settings, metadata) from `stem`.json."""
    path = folder / f"{stem}.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no {stem}.json; give the folder of an export")
    description = json.loads(path.read_text())
    kind = description.get("kind")
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
        known = {choice.kind: choice for choice in get_args(kind)}
        kind = known[value["kind"]]
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return tuple(value) if isinstance(value, list) else value
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
    if not isinstance(module, AnyModel):
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
