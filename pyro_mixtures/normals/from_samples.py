"""Maximum likelihood fits of mixtures of Normals to samples, by expectation maximization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parameters = dict[str, Any]  # tensors, but mypy cannot know which a family asks for

STARTS = 5
"""Of each kind; the likeliest end wins."""

MAX_STEPS = 1000
TOLERANCE = 1e-5
"""Of the mean log likelihood: expectation maximization ends when a step gains less."""

ROUGH_TOLERANCE = 1e-4
"""The same, to tell which start is the best."""

VARIANCE_FLOOR = 1e-6
"""Of the components, relative to the samples', against components that collapse on one sample."""

SWEEPS = 10
"""Of the scales in one step."""

SKLEARN_OPTIONS = {
    ("coord_scale", "KD"): {"covariance_type": "diag", "init_params": "k-means++"},
    ("scale_tril", "KDD"): {"covariance_type": "full", "init_params": "k-means++"},
    ("scale_tril", "DD"): {"covariance_type": "tied", "init_params": "kmeans"},
}
"""Families that scikit-learn can fit. Its k-means++ leaves all samples but K out of the first
covariance: components of their own start small, but one that is shared would start far too large.
"""


def fit(
    family: Any,
    samples: Tensor,
    num_components: int,
    seed: int | None,
    centered: bool,
    options: dict[str, Any],
) -> Any:
    """:meth:`~pyro_mixtures.distributions.ParametricMixture.from_samples`, for a family.

    The samples are standardized before, and the fit is scaled back.
    """
    _check_samples(samples, num_components)
    if centered and "component_scale" not in family.component_parameters:
        raise ValueError(f"Expected centered=False, for {family.__name__} always has locs")
    x = samples.detach().cpu().double()
    offset = None if centered else x.mean(0)
    x = x if offset is None else x - offset
    scale = x.square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    scales = tuple(item for item in family.component_parameters.items() if item[0] != "locs")
    if len(scales) == 1 and scales[0] in SKLEARN_OPTIONS:
        name, settings = scales[0][0], SKLEARN_OPTIONS[scales[0]]
        parameters = _fit_by_sklearn(x / scale, num_components, seed, name, settings)
    else:
        parameters = _fit_common_shape(family, x / scale, num_components, seed, centered)
    fitted = family(**parameters).affine(scale, offset)
    values = {name: getattr(fitted, name) for name in parameters}
    return family(**{name: value.to(samples) for name, value in values.items()}, **options)


def _check_samples(samples: Tensor, num_components: int) -> None:
    if not isinstance(samples, Tensor) or samples.dim() != 2 or samples.shape[1] < 1:
        given = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"Expected samples of shape (N, D) with D >= 1, but got {given}")
    if not samples.is_floating_point() or not bool(samples.isfinite().all()):
        raise ValueError(f"Expected samples of finite floating point numbers, but got {samples}")
    if not 1 <= num_components <= len(samples):
        raise ValueError(
            f"Expected num_components between 1 and the number of samples, {len(samples)}, but got"
            f" {num_components}"
        )


def _sklearn() -> tuple[Any, Any]:
    """``GaussianMixture`` and ``kmeans_plusplus``."""
    try:
        from sklearn.cluster import kmeans_plusplus
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise ImportError(
            "from_samples needs scikit-learn; install it with: pip install 'pyro-mixtures[fit]'"
        ) from None
    return GaussianMixture, kmeans_plusplus


def _fit_by_sklearn(
    x: Tensor, num_components: int, seed: int | None, name: str, settings: dict[str, str]
) -> Parameters:
    """Parameters of a family whose scales have one of the types that scikit-learn knows."""
    found = _sklearn()[0](
        num_components,
        **settings,
        tol=TOLERANCE,
        max_iter=MAX_STEPS,
        reg_covar=VARIANCE_FLOOR,
        n_init=STARTS,
        random_state=seed,
    ).fit(x.numpy())
    weights, locs, covariance = map(
        torch.from_numpy, (found.weights_, found.means_, found.covariances_)
    )
    scale = covariance.sqrt() if name == "coord_scale" else torch.linalg.cholesky(covariance)
    return {"locs": locs, name: scale, "component_logits": weights.log()}


def _fit_common_shape(
    family: Any,
    x: Tensor,
    num_components: int,
    seed: int | None,
    centered: bool,
) -> Parameters:
    """Parameters of a family whose components share the ``coord_scale``."""
    radius = x.square().mean(-1, keepdim=True).sqrt().clamp_min(VARIANCE_FLOOR).log()
    points = [] if centered else [x]
    if "component_scale" in family.component_parameters:
        points.append(radius)
    best = -torch.inf
    for responsibilities in _starts(points, num_components, seed):
        steps = expectation_maximization(family, x, responsibilities, centered)
        _, log_likelihood = _run(steps, ROUGH_TOLERANCE)
        if log_likelihood > best:
            best, best_steps = log_likelihood, steps
    likeliest, _ = _run(best_steps, TOLERANCE)
    if "component_scale" in likeliest:
        unit = likeliest["component_scale"].log().mean().exp()
        likeliest["component_scale"] = likeliest["component_scale"] / unit
        likeliest["coord_scale"] = likeliest["coord_scale"] * unit
    return likeliest


