"""Guides whose parameters are fixed are saved as graphs of torch's own operations."""

import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.nn import PyroModule

from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureSameFamily,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.infer import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    AutoDiagonalNormalMixture,
    AutoOMTMultivariateNormal,
)
from tests.infer.mixture_guides import MIXTURES

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def model():
    pyro.sample("x", dist.Normal(torch.tensor([1.0, -1.0]), 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(0.0, 1.0))


def mixture(kind, weight_gradient):
    return lambda: kind(model, num_components=3, weight_gradient=weight_gradient)


GUIDES = {
    **{kind.__name__: mixture(kind, "clustered") for kind in MIXTURES},
    "pathwise": mixture(AutoDiagonalNormalMixture, "pathwise"),
    **{
        kind.__name__: lambda kind=kind: kind(model)
        for kind in (
            AutoAVFMultivariateNormal,
            AutoAVFMultivariateStudentT,
            AutoOMTMultivariateNormal,
        )
    },
}


def saved_and_loaded(module, method):
    """Without what this package, or Python, would have to be there for."""
    calls = {node.kind() for node in getattr(module, method).inlined_graph.nodes()}
    assert all(call.split("::")[0] in ("aten", "prim") for call in calls)
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def assert_same_law(draw, reference, count):
    """Of numbers that differ between calls; a false alarm is rarer than 1e-6."""
    mine, theirs = (
        torch.stack([torch.cat([x.flatten() for x in f()]) for _ in range(count)])
        for f in (draw, reference)
    )
    assert (mine[0] != mine[1]).all()
    for moment in (torch.Tensor.tanh, lambda x: x.tanh().square()):
        a, b = moment(mine), moment(theirs)
        error = ((a.var(0) + b.var(0)) / count).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5.5 * error).all()


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_guides(make):
    pyro.set_rng_seed(0)
    guide = make()
    guide()
    guide.eval()
    guide.requires_grad_(False)
    with pyro.validation_enabled(False):
        traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
        loaded = saved_and_loaded(traced, "call")
        assert_same_law(loaded.call, guide.call, 400)


class Handwritten(PyroModule):
    """Mixtures of any components, and a discrete choice."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.0, 1.0]))

    def forward(self):
        weights = dist.Categorical(logits=self.logits)
        z = pyro.sample("z", MixtureSameFamily(weights, dist.Gamma(torch.tensor([2.0, 9.0]), 1.0)))
        choice = pyro.sample("choice", RelaxedCategoricalStraightThrough(1.0, logits=self.logits))
        locs = torch.eye(2) + choice
        return (
            z,
            choice,
            pyro.sample("x", MixtureOfDiagNormals(locs, torch.ones(2, 2), self.logits)),
        )


def test_predictive():
    pyro.set_rng_seed(0)
    module = Handwritten().requires_grad_(False)
    with pyro.validation_enabled(False):
        predictive = Predictive(module, num_samples=5, return_sites=("z", "x"), parallel=False)
        traced = torch.jit.trace_module(
            predictive, {"forward": ()}, strict=False, check_trace=False
        )
        loaded = saved_and_loaded(traced, "forward")
        assert_same_law(
            lambda: [loaded()[name] for name in ("z", "x")],
            lambda: [predictive()[name] for name in ("z", "x")],
            100,
        )
