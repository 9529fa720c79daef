"""``component_samples``: shapes, laws and gradients of each component's samples."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.distributions import Mixture, MixtureSameFamily
from pyro_mixtures.estimators.strata import component_samples
from tests.pairwise import in_pairs
from tests.registry import FAMILIES, each_family


def numbers(batch_shape):
    """Of Normal, Gamma and unlike components, and Normal matrices: with other event shapes."""
    logits = torch.randn(*batch_shape, 3)
    weights = dist.Categorical(logits=logits)
    gamma = dist.Gamma(torch.rand(*batch_shape, 3) + 1, 2.0)
    matrices = dist.Normal(torch.randn(*batch_shape, 3, 2, 2), 1.0).to_event(2)
    return {
        "normal": MixtureSameFamily(weights, dist.Normal(torch.randn(*batch_shape, 3), 1.0)),
        "gamma": MixtureSameFamily(weights, gamma),
        "matrices": MixtureSameFamily(weights, matrices),
        "vectors": MixtureSameFamily(
            weights, dist.Gamma(torch.rand(*batch_shape, 3, 2) + 1, 2.0).to_event(1)
        ),
        "unlike": Mixture(
            weights,
            [dist.Gamma(2.0, 3.0), dist.LogNormal(0.0, 1.0)]
            + [dist.Gamma(torch.rand(batch_shape) + 1, 2.0)],
        ),
    }


@in_pairs
@pytest.mark.parametrize("name", ["normal", "gamma", "matrices", "vectors", "unlike", *FAMILIES])
@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 4)])
@pytest.mark.parametrize("sample_shape", [(), (5,), (5, 1)])
@pytest.mark.parametrize("expanded", [False, True])
def test_shapes(name, batch_shape, sample_shape, expanded):
    if name in FAMILIES:
        family = FAMILIES[name]
        mixture = family.build(family.parameters(batch_shape))
    else:
        mixture = numbers(batch_shape)[name]
    if expanded:
        mixture = mixture.expand((3, *batch_shape))
    z = component_samples(mixture, sample_shape)
    assert z.shape == (*sample_shape, 3, *mixture.batch_shape, *mixture.event_shape)
    assert z.unique().numel() == z.numel()  # no dimension repeats another


@each_family
@pytest.mark.parametrize("expanded", [False, True])
def test_samples_are_those_of_each_component(family, expanded):
    parameters = family.parameters((2,))
    components = family.components(parameters).expand((2, 3))
    mixture = family.build(parameters)
    count = 20_000
    if expanded:  # to more samples of the same components
        z = component_samples(mixture.expand((count, 2))).movedim(1, 0)
    else:
        z = component_samples(mixture, (count,))
    z = z.movedim(1, 2)  # (S, 2, K, D)
    error = z.mean(0) - components.mean
    # 12 entries: false alarm 12 * 7e-6
    assert (error.abs() / components.stddev * math.sqrt(count)).max() < 4.5
    ratio = z.var(0) / components.variance - 1
    assert ratio.abs().max() < 4.5 * math.sqrt(2 / count)
    centered = (z - z.mean(0)) / z.std(0)
    covariance = (centered[..., 0] * centered[..., 1]).mean(0)
    reference = components.sample((count,))
    reference = (reference - reference.mean(0)) / reference.std(0)
    expected = (reference[..., 0] * reference[..., 1]).mean(0)
    assert (covariance - expected).abs().max() < 4.5 * math.sqrt(2 / count)


@each_family
def test_gradients_are_those_of_the_components(family):
    """For the same random numbers: all that the components' own ``rsample`` has to move."""
    parameters = family.parameters((2,))
    mixture = family.build(parameters)
    torch.manual_seed(0)
    z = component_samples(mixture)  # (K, 2, D)
    assert torch.autograd.grad(
        z.sum(), parameters["component_logits"], allow_unused=True, retain_graph=True
    ) == (None,)
    components = family.components(parameters)
    torch.manual_seed(0)
    noise = torch.randn(2, 1, 2, dtype=torch.float64)
    if family.has_full_factors:
        expected = components.loc + (components.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    else:
        expected = components.mean + components.stddev * noise
    expected = expected.movedim(1, 0)
    assert torch.allclose(z, expected)
    names = [name for name in parameters if name not in ("component_logits", "control_var")]
    weights = torch.randn_like(z)
    found, other = (
        torch.autograd.grad((value * weights).sum(), [parameters[name] for name in names])
        for value in (z, expected)
    )
    for name, first, second in zip(names, found, other, strict=True):
        assert torch.allclose(first, second), name


def test_normal_components_share_their_noise():
    family = FAMILIES["diag_normals"]
    parameters = family.parameters((4,))
    z = component_samples(family.build(parameters), (5,)).movedim(1, 2)  # (5, 4, K, D)
    noise = (z - parameters["locs"]) / parameters["coord_scale"]
    assert torch.allclose(noise, noise[..., :1, :].expand_as(noise))
