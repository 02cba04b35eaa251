"""The corpora an experiment can be about: images with classes, text with images, speech with text.

Every kind says where records come from, how a record becomes signals and words, and how records
are held out, read ahead and given up on.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Tag

from latentlm.settings.rules import Problem
from latentlm_platform.experiment.fields import Fraction, Positive, Rate, Section, by_kind


class Reading(Section):
    """How any corpus is read: in which pieces, in which order, by how many."""

    chunk_records: Positive = Field(512, description="Records read, cached, shuffled together.")
    shuffle_window_chunks: Positive = Field(16, description="Chunks mixed with each other.")
    lanes: Positive = Field(
        8, description="Orders that every batch takes its rows from alike; workers share them out."
    )
    readers: Positive = Field(1, description="Tasks that read ahead for each Train worker.")
    max_bad_fraction: Fraction = Field(0.1, description="More unreadable records end the run.")


TooLong = Annotated[
    Literal["refuse", "skip"],
    Field(description="What becomes of a record with a part longer than a row."),
]


class Corpus(Reading):
    """Raw images with a class each, and how a record becomes a signal."""

    kind: Literal["class_images"] = "class_images"
    source: str = Field(
        description="A name from `latentlm corpora list` (with /SPLIT), a folder, or a URI."
    )
    layout: Literal["auto", "folder", "parquet", "webdataset"] = "auto"
    records: Positive | None = Field(
        None, description="How many there are, if known; `latentlm plan` bounds the cache by it."
    )
    held_out_source: str | None = Field(
        None, description="Images never trained on; without it `held_out_fraction` is set aside."
    )
    held_out_fraction: Fraction = 0.05
    classes: Positive
    image_size: Positive = Field(description="Pixels a side after resizing and centre-cropping.")
    channels: Literal[1, 3] = 3
    flip: bool = Field(True, description="Mirror half of the images while training.")
    image_column: str = Field("image", description="Parquet column of image bytes.")
    label_column: str = Field("label", description="Parquet column or tar extension of the class.")
    max_pixels: Positive = Field(50_000_000, description="Larger images are refused as bombs.")

    def problems(self) -> Iterator[Problem]:
        yield from _held_out_problems(self.held_out_source, self.held_out_fraction)


class MixtureSource(Section):
    """One of the sources of a mixture, and its share of the positions a model is trained on."""

    source: str = Field(description="A name from `latentlm corpora list`, a folder, or a URI.")
    layout: Literal["auto", "jsonl", "parquet", "webdataset"] = "auto"
    proportion: Rate = Field(description="Share against the other sources; any scale.")
    held_out_source: str | None = Field(
        None, description="Never trained on; without it `corpus.held_out_fraction` is set aside."
    )


class MultimodalMixture(Reading):
    """Text, image-text pairs and interleaved pages (§3.2.1), packed into rows of one length."""

    kind: Literal["multimodal_mixture"]
    text: MixtureSource
    pairs: MixtureSource
    interleaved: MixtureSource
    sequence_tokens: Positive = Field(4096, description="Positions of a packed row.")
    text_tokenizer: str = Field(
        "cl100k_base.tiktoken", description="File of tiktoken ranks; model.vocabulary is its size."
    )
    image_size: Positive = Field(256, description="Pixels a side after resizing and cropping.")
    channels: Literal[1, 3] = 3
    text_column: str = Field("text", description="Parquet column or tar extension of the text.")
    image_column: str = Field("image", description="Parquet column of image bytes.")
    held_out_fraction: Fraction = 0.001
    too_long: TooLong = "refuse"
    max_pixels: Positive = Field(50_000_000, description="Larger images are refused as bombs.")

    def problems(self) -> Iterator[Problem]:
        for name in ("text", "pairs", "interleaved"):
            held_out = getattr(self, name).held_out_source
            for _, sentence in _held_out_problems(held_out, self.held_out_fraction):
                yield "held_out_fraction", sentence.replace("corpus.", f"corpus.{name}.")
                return


class TranscribedSpeech(Reading):
    """Recordings with their text (§3.3.2), and the prompt that speech is continued from."""

    kind: Literal["transcribed_speech"]
    source: str = Field(description="A name from `latentlm corpora list`, a folder, or a URI.")
    layout: Literal["auto", "folder", "parquet", "webdataset"] = "auto"
    held_out_source: str | None = Field(
        None, description="Speech never trained on; without it `held_out_fraction` is set aside."
    )
    held_out_fraction: Fraction = 0.01
    sample_rate_hz: Positive = Field(24_000, description="Recordings are resampled to this, mono.")
    min_seconds: Rate = Field(1.0, description="Shorter recordings are left out.")
    max_seconds: Rate = Field(30.0, description="Longer recordings are left out.")
    prompt_seconds: Rate = Field(3.0, description="Length of a prompt cut from the same recording.")
    prompt: Literal["prefix", "reference"] = Field(
        "prefix",
        description="Continue the recording's own beginning, or another one by the same speaker.",
    )
    sequence_tokens: Positive = Field(4096, description="Positions of a packed row.")
    text_tokenizer: str = Field(
        "cl100k_base.tiktoken", description="File of tiktoken ranks; model.vocabulary is its size."
    )
    audio_column: str = Field("audio", description="Parquet column of audio bytes.")
    text_column: str = Field("text", description="Parquet column or tar extension of the text.")
    speaker_column: str = Field("speaker", description="Parquet column of who speaks.")
    chunk_records: Positive = Field(128, description="Records read, cached, shuffled together.")
    too_long: TooLong = "refuse"

    def problems(self) -> Iterator[Problem]:
        yield from _held_out_problems(self.held_out_source, self.held_out_fraction)
        if self.min_seconds >= self.max_seconds:
            yield (
                "min_seconds",
                f"{self.min_seconds:g} is not below corpus.max_seconds = {self.max_seconds:g};"
                " no recording would be left",
            )
        if self.prompt_seconds >= self.max_seconds:
            yield (
                "prompt_seconds",
                f"{self.prompt_seconds:g} is not below corpus.max_seconds = {self.max_seconds:g};"
                " nothing would be left to say",
            )


CorpusKind = Corpus | MultimodalMixture | TranscribedSpeech
AnyCorpus = Annotated[
    Annotated[Corpus, Tag("class_images")]
    | Annotated[MultimodalMixture, Tag("multimodal_mixture")]
    | Annotated[TranscribedSpeech, Tag("transcribed_speech")],
    by_kind("corpus"),
]


def _held_out_problems(source: str | None, fraction: float) -> Iterator[Problem]:
    if source is None and fraction == 0:
        yield (
            "held_out_fraction",
            "0 leaves nothing to validate on; give a fraction such as 0.05"
            " or name corpus.held_out_source",
        )
