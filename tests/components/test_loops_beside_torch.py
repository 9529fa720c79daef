"""Compiled loops beside what torch offers: derivatives of derivatives, modes, devices."""

import pyro
import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals
from tests.components.test_compiled_normals import KIND, parameters


@pytest.mark.parametrize("depends", ["point", "logits"])
def test_derivatives_where_arguments_depend_on_each_other(depends):
    """What a graph is recorded for counts each way once."""
    locs, scales, logits = parameters(*KIND, (2,), 3, 2)
    z = torch.randn(4, 2, 2, dtype=torch.float64)
    if depends == "point":
        z = z + locs.mean(-2)
    else:
        logits = locs.sin().sum(-1)
    value = MixtureOfDiagNormals(locs, scales, logits).log_prob(z).square().sum()
    expected = torch.autograd.grad(value, [locs, scales], retain_graph=True)
    actual = torch.autograd.grad(value, [locs, scales], create_graph=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    with pyro.settings.context(compiled_mixtures=False):
        again = MixtureOfDiagNormals(locs, scales, logits).log_prob(z).square().sum()
        slopes = torch.autograd.grad(again, [locs, scales], create_graph=True)
    second, reference = (
        torch.autograd.grad(
            sum(x.square().sum() for x in first), [locs, scales], retain_graph=True
        )
        for first in (actual, slopes)
    )
    for a, b in zip(second, reference, strict=True):
        torch.testing.assert_close(a, b)
