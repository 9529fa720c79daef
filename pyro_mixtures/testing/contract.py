"""All checks, by their names, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_mixtures.testing import density_checks, pyro_checks, sample_checks, shape_checks
from pyro_mixtures.testing.distribution_case import DistributionCase

CHECKS: dict[str, Callable[[DistributionCase], None]] = {
    function.__name__: function
    for function in (
        shape_checks.shapes,
        shape_checks.expand,
        shape_checks.expanded_twice,
        shape_checks.broadcasting,
        shape_checks.infer_shapes,
        shape_checks.none_at_all,
        density_checks.density,
        density_checks.moments,
        density_checks.samples_have_the_moments,
        density_checks.samples_have_the_density,
        density_checks.support,
        density_checks.bad_values,
        sample_checks.sample_is_rsample,
        sample_checks.unbiased_gradients,
        sample_checks.points_are_kept,
        sample_checks.entries_stay_apart,
        sample_checks.single_precision,
        sample_checks.no_second_derivatives,
        pyro_checks.events_and_masks,
        pyro_checks.plates,
        pyro_checks.copies,
        pyro_checks.score_parts,
    )
}
"""Functions of a :class:`DistributionCase` that raise ``AssertionError``, by their names."""


def check(case: DistributionCase, *names: str) -> None:
    """Run checks of a distribution, with random numbers of their own.

    What a check needs and the case does not have, such as a reference, is left out.

    Args:
        case: the distribution and what is true of it.
        names: of the checks in :data:`CHECKS`; all of them if none is given.

    Raises:
        AssertionError: the name of the check and what does not hold.
        ValueError: for a name that no check has.
    """
    if unknown := [name for name in names if name not in CHECKS]:
        raise ValueError(f"check expects names among {', '.join(CHECKS)}, got {unknown}")
    for name in names or CHECKS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                CHECKS[name](case)
            except AssertionError as error:
                told = str(error) or (CHECKS[name].__doc__ or "").splitlines()[0]
                raise AssertionError(f"{name}: {told}") from error
