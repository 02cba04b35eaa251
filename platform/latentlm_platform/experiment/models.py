"""The models an experiment can train; what codec and corpus already say is not repeated here."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from latentlm.settings import (
    CodeLMSettings,
    DiffusionSettings,
    DiTSettings,
    HeadSettings,
    LatentLMSettings,
)
from latentlm_platform.experiment.fields import Section, by_kind


class Model(Section):
    """LatentLM: with the classes of a corpus of images, or with a vocabulary of words."""

    kind: Literal["latent_lm"] = "latent_lm"
    vocabulary: int | None = Field(
        None, description="Words of a model with text; 100288 for cl100k_base and our own."
    )
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    rotary: Literal["interleaved", "llama"] = "interleaved"
    norm: Literal["weightless", "learned"] = "weightless"
    norm_eps: float = 1e-6
    stop: Literal["count", "eod", "continue"] = Field(
        "count", description="Who ends a run of latents: their number, EOD, or EOD v. CONTINUE."
    )
    head: HeadSettings
    diffusion: DiffusionSettings = DiffusionSettings()
    initial_weights: str | None = Field(
        None, description="Folder of an exported model to start from; default: from scratch."
    )

    def settings(
        self, *, classes: int | None, latent_count: int | None, latent_width: int, codes: int = 0
    ) -> LatentLMSettings:
        """The model for latents of a codec; the `codes` of a quantizing one are words as well."""
        own = {"initial_weights", "head", "diffusion", "vocabulary"}
        return LatentLMSettings(
            **self.model_dump(exclude=own),
            head=self.head,
            diffusion=self.diffusion,
            classes=classes,
            vocabulary=None if self.vocabulary is None else self.vocabulary + codes,
            latent_count=latent_count,
            latent_width=latent_width,
        )


class DiTModel(Section):
    """The Diffusion Transformer of App. A and B."""

    kind: Literal["dit"]
    width: int
    depth: int
    heads: int
    ffn_width: int
    norm_eps: float = 1e-6
    diffusion: DiffusionSettings = DiffusionSettings()
    initial_weights: str | None = Field(
        None, description="Folder of an exported model to start from; default: from scratch."
    )

    def settings(self, *, classes: int, latent_count: int, latent_width: int) -> DiTSettings:
        """The model for latents of a codec and classes of a corpus."""
        return DiTSettings(
            **self.model_dump(exclude={"initial_weights", "diffusion"}),
            diffusion=self.diffusion,
            classes=classes,
            latent_count=latent_count,
            latent_width=latent_width,
        )


class CodeModel(Section):
    """A causal Transformer over the codes of a quantizing codec, with LatentLM's backbone.

    `sample.text` says how codes are drawn; solver and steps are of latents.
    """

    kind: Literal["code_lm"]
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    rotary: Literal["interleaved", "llama"] = "interleaved"
    norm: Literal["weightless", "learned"] = "weightless"
    norm_eps: float = 1e-6
    initial_weights: str | None = Field(
        None, description="Folder of an exported model to start from; default: from scratch."
    )

    def settings(self, *, classes: int, latent_count: int, codes: int) -> CodeLMSettings:
        """The model for the codes of a codec and the classes of a corpus."""
        return CodeLMSettings(
            **self.model_dump(exclude={"initial_weights"}),
            classes=classes,
            latent_count=latent_count,
            codes=codes,
        )


ModelKind = Model | DiTModel | CodeModel
AnyModel = Annotated[
    Annotated[Model, Tag("latent_lm")]
    | Annotated[DiTModel, Tag("dit")]
    | Annotated[CodeModel, Tag("code_lm")],
    by_kind("model"),
]
