"""The bias of the relaxed estimators by temperature, against exact gradients."""

from functools import partial

import pytest

from pyro_mixtures.diagnostics import gradient_variance
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.estimators import gumbel_hard, gumbel_soft
from tests.estimators.test_unbiased_monte_carlo import cost, expected_cost
from tests.registry import FAMILIES, gradients

FAMILY = FAMILIES["diag_normals"]
NOISE = 0.03  # relative standard error of a gradient of any parameter, at most


def biases(estimator, temperature):
    """Distance of the mean gradient from the exact one, relative to that, by parameter."""
    parameters = FAMILY.parameters(K=3, D=2, scales=(0.6, 1.2), seed=3)
    exact = gradients(expected_cost(FAMILY.reference(parameters)), parameters)
    found = gradient_variance(
        MixtureOfDiagNormals,
        cost,
        {name: value.detach() for name, value in parameters.items()},
        estimator=partial(estimator, temperature=temperature),
        num_draws=10_000,
        num_samples=8,
    )
    for name, entry in found.items():
        assert entry.mean_error.norm() < NOISE * exact[name].norm()
    return {
        name: float((entry.mean - exact[name]).norm() / exact[name].norm())
        for name, entry in found.items()
    }


def test_soft_samples_are_biased_in_everything_until_they_are_cold():
    hot, warm, cold = (biases(gumbel_soft, temperature) for temperature in (2.0, 0.5, 0.1))
    for name in hot:
        assert hot[name] > 0.4
        assert hot[name] > warm[name] + 3 * NOISE
        assert cold[name] < 0.1
    assert warm["locs"] > 0.2 > 0.1 > cold["locs"]


@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_hard_samples_are_biased_in_the_weights(temperature):
    """At any temperature: the slope at one component is not the difference of the costs."""
    found = biases(gumbel_hard, temperature)
    assert found["component_logits"] > (0.4 if temperature == 2.0 else 2 * NOISE)
    assert found["locs"] < NOISE
    assert found["coord_scale"] < 3 * NOISE
