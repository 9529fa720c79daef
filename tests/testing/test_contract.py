"""What every distribution keeps, and that the checks find what does not."""

import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.testing import CHECKS, DistributionCase, check
from tests.every import KINDS

OF_A_DENSITY = (
    *("expand", "broadcasting", "bad_values"),
    *("events_and_masks", "plates", "copies", "score_parts"),
)
"""Checks that ask for it twice: that of Gumbel-softmax samples is another at each call."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in KINDS
        for name in CHECKS
        if kind != "gumbel_softmax" or name not in OF_A_DENSITY
    ],
)
def test_contract(kind, name):
    check(KINDS[kind], name)


def numbers(batch_shape):
    loc, scale = torch.randn(2, *batch_shape, 2).double()
    return {"loc": loc, "scale": scale.exp()}


class Sound(dist.TorchDistribution):
    """Independent Normal coordinates, of which each class below breaks one thing."""

    arg_constraints = {"loc": dist.constraints.real_vector, "scale": dist.constraints.positive}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc, scale, *, validate_args=None):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, loc, scale):
        return torch.broadcast_shapes(loc[:-1], scale[:-1]), loc[-1:]

    @property
    def normal(self):
        return dist.Normal(self.loc, self.scale).to_event(1)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def rsample(self, sample_shape=torch.Size()):
        return self.normal.rsample(sample_shape)

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return self.normal.log_prob(value)

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return self.scale.square()


class ExpandsToZeros(Sound):
    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        return type(self)(0 * self.loc.expand(shape), self.scale.expand(shape))


class RepeatsSamples(Sound):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample().expand(self._extended_shape(sample_shape))


class AddsBatchDimensions(Sound):
    def log_prob(self, value):
        return super().log_prob(value).unsqueeze(0)


class SwapsShapes(Sound):
    @classmethod
    def infer_shapes(cls, loc, scale):
        return loc[:-1], loc[-1:]


class IsNotNormalized(Sound):
    def log_prob(self, value):
        return super().log_prob(value) + self.scale.sum(-1)


class IsNarrower(Sound):
    def rsample(self, sample_shape=torch.Size()):
        return self.loc + 0.8 * (super().rsample(sample_shape) - self.loc)


class HasAnotherMean(Sound):
    @property
    def mean(self):
        return self.loc + 0.2


class TakesAnyValue(Sound):
    def log_prob(self, value):
        return self.normal.log_prob(value.nan_to_num()[..., :2])


class ForgetsTheScale(Sound):
    def rsample(self, sample_shape=torch.Size()):
        z = super().rsample(sample_shape)
        return z.detach() + self.loc - self.loc.detach()


class TwiceTheGradient(Sound):
    def rsample(self, sample_shape=torch.Size()):
        z = super().rsample(sample_shape)
        return 2 * z - z.detach()


class SamplesOtherwise(Sound):
    def sample(self, sample_shape=torch.Size()):
        with torch.no_grad():
            return -self.rsample(sample_shape)


class IsPositive(Sound):
    support = dist.constraints.independent(dist.constraints.positive, 1)


class IsDouble(Sound):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample(sample_shape).double()


class CountsTheEntropy(Sound):
    def score_parts(self, value, *args, **kwargs):
        parts = super().score_parts(value)
        return parts._replace(log_prob=parts.log_prob + 1)


class ForgetsItself(Sound):
    def __reduce__(self):
        return type(self), (self.loc + 1, self.scale)


BROKEN = {
    AddsBatchDimensions: "shapes",
    ExpandsToZeros: "expand",
    RepeatsSamples: "expanded_twice",
    SwapsShapes: "infer_shapes",
    IsNotNormalized: "samples_have_the_density",
    IsNarrower: "samples_have_the_moments",
    HasAnotherMean: "moments",
    TakesAnyValue: "bad_values",
    IsPositive: "support",
    SamplesOtherwise: "sample_is_rsample",
    TwiceTheGradient: "unbiased_gradients",
    ForgetsTheScale: "plates",
    IsDouble: "single_precision",
    CountsTheEntropy: "score_parts",
    ForgetsItself: "copies",
}


def case_of(build, **options):
    def reference(parameters):
        return dist.Normal(**parameters).to_event(1)

    return DistributionCase(numbers, lambda given: build(**given), reference, at=None, **options)


def test_a_distribution_of_ones_own():
    check(case_of(Sound))


@pytest.mark.parametrize(("broken", "name"), BROKEN.items())
def test_what_is_broken_is_found(broken, name):
    with pytest.raises((AssertionError, ValueError)):
        check(case_of(broken), name)


def test_densities_are_compared():
    """With those of the reference, and gradients by all that they depend on."""
    for broken in (IsNotNormalized, AddsBatchDimensions):
        with pytest.raises(AssertionError, match="^density: "):
            check(case_of(broken), "density")


class KeepsTheHistory(MixtureOfDiagNormals):
    def reparameterize(self, points):
        return points + self.locs.mean() - self.locs.mean().detach()


class SharesGradients(MixtureOfDiagNormals):
    def reparameterize(self, points):
        return points.detach() + self.locs.mean() - self.locs.mean().detach()


class HasSecondDerivatives(MixtureOfDiagNormals):
    def rsample(self, sample_shape=torch.Size()):
        return sum(x.mean() ** 3 for x in (self.locs, self.coord_scale, self.component_logits))


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (KeepsTheHistory, "points_are_kept"),
        (SharesGradients, "entries_stay_apart"),
        (HasSecondDerivatives, "no_second_derivatives"),
    ],
)
def test_gradients_at_points_are_compared(broken, name):
    case = DistributionCase(
        KINDS["diag_normals"].parameters,
        lambda given: broken(**given),
        cost=lambda z: z.reshape(-1),
    )
    with pytest.raises(AssertionError, match=f"^{name}: "):
        check(case, name)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"names among shapes, expand.*got \['shape'\]"):
        check(case_of(Sound), "shape")


def test_random_numbers_of_their_own():
    before = torch.get_rng_state()
    check(case_of(Sound), "samples_have_the_moments")
    assert torch.equal(torch.get_rng_state(), before)
