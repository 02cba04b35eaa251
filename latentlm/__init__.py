"""LatentLM (arXiv 2412.08635) in pure PyTorch: shapes and mathematics, nothing of any cluster.

`latentlm.load(folder)` reads an exported model and its codec.

Tensor names end in their shape: B batch, T packed position, D model width, Z latent width,
N latents of an item, M timesteps of a latent, V vocabulary, H heads, K head width,
S audio sample or solver step, W word or layer width, P state or stream, J hashed element,
C·Y·X image channels, rows, columns.
"""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import `latentlm.load` at first use: settings must not bring torch with them."""
    if name == "load":
        return import_module("latentlm.load")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
