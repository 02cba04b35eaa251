"""Settings of LatentLM: one causal Transformer with a diffusion head (§2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from latentlm.settings.diffusion import DiffusionSettings
from latentlm.settings.rules import STRICT, Problem, divides, positive


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
    """Class-conditional LatentLM: [class, z₁ … z_{N-1}] predicts z₁ … z_N.

    `latent_width`, `latent_count` and `classes` come from the codec and corpus sections.
    """

    __pydantic_config__ = STRICT
    kind: Literal["latent_lm"] = "latent_lm"
    classes: int
    latent_count: int
    latent_width: int
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    head: HeadSettings
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "width", "depth", "heads", "kv_heads", "ffn_width")
        yield from divides("heads", self.heads, "model.width", self.width)
        if self.kv_heads is not None:
            yield from divides("kv_heads", self.kv_heads, "model.heads", self.heads)
        if self.heads > 0 and self.width % self.heads == 0 and (self.width // self.heads) % 2:
            yield (
                "heads",
                f"width / heads = {self.width // self.heads} is odd; rotary needs it even",
            )
        for part in ("head", "diffusion"):
            for path, sentence in getattr(self, part).problems():
                yield f"{part}.{path}", sentence
