"""The mixture guides, and such as users write: what all tests of guides run for."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TransformModule, constraints
from pyro.distributions.transforms import AffineTransform, TanhTransform
from pyro.nn import PyroParam
from torch import nn

from pyro_mixtures.distributions import MixtureSameFamily
from pyro_mixtures.infer import (
    AutoAVFDiagonalNormalMixture,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMixture,
    AutoMixtureFlow,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
)


class AutoStudentTMixture(AutoMixture):
    """Of independent coordinates, as the docstring of the base has it."""

    def init_components(self, locs):
        scale = torch.full_like(locs, self.init_scale)
        df = torch.full_like(locs[:, :1], 10.0)
        return {
            "locs": locs,
            "coord_scale": PyroParam(scale, self.scale_constraint),
            "df": PyroParam(df, constraints.greater_than(1.0)),
        }

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        components = dist.StudentT(self.df, self.locs, self.coord_scale).to_event(1)
        return MixtureSameFamily(weights, components, **options)


class AutoMultivariateStudentTMixture(AutoMultivariateNormalMixture):
    """Of vectors, whose coordinates have no distribution functions here."""

    distribution = None

    def init_components(self, locs):
        df = PyroParam(torch.full_like(locs[:, 0], 10.0), constraints.greater_than(1.0))
        return {**super().init_components(locs), "df": df}

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        factor = self.coord_scale.unsqueeze(-1) * self.scale_tril
        components = dist.MultivariateStudentT(self.df, self.locs, factor)
        return MixtureSameFamily(weights, components, **options)


class AutoLaplaceMixture(AutoDiagonalNormalMixture):
    """With the parameters of another guide."""

    distribution = None

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        components = dist.Laplace(self.locs, self.coord_scale).to_event(1)
        return MixtureSameFamily(weights, components, **options)


class Bend(TransformModule):
    """sinh(tail (shift + asinh x)), which is smooth and has an inverse; at first the identity.

    Far out it moves points by much: its parameters are in hundredths.
    """

    domain = codomain = constraints.real
    bijective, sign = True, 1

    def __init__(self, size):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))
        self.log_tail = nn.Parameter(torch.zeros(size))

    def _call(self, x):
        return ((self.log_tail / 100).exp() * (self.shift / 100 + x.asinh())).sinh()

    def _inverse(self, y):
        return (y.asinh() / (self.log_tail / 100).exp() - self.shift / 100).sinh()

    def log_abs_det_jacobian(self, x, y):
        return self.log_tail / 100 + ((1 + y.square()) / (1 + x.square())).log() / 2


class AutoBentMixture(AutoMixtureFlow):
    """With a flow that is told, at first the identity."""

    def __init__(self, model, num_components, *args, **options):
        super().__init__(model, num_components, Bend, *args, **options)


class AutoSquashedMixture(AutoDiagonalNormalMixture):
    """In the box from -9 to 9, of components without known moments."""

    distribution = None

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        transforms = [TanhTransform(), AffineTransform(0.0, 9.0)]
        normals = dist.Normal(self.locs / 9, self.coord_scale / 9)
        components = dist.TransformedDistribution(normals, transforms).to_event(1)
        return MixtureSameFamily(weights, components, **options)


NORMALS = (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
    AutoGaussianScaleMixture,
    AutoAVFDiagonalNormalMixture,
)
OWN = (AutoStudentTMixture, AutoMultivariateStudentTMixture, AutoLaplaceMixture)
MIXTURES = (*NORMALS, *OWN, AutoBentMixture)
