"""Grouping components where their distances are hard to compute."""

import pytest
import torch
from torch.func import grad, vmap

from pyro_mixtures.distributions import MixtureOfNormals, MixtureOfNormalsSharedCovariance
from tests.pairwise import in_pairs
from tests.registry import (
    each_family,
    gradients,
    leaves,
    relative_error,
    same_group,
    sample_at,
)


@pytest.mark.parametrize("transport", MixtureOfNormals.transports)
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_nearly_singular_covariances(transport, weight_gradient, dtype, width):
    """Whose products ``L L'`` are singular to rounding."""
    factor = torch.tensor([[1.0, 0.0], [1.0, width]], dtype=dtype)
    parameters = {
        "locs": torch.tensor([[0.0, 0.0], [0.3, 0.3]], dtype=dtype),
        "scale_tril": torch.stack([factor, factor]),
        "component_logits": torch.zeros(2, dtype=dtype),
    }
    parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    options = {"transport": transport, "weight_gradient": weight_gradient}
    mixture = MixtureOfNormals(**parameters, **options)
    z = mixture.rsample((5,))
    values = gradients(z.sum() + mixture.log_prob(z).sum(), parameters)
    assert all(value.isfinite().all() for value in values.values())


def test_many_components_far_from_their_center():
    """Differences of places, not of squares: pairs that coincide do so exactly."""
    locs = torch.cat([torch.full((15, 2), 1e4), torch.full((15, 2), -1e4)])
    mixture = MixtureOfNormalsSharedCovariance(
        locs, torch.eye(2), torch.zeros(30), weight_gradient="clustered"
    )
    side = torch.arange(30) < 15
    assert torch.equal(same_group(mixture), side.unsqueeze(-1) == side)


@in_pairs
@each_family
@pytest.mark.parametrize("uses_score", [False, True])
@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_vmap(family, weight_gradient, uses_score):
    """The groups, which depend on values, and whether the score is used are each mixture's own."""
    options = {"weight_gradient": weight_gradient, "validate_args": False}

    def surrogate(mixture, z):
        value = z.sum(-1).cos()
        score = mixture.score_parts(z).score_function
        return (value + uses_score * value.detach() * score if uses_score else value).sum()

    def total(parameters):
        mixture = family.build(parameters, **options)
        z = mixture.rsample((5,))
        return surrogate(mixture, z), z

    batched = family.parameters((3,), K=4, **family.groups)
    actual, samples = vmap(grad(total, has_aux=True), randomness="different")(batched)
    for b, points in enumerate(samples.detach()):
        parameters = leaves({name: value[b] for name, value in batched.items()})
        mixture = family.build(parameters, **options)
        expected = gradients(surrogate(mixture, sample_at(mixture, points)), parameters)
        assert relative_error({k: v[b] for k, v in actual.items()}, expected) < 1e-10
