"""Fréchet distance between two sets of features (Heusel et al. 2017), with an interval.

In: feature matrices (N, F), real and generated, of one named net. Out: the distance of the
Gaussians fitted to them. Small N inflates it: report N, and the distance between two halves of the
real features as its floor.
"""

import torch
from torch import Generator, Tensor

from latentlm.metrics import NORMAL_95, Interval


def frechet_distance(real_NF: Tensor, generated_NF: Tensor) -> float:
    """‖μ₁ - μ₂‖² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½, unbiased covariances, in fp64.

    With Σ₁ = AᵀA and Σ₂ = BᵀB (A, B the centred rows over √(N - 1)) the last trace is the nuclear
    norm of A Bᵀ. So no matrix root is taken, singular covariances are exact, and the cost is an SVD
    of at most min(N, F) a side.
    """
    mean_F, rows_NF = _centred(real_NF)
    other_mean_F, other_rows_NF = _centred(generated_NF)
    if len(mean_F) != len(other_mean_F):
        raise ValueError(
            f"the features are {len(mean_F)} and {len(other_mean_F)} wide; compare features of one"
            " net only"
        )
    cross = torch.linalg.svdvals(_reduced(rows_NF) @ _reduced(other_rows_NF).T).sum()
    spread = rows_NF.square().sum() + other_rows_NF.square().sum() - 2 * cross
    return float((mean_F - other_mean_F).square().sum() + spread)


def frechet_interval(
    real_NF: Tensor, generated_NF: Tensor, *, seed: int, replicates: int = 10
) -> Interval:
    """The distance ± 1.96 bootstrap standard errors, rows of both sets resampled together.

    Only the spread of the replicates is used: their mean is too high, because a resample repeats
    rows and so has fewer distinct ones. Ten replicates know the standard error to about a quarter.
    """
    value = frechet_distance(real_NF, generated_NF)
    generator = Generator().manual_seed(seed)
    resampled = torch.tensor(
        [
            frechet_distance(_resample(real_NF, generator), _resample(generated_NF, generator))
            for _ in range(replicates)
        ]
    )
    margin = NORMAL_95 * float(resampled.std())
    return Interval(value, value - margin, value + margin)


def _centred(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and centred rows over √(N - 1), on the CPU in fp64."""
    if features_NF.ndim != 2 or len(features_NF) < 2:
        raise ValueError(
            f"features have shape {tuple(features_NF.shape)}; a covariance needs (N, F) with N ≥ 2"
        )
    exact_NF = features_NF.detach().cpu().double()
    if not exact_NF.isfinite().all():
        raise ValueError("the features hold NaN or infinity; check the images they were read from")
    mean_F = exact_NF.mean(0)
    return mean_F, (exact_NF - mean_F) / (len(exact_NF) - 1) ** 0.5


def _reduced(rows_NF: Tensor) -> Tensor:
    """At most F rows with the same RᵀR: the R of a QR decomposition where N > F."""
    if rows_NF.shape[0] <= rows_NF.shape[1]:
        return rows_NF
    return torch.linalg.qr(rows_NF, mode="r").R


def _resample(features_NF: Tensor, generator: Generator) -> Tensor:
    index_N = torch.randint(len(features_NF), (len(features_NF),), generator=generator)
    return features_NF[index_N.to(features_NF.device)]
