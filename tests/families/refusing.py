"""Mixtures in one line each, and the check of what is said when they are refused."""

import re

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, TransformedDistribution

from pyro_mixtures import Mixture, MixtureSameFamily

ONE, TWO, EYE = torch.ones(2), torch.tensor([1.0, 2.0]), torch.eye(3)
VECTORS = Independent(Laplace(torch.zeros(2, 3), 1.0), 1)


def weights(*shape):
    return Categorical(logits=torch.zeros(shape))


def same(components, *shape, **options):
    return MixtureSameFamily(weights(*(shape or (2,))), components, **options)


def mixed(*components, **options):
    return Mixture(weights(len(components)), components, **options)


def transformed(base, *transforms):
    return TransformedDistribution(base, list(transforms))


def refused(cases):
    parameters = [pytest.param(*case, id=name) for name, case in cases.items()]
    return pytest.mark.parametrize(("build", "words"), parameters)


def assert_refused(error, build, words):
    with pytest.raises(error) as caught:
        build()
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}", str(caught.value)), (word, caught.value)
