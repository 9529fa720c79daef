"""What networks that make mixtures refuse."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import GaussianScaleMixture, MixtureOfDiagNormals
from pyro_mixtures.nn import ConditionalMixture, ConditionalMixtureSameFamily

LOW, ONES = torch.tensor([0.5, 2.0, 3.0]), torch.ones(3)
LOCS = torch.tensor([-1.0, 0.0, 2.0])
VECTORS = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 1, 1), {}, "context_features to be an integer >= 1, but got 0"),
        ((1, 1.0, 1), {}, "event_size to be an integer >= 1, but got 1.0"),
        ((1, 1, True), {}, "num_components to be an integer >= 1, but got True"),
        ((1, 1, 1), {"hidden": (4, 0)}, r"hidden\[1\] to be an integer >= 1, but got 0"),
        ((1, 1, 1), {"hidden": 4}, "hidden to be a sequence of sizes, but got 4"),
        ((1, 1, 1), {"family": "low_rank"}, "family to be one of diagonal, .*'low_rank'"),
        ((1, 1, 1), {"init_spread": 0}, "finite init_spread > 0, but got 0"),
        ((1, 1, 1), {"scale_floor": math.inf}, "finite scale_floor > 0, but got inf"),
        ((1, 1, 1), {"transport": "magic"}, "transport to be one of .*'magic'"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalMixture(*arguments, **options)


def test_bad_contexts():
    module = ConditionalMixture(3, 2, 4)
    with pytest.raises(ValueError, match=r"context of shape \(\*B, 3\), but got \(5, 2\)"):
        module(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="context of a floating point dtype, but got torch.int64"):
        module(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="context to be a tensor, but got list"):
        module([0.0, 0.0, 0.0])


@pytest.mark.parametrize("shape", [(20, 3), (20,), (20, 2, 1)])
def test_samples_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"samples of shape \(N, 2\), but got \(20,"):
        ConditionalMixture(3, 2, 4).init_from(torch.randn(shape))


def test_bad_starts():
    module = ConditionalMixture(3, 2, 4, family="scale")
    good = {
        "coord_scale": torch.ones(2),
        "component_scale": torch.ones(4),
        "component_logits": torch.zeros(4),
    }
    locs = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="GaussianScaleMixture without batch shape, but got Mixt"):
        module.start_at(MixtureOfDiagNormals(locs, torch.ones(4, 2), torch.zeros(4)))
    with pytest.raises(ValueError, match="without batch shape"):
        module.start_at(GaussianScaleMixture(**good, locs=locs.expand(5, 4, 2)))
    with pytest.raises(ValueError, match="parameters coord_scale, component_scale, locs, but got"):
        module.start_at(GaussianScaleMixture(**good))
    with pytest.raises(ValueError, match=r"K, D = \(3, 2\), but got \(4, 2\)"):
        ConditionalMixture(3, 2, 3, family="centered_scale").start_at(GaussianScaleMixture(**good))
    good["component_logits"] = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
    with pytest.raises(ValueError, match="positive weights, but its component_logits"):
        module.start_at(GaussianScaleMixture(**good, locs=locs))


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        (dist.Gamma, {}, r"batch shape \(K,\), but got <class"),
        (dist.Gamma(1.0, 1.0), {}, r"batch shape \(K,\), but got .* of batch shape \(\)"),
        (dist.Gamma(torch.ones(2, 3), 1.0), {}, r"but got .* of batch shape \(2, 3\)"),
        (dist.Uniform(0 * ONES, ONES), {}, "Expected low of Uniform in fixed"),
        (dist.MultivariateNormal(VECTORS, torch.eye(2)), {}, "covariance_matrix .*by scale_tril"),
        (dist.TransformedDistribution(dist.Normal(LOCS, 1.0), []), {}, "tensors with names, but"),
        (dist.Gamma(LOW, ONES).mask(False), {}, "tensors with names, but got Masked"),
        (dist.Gamma(LOW, ONES), {"fixed": ("scale",)}, "of Gamma, concentration, rate, but got s"),
        (dist.Gamma(LOW, ONES), {"floor": 0.5}, "floor between 0 and 1/2, but got 0.5"),
        (dist.Gamma(LOW, ONES), {"hidden": (0,)}, r"hidden\[0\] to be an integer >= 1"),
        (
            dist.Gamma(LOW, ONES),
            {"fixed": "rate"},
            "collection of names, but got 'rate'",
        ),
        (dist.Gamma(LOW, ONES), {"fixed": 1}, "fixed to be a collection of names, but got 1"),
        (dist.Gamma(LOW[:0], ONES[:0]), {}, r"but got .* of batch shape \(0,\)"),
        (dist.RelaxedOneHotCategorical(ONES[0], logits=VECTORS), {}, "but temperature of Relaxed"),
        (dist.Gamma(LOW, ONES), {"transport": "displacement"}, "transport to be one of"),
    ],
)
def test_bad_components(components, options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalMixtureSameFamily(2, components, **options)


def test_families_without_rules():
    with pytest.raises(NotImplementedError, match="Bernoulli is discrete"):
        ConditionalMixtureSameFamily(2, dist.Bernoulli(logits=LOCS))
    module = ConditionalMixtureSameFamily(2, dist.Gamma(LOW, ONES))
    with pytest.raises(ValueError, match=r"context of shape \(\*B, 2\)"):
        module(torch.zeros(5, 3))
