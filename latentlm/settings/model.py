"""Settings of the models: LatentLM (§2), and the two it is compared with (Table 1)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from latentlm.settings.diffusion import DiffusionSettings
from latentlm.settings.rules import STRICT, Problem, divides, positive

SPECIAL_WORDS = 5  # END, CONTINUE, EOD, BOD, PAD


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The diffusion head (§2.1): `depth` AdaLN-Zero residual blocks as wide as the backbone."""

    __pydantic_config__ = STRICT
    depth: int = 3
    ffn_width: int

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "depth", "ffn_width")


@dataclass(frozen=True, kw_only=True)
class LatentLMSettings:
    """LatentLM: a causal Transformer with a diffusion head and, where it has text, a softmax head.

    A class-conditional model has `classes` and a fixed `latent_count`: [class, z₁ … z_{N-1}]
    predicts z₁ … z_N. A model with text has `vocabulary` words instead, and its latents stand
    between BOD and EOD. `stop` says who ends a run of latents: their fixed count; EOD as the
    likeliest word (the words at latents are trained only where EOD follows, so that runs tend to
    end early); or EOD against the word CONTINUE, which then is trained too (our addition).

    `norm` is without a scale in the official code and learned in Llama. `rotary`: interleaved
    pairs with both ends of the frequency range (official), or half-split pairs without the end
    (Llama). `latent_width`, `latent_count` and `classes` come from the codec and corpus sections.
    """

    __pydantic_config__ = STRICT
    kind: Literal["latent_lm"] = "latent_lm"
    classes: int | None = None
    vocabulary: int | None = None
    latent_count: int | None = None
    latent_width: int
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    rotary: Literal["interleaved", "llama"] = "interleaved"
    norm: Literal["weightless", "learned"] = "weightless"
    norm_eps: float = 1e-6
    stop: Literal["count", "eod", "continue"] = "count"
    head: HeadSettings
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "width", "depth", "heads", "kv_heads", "ffn_width")
        yield from positive(self, "classes", "vocabulary", "latent_count", "rope_base", "norm_eps")
        yield from transformer_problems(self.width, self.heads, self.kv_heads)
        if (self.classes is None) == (self.vocabulary is None):
            yield "vocabulary", "a model has either classes or a vocabulary; give exactly one"
        if self.vocabulary is not None and self.vocabulary <= SPECIAL_WORDS:
            yield (
                "vocabulary",
                f"{self.vocabulary} has no room beside the {SPECIAL_WORDS} words of our own",
            )
        if self.stop == "count" and self.latent_count is None:
            yield "stop", "count needs a fixed latent_count; choose eod or continue"
        if self.stop != "count" and self.vocabulary is None:
            yield "stop", f"{self.stop} needs a vocabulary; a class-conditional model uses count"
        for part in ("head", "diffusion"):
            for path, sentence in getattr(self, part).problems():
                yield f"{part}.{path}", sentence


@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """The Diffusion Transformer with RMSNorm and SwiGLU (App. A, B): all latents denoised at once.

    Its feed-forward is 8/3 of the width, so that AdaLN-Zero in every block leaves the model as
    large as a LatentLM. Positions are fixed sines and cosines of row and column.
    """

    __pydantic_config__ = STRICT
    kind: Literal["dit"] = "dit"
    classes: int
    latent_count: int
    latent_width: int
    width: int
    depth: int
    heads: int
    ffn_width: int
    norm_eps: float = 1e-6
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    @property
    def vocabulary(self) -> None:
        """It has classes and no words."""
        return None

    @property
    def stop(self) -> Literal["count"]:
        """Its images end with their fixed number of latents."""
        return "count"

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "classes", "width", "depth", "heads", "ffn_width", "norm_eps")
        yield from divides("heads", self.heads, "model.width", self.width)
        if self.width % 4:
            yield "width", f"{self.width} is not divisible by 4; row and column need a half each"
        side = round(max(self.latent_count, 0) ** 0.5)
        if side**2 != self.latent_count:
            yield "latent_count", f"{self.latent_count} latents are no square of rows and columns"
        for path, sentence in self.diffusion.problems():
            yield f"diffusion.{path}", sentence


@dataclass(frozen=True, kw_only=True)
class CodeLMSettings:
    """A causal Transformer over the codes of a quantizing codec, with LatentLM's backbone.

    [class, c₁ … c_{N-1}] predicts c₁ … c_N, each one of `codes`, through a softmax head. `codes`,
    `latent_count` and `classes` come from the codec and corpus sections.
    """

    __pydantic_config__ = STRICT
    kind: Literal["code_lm"] = "code_lm"
    classes: int
    codes: int
    latent_count: int
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    rotary: Literal["interleaved", "llama"] = "interleaved"
    norm: Literal["weightless", "learned"] = "weightless"
    norm_eps: float = 1e-6

    @property
    def latent_width(self) -> int:
        """A latent is one number, the id of its code."""
        return 1

    @property
    def vocabulary(self) -> None:
        """It has classes and no words."""
        return None

    @property
    def stop(self) -> Literal["count"]:
        """Its images end with their fixed number of codes."""
        return "count"

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "classes", "width", "depth", "heads", "kv_heads", "ffn_width")
        yield from positive(self, "rope_base", "norm_eps")
        yield from transformer_problems(self.width, self.heads, self.kv_heads)


def transformer_problems(width: int, heads: int, kv_heads: int | None) -> Iterator[Problem]:
    """What grouped-query attention with rotary positions asks of its sizes."""
    yield from divides("heads", heads, "model.width", width)
    if kv_heads is not None:
        yield from divides("kv_heads", kv_heads, "model.heads", heads)
    if heads > 0 and width % heads == 0 and (width // heads) % 2:
        yield "heads", f"width / heads = {width // heads} is odd; rotary needs it even"


ModelSettings = LatentLMSettings | DiTSettings | CodeLMSettings
