"""Corners of every kind of mixture: empty batches, mixed and low precision, kept groups."""

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Categorical, Dirichlet, Distribution, Laplace
from torch.func import grad, vmap

from pyro_mixtures import MixtureSameFamily
from pyro_mixtures.distributions import MixtureDistribution, MixtureOfDiagNormals
from pyro_mixtures.numerics.linkage import complete_linkage
from pyro_mixtures.samples import groups
from pyro_mixtures.samples.groups import KeptGroups
from tests.every import KINDS
from tests.pairwise import in_pairs
from tests.registry import FAMILIES

MIXTURES = {
    name: kind
    for name, kind in KINDS.items()
    if isinstance(kind.build(kind.parameters(())), MixtureDistribution)
}
each_mixture = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in MIXTURES.items()]
)


def constant(kind, batch_shape, dtype=torch.float64):
    parameters = kind.parameters(batch_shape)
    return kind.build({name: value.detach().to(dtype) for name, value in parameters.items()})


@each_mixture
def test_an_empty_batch(kind):
    mixture = constant(kind, (2,))
    empty = mixture.expand((0, 2))
    assert empty.rsample((5,)).shape == (5, 0, 2, *mixture.event_shape)
    assert empty.log_prob(mixture.sample()).shape == (0, 2)


@pytest.mark.parametrize("batch_shape", [(0,), (0, 2)])
def test_parameters_of_an_empty_batch(batch_shape):
    locs = torch.zeros(*batch_shape, 3, requires_grad=True)
    weights = Categorical(logits=torch.zeros(*batch_shape, 3), validate_args=False)
    components = Laplace(locs, torch.ones(()), validate_args=False)
    q = MixtureSameFamily(weights, components, validate_args=False)
    z = q.rsample((5,))
    assert z.shape == (5, *batch_shape)
    z.sum().backward()
    assert locs.grad.shape == locs.shape


@each_mixture
def test_a_distribution_function_in_any_precision(kind):
    """Of the coordinates, where the components have one."""
    mixture = constant(kind, (), torch.float32)
    value = mixture.sample((4,)).double()
    rank = len(mixture.event_shape)
    column = value.reshape(4, -1) if rank else value.unsqueeze(-1)
    try:
        cdf = mixture.marginal_cdf(column)
    except NotImplementedError as error:
        assert "marginal_cdf" in str(error) or "distribution functions" in str(error)  # noqa: PT017
        return
    assert cdf.dtype == torch.float64
    torch.testing.assert_close(
        mixture.marginal_cdf(column.float()).double(), cdf, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_low_precision(dtype):
    """They sum to one as nearly as they can."""
    q = MixtureSameFamily(
        Categorical(logits=torch.zeros(2)), Dirichlet(torch.tensor([[1.0, 2, 3], [2, 2, 2]]))
    )
    value = torch.full((3,), 1 / 3)
    half = q.expand((2,)).log_prob(value.to(dtype))
    torch.testing.assert_close(half.float(), q.log_prob(value).expand(2), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((MIXTURES[name], torch.float16) for name in FAMILIES),
        *((kind, torch.float32) for kind in MIXTURES.values()),
    ],
)
def test_density_of_each_at_points_of_its_own(kind, dtype):
    exact = constant(kind, ())
    z = exact.components.sample(5)  # (S, K, D)
    expected = exact.components.log_prob_of_own(z)
    actual = constant(kind, (), dtype).components.log_prob_of_own(z.to(dtype)).double()
    tolerance = 1e-3 if dtype == torch.float32 else 0.5
    finite = actual.isfinite() & expected.isfinite()
    assert finite.double().mean() > 0.8
    near = (actual - expected).abs() <= tolerance * (1 + expected.abs())
    assert near[finite].double().mean() > 0.9
    each = exact.components.log_prob(z.flatten(0, 1), exact.log_weights).unflatten(0, z.shape[:2])
    torch.testing.assert_close(each.diagonal(dim1=1, dim2=2), expected, equal_nan=True)


@in_pairs
@pytest.mark.parametrize("way", ["eager", "grad", "vmap", "trace"])
@pytest.mark.parametrize("weight_gradient", ["clustered", "pathwise", "hybrid"])
@each_mixture
@pytest.mark.filterwarnings("ignore")  # of choices by values in torch's own code
def test_groups_are_found_once(monkeypatch, kind, weight_gradient, way):
    """For the samples and their score term: two findings may differ where values are hidden."""
    found = []

    def linkage(distance, cut):
        found.append(distance)
        return complete_linkage(distance, cut)

    monkeypatch.setattr(groups, "complete_linkage", linkage)
    for cls in (Distribution, TorchDistribution):  # which looks at values
        monkeypatch.setattr(cls, "_validate_args", False)
    points = constant(kind, ()).sample((4,))
    parameters = kind.parameters(())

    def loss(parameters):
        q = kind.build(parameters).with_weight_gradient(weight_gradient)
        z = q.reparameterize(points)
        value, score = z.cos().reshape(4, -1).sum(-1), q.score_parts(z).score_function
        return (value + value.detach() * score).sum()

    if way == "grad":
        grad(loss)(parameters)
    elif way == "vmap":
        vmap(grad(loss))({name: torch.stack([x, x]) for name, x in parameters.items()})
    elif way == "trace":
        traced = torch.jit.trace(loss, (parameters,), check_trace=False, strict=False)
        found.clear()  # of the trace
        torch.autograd.grad(traced(parameters), list(parameters.values()), allow_unused=True)
    else:
        torch.autograd.grad(loss(parameters), list(parameters.values()), allow_unused=True)
    assert len(found) <= (way != "trace")


def test_kept_groups_that_come_late():
    """They serve from then on, for an expanded mixture as well."""
    locs = torch.arange(200.0).unsqueeze(-1)
    q = MixtureOfDiagNormals(locs, torch.ones(200, 1), torch.zeros(200))
    before, kept = q.groups, KeptGroups()
    q.kept_groups = kept
    assert torch.equal(q.groups, before)
    assert q.groups is not before
    twin = MixtureOfDiagNormals(locs, torch.ones(200, 1), torch.zeros(200))
    twin.kept_groups = kept
    assert twin.groups is q.groups
    assert twin.expand((3,)).groups.shape == (3, 200)
    assert torch.equal(twin.expand((3,)).groups[1], before)
