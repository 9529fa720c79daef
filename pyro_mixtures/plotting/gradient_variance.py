"""The variance of gradients, by estimator and parameter."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pyro_mixtures.diagnostics import GradientVariance


def plot_gradient_variance(
    results: Mapping[str, Mapping[str, GradientVariance]], *, ax: Axes | None = None
) -> Axes:
    """The variance of gradients, on a logarithmic axis: a colour for each estimator.

    A point is the mean variance of a parameter's entries, its bar the mean of their standard
    errors: that of the point, if the entries go together, and more than that if they do not. A
    variance of zero has no place on the axis.

    Args:
        results: from the names of estimators to what
            :func:`~pyro_mixtures.diagnostics.gradient_variance` or
            :func:`~pyro_mixtures.diagnostics.elbo_gradient_variance` returned for them. They need
            not have all parameters in common.
        ax: where to draw; by default the current axes.

    Returns:
        The axes.

    Raises:
        ValueError: for no results, or others than these.

    Example:
        >>> import torch
        >>> from pyro_mixtures import MixtureOfDiagNormals
        >>> from pyro_mixtures.diagnostics import gradient_variance
        >>> values = {"locs": torch.tensor([[-1.0], [1.0]]), "coord_scale": torch.ones(2, 1)}
        >>> values["component_logits"] = torch.zeros(2)
        >>> results = {
        ...     name: gradient_variance(
        ...         MixtureOfDiagNormals, lambda z: z.cos().sum(-1), values, estimator=name
        ...     )
        ...     for name in ("pathwise", "score")
        ... }
        >>> _, ax = plt.subplots()
        >>> ax = plot_gradient_variance(results, ax=ax)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['locs', 'coord_scale', 'component_logits']
    """
    _check(results)
    parameters = list(dict.fromkeys(name for found in results.values() for name in found))
    if not parameters:
        raise ValueError("Expected results of at least one parameter, but got none")
    ax = plt.gca() if ax is None else ax
    for index, (estimator, found) in enumerate(results.items()):
        offset = 0.6 * ((index + 0.5) / len(results) - 0.5)
        names = [name for name in found if found[name].variance.any()]
        ax.errorbar(
            [float(found[name].variance.mean()) for name in names],
            [parameters.index(name) + offset for name in names],
            xerr=[float(found[name].variance_error.mean()) for name in names],
            fmt="o",
            ms=5,
            capsize=3,
            label=estimator,
        )
    for border in range(1, len(parameters)):
        ax.axhline(border - 0.5, color="0.85", lw=0.8)
    ax.set_xscale("log", nonpositive="clip")
    ax.tick_params(axis="x", which="minor", labelsize="x-small")  # labelled in short ranges
    ax.set_yticks(range(len(parameters)), parameters)
    ax.set(ylim=(len(parameters) - 0.5, -0.5), xlabel="variance of the gradient")
    ax.legend()
    return ax


def _check(results: Mapping[str, Mapping[str, GradientVariance]]) -> None:
    """Raise a ``ValueError`` for what holds no gradient variances by estimator and parameter."""
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            "Expected results to map names of estimators to dicts of GradientVariance, but got"
            f" {results!r}"
        )
    for estimator, found in results.items():
        if not isinstance(found, Mapping):
            raise ValueError(
                f"Expected results[{estimator!r}] to map names of parameters to GradientVariance,"
                f" but got {type(found).__name__}; of one estimator, give it a name: {{name: ...}}"
            )
        for name, value in found.items():
            if not isinstance(value, GradientVariance):
                raise ValueError(
                    f"Expected results[{estimator!r}][{name!r}] to be a GradientVariance, but got"
                    f" {type(value).__name__}"
                )
