"""Rows of a sweep, and claims about them."""

import json
from typing import Any

from pydantic import TypeAdapter

from latentlm_platform.experiment.claims import AnyClaim
from latentlm_platform.sweeps.row_groups import Row
from latentlm_platform.sweeps.verdicts import Verdict, read_claim

SIGMA, CFG, SEED = "codec.variance.sigma", "sample.cfg_scale", "train.seed"
FID = "frechet_efficientnet_lite0"


def row(score: float | None, /, cost: float | None = None, **values: Any) -> Row:
    """A row; its values have short names here."""
    paths = {"sigma": SIGMA, "cfg": CFG, "seed": SEED, "kind": "codec.variance.kind"}
    named = {paths.get(name, name): value for name, value in values.items()}
    metrics = {FID: score, "seconds": cost}
    found = {name: number for name, number in metrics.items() if number is not None}
    return Row(json.dumps(named), named, found)


def curves(by_sigma: dict[float, list[float]], **values: Any) -> list[Row]:
    """σ → one FID for each seed."""
    return [
        row(score, sigma=sigma, seed=seed, **values)
        for sigma, scores in by_sigma.items()
        for seed, score in enumerate(scores)
    ]


def claim(kind: str, **fields: Any) -> AnyClaim:
    along = {"along": SIGMA} if kind in ("monotone", "insensitive") else {}
    data = {"kind": kind, "says": "it is so", "metric": FID, **along, **fields}
    checked: AnyClaim = TypeAdapter(AnyClaim).validate_json(json.dumps(data))
    return checked


def verdict(rows: list[Row], kind: str, *, replicate: str | None = SEED, **fields: Any) -> Verdict:
    return read_claim(claim(kind, **fields), rows, replicate=replicate)
