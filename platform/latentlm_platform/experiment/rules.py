"""Rules between the fields of an experiment: the second pass over what each field allows.

A rule is `(dotted path, sentence)`; where a sentence starts with a number, it is the field's value.
"""

import math
from collections.abc import Iterator

from latentlm.settings import SpeechCodecSettings
from latentlm.settings.rules import Problem
from latentlm_platform.experiment.corpora import Corpus, CorpusKind, MultimodalMixture
from latentlm_platform.experiment.fields import Section
from latentlm_platform.experiment.models import CodeModel
from latentlm_platform.experiment.sections import (
    CodecKind,
    CodecTraining,
    Experiment,
    ImageCodec,
    ModelKind,
    Train,
    VectorQuantizedCodec,
    codec_settings,
    model_settings,
)

CODECS_OF = {
    "class_images": ("image_vit", "vector_quantized"),
    "multimodal_mixture": ("image_vit", "vector_quantized"),
    "transcribed_speech": ("speech_conv",),
}
MARKS = 2  # BOD and EOD around the latents of an image


def rules(experiment: Experiment) -> Iterator[Problem]:
    """Every rule between fields that is broken."""
    yield from _section_rules(experiment, "")
    yield from _settings_rules(experiment.corpus, experiment.codec, experiment.model)
    for path, sentence in experiment.sample.problems():
        yield f"sample.{path}", sentence
    if not isinstance(experiment.model, CodeModel):
        for path, sentence in experiment.sample.problems_with(experiment.model.diffusion):
            yield f"sample.{path}", sentence
    schedule = experiment.sample.guidance_schedule
    if experiment.model.kind == "dit" and schedule != "constant":
        yield (
            "sample.guidance_schedule",
            f"{schedule} follows latents one after another; a dit draws all at once:"
            " choose constant",
        )
    law = getattr(experiment.codec, "variance", None)
    if experiment.latents.variance and (law is None or law.kind == "diagonal_gaussian"):
        kind = experiment.codec.kind if law is None else law.kind
        yield (
            "latents.variance",
            f"another law needs a codec whose noise is not its own to predict, and this one is"
            f" {kind}: remove latents.variance, or choose codec.variance.kind fixed or half_normal",
        )
    yield from _lane_rules(experiment)
    scales = {"sample.cfg_scale": experiment.sample.cfg_scale}
    scales |= {f"evaluate.cfg_scales.{i}": s for i, s in enumerate(experiment.evaluate.cfg_scales)}
    if experiment.train.label_dropout == 0:
        for path, scale in scales.items():
            if scale != 1:
                yield path, f"{scale} needs train.label_dropout above 0; guidance is never trained"


def _lane_rules(experiment: Experiment) -> Iterator[Problem]:
    """Every batch takes its rows from all lanes alike, and workers own whole lanes."""
    lanes = experiment.corpus.lanes
    sections: dict[str, CodecTraining | Train] = {
        "codec.training": experiment.codec.training,
        "train": experiment.train,
    }
    for name, section in sections.items():
        fits = lanes % section.workers == 0
        parts = section.workers * getattr(section, "accumulation", 1) if fits else 1
        if section.batch_size % lanes or section.batch_size % parts:
            both = math.lcm(lanes, parts)
            down, up = section.batch_size // both * both, -(-section.batch_size // both) * both
            divisors = f"corpus.lanes = {lanes}"
            if section.batch_size % parts:
                divisors += f" and workers × accumulation = {parts}"
            yield (
                f"{name}.batch_size",
                f"{section.batch_size} is not divisible by {divisors};"
                f" choose {f'{down} or {up}' if down else up}",
            )
        if not fits:
            fitting = [n for n in range(1, lanes + 1) if lanes % n == 0]
            near = sorted(fitting, key=lambda n: abs(n - section.workers))[:2]
            yield (
                f"{name}.workers",
                f"{section.workers} does not divide corpus.lanes = {lanes}; choose"
                f" {' or '.join(map(str, sorted(near)))}, or change corpus.lanes, which begins"
                " another order",
            )


def _section_rules(section: Section, prefix: str) -> Iterator[Problem]:
    for path, sentence in section.problems():
        yield prefix + path, sentence
    for name in type(section).model_fields:
        if isinstance(part := getattr(section, name), Section):
            yield from _section_rules(part, f"{prefix}{name}.")


def _settings_rules(corpus: CorpusKind, codec: CodecKind, model: ModelKind) -> Iterator[Problem]:
    """What the settings of codec and model say; nothing where their kinds do not go together."""
    strangers = list(_strangers(corpus, codec, model))
    if strangers:
        yield from strangers
        return
    for path, sentence in codec_settings(codec, corpus=corpus).problems():
        yield f"codec.{path}", sentence
    countable = codec_settings(_countable(codec), corpus=corpus)
    settings = model_settings(model, corpus=corpus, codec=countable)
    for path, sentence in settings.problems():
        yield f"model.{path}", sentence
    if isinstance(corpus, MultimodalMixture) and not isinstance(countable, SpeechCodecSettings):
        needed = countable.latent_count + MARKS
        if corpus.sequence_tokens < needed:
            yield (
                "corpus.sequence_tokens",
                f"{corpus.sequence_tokens} has no room for an image, which takes {needed}",
            )


def _strangers(corpus: CorpusKind, codec: CodecKind, model: ModelKind) -> Iterator[Problem]:
    fitting = CODECS_OF[corpus.kind]
    if codec.kind not in fitting:
        yield (
            "codec.kind",
            f"{codec.kind} does not fit corpus.kind {corpus.kind}; choose {' or '.join(fitting)}",
        )
    of_codes = isinstance(codec, VectorQuantizedCodec) and isinstance(corpus, Corpus)
    if codec.kind in fitting and (model.kind == "code_lm") != of_codes:
        choice = "code_lm" if of_codes else "latent_lm"
        yield (
            "model.kind",
            f"{model.kind} does not fit codec.kind {codec.kind} of corpus.kind {corpus.kind};"
            f" choose {choice}",
        )
    if model.kind == "dit" and not isinstance(corpus, Corpus):
        yield (
            "model.kind",
            f"dit has no words, which corpus.kind {corpus.kind} needs; choose latent_lm",
        )


def _countable(codec: CodecKind) -> CodecKind:
    """The codec with a patch size that latents can be counted by, whatever was given."""
    if isinstance(codec, ImageCodec):
        return codec.model_copy(update={"patch_size": max(1, codec.patch_size)})
    if isinstance(codec, VectorQuantizedCodec) and not codec.width_factors:
        return codec.model_copy(update={"width_factors": (1,)})
    return codec