def _run(steps: Iterator[tuple[Parameters, float]], tolerance: float) -> tuple[Parameters, float]:
    """Go on until a step gains no more than the tolerance."""
    last, gain = -torch.inf, torch.inf
    while gain > tolerance:
        parameters, log_likelihood = next(steps)
        gain, last = log_likelihood - last, log_likelihood
    return parameters, last


def _starts(points: list[Tensor], num_components: int, seed: int | None) -> Iterator[Tensor]:
    """Responsibilities of 0 and 1, ``(N, K)``, by the nearest of centers that k-means++ draws."""
    random_state = np.random.RandomState(seed)
    for x in points:
        for _ in range(STARTS):
            centers, _ = _sklearn()[1](x.numpy(), num_components, random_state=random_state)
            nearest = torch.cdist(x, torch.from_numpy(centers)).argmin(-1)
            yield torch.nn.functional.one_hot(nearest, num_components).to(x)


def expectation_maximization(
    family: Any, x: Tensor, responsibilities: Tensor, centered: bool
) -> Iterator[tuple[Parameters, float]]:
    """Steps of expectation maximization for a family whose components share the ``coord_scale``.

    Args:
        family: with or without ``component_scale``.
        x: standardized samples, ``(N, D)``.
        responsibilities: to start from, ``(N, K)``.
        centered: whether all means are zero.

    Yields:
        After each step the family's parameters and their mean log likelihood, which never falls.
    """
    sized = "component_scale" in family.component_parameters
    coord_scale = torch.ones_like(x[0])
    while True:
        parameters = _maximize(x, responsibilities, coord_scale, sized, centered)
        coord_scale = parameters["coord_scale"]
        mixture = family(**parameters)
        joint = mixture.log_weights + mixture.component_log_prob(x)  # (N, K)
        log_prob = joint.logsumexp(-1, keepdim=True)
        yield parameters, float(log_prob.mean())
        responsibilities = (joint - log_prob).exp()


def _maximize(
    x: Tensor, responsibilities: Tensor, coord_scale: Tensor, sized: bool, centered: bool
) -> Parameters:
    r"""Parameters that the responsibilities make likelier than any with this ``coord_scale``.

    Whatever the scales are, weights and means are those of the responsibilities. With the counts
    :math:`N_k = \sum_n r_{nk}` and squares :math:`S_{ki} = \sum_n r_{nk} (x_{ni} - \mu_{ki})^2`
    the rest of the expected log likelihood is

    .. math::
        -\tfrac12 \sum_{ki} \Big[ N_k \log \lambda_k^2 \sigma_i^2
        + \frac{S_{ki}}{\lambda_k^2 \sigma_i^2} \Big],

    concave in :math:`\log \lambda, \log \sigma`, and maximal in one of them for

    .. math::
        \lambda_k^2 = \frac{1}{D N_k} \sum_i \frac{S_{ki}}{\sigma_i^2}, \qquad
        \sigma_i^2 = \frac1N \sum_k \frac{S_{ki}}{\lambda_k^2},

    which are taken in turns; components that are not ``sized`` keep :math:`\lambda = 1`.

    Reference:
        Meng and Rubin, *Maximum likelihood estimation via the ECM algorithm: a general framework*,
        Biometrika 80(2), 1993.
    """
    count = responsibilities.sum(0) + 10 * torch.finfo(x.dtype).eps  # (K,)
    locs = (responsibilities.mT @ x) / count.unsqueeze(-1)  # (K, D)
    squares = responsibilities.mT @ x.square()
    if not centered:
        squares = (squares - count.unsqueeze(-1) * locs.square()).clamp_min(0)
    variance, size = coord_scale.square(), torch.ones_like(count)
    for _ in range(SWEEPS if sized else 1):
        if sized:
            size = ((squares / variance).mean(-1) / count).clamp_min(VARIANCE_FLOOR)
        variance = ((squares / size.unsqueeze(-1)).sum(0) / len(x)).clamp_min(VARIANCE_FLOOR)
    parameters = {"coord_scale": variance.sqrt(), "component_logits": count.log()}
    if sized:
        parameters["component_scale"] = size.sqrt()
    if not centered:
        parameters["locs"] = locs
    return parameters
