"""Weights in closed form, and components left out."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    MixtureSameFamily,
)
from pyro_mixtures.infer import (
    AutoAVFDiagonalNormalMixture,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMultivariateNormalMixture,
)
from pyro_mixtures.infer.guides.fewer_components import best_log_weights, merged, overlaps
from tests.infer.mixture_guides import MIXTURES, AutoLaplaceMixture

each_guide = pytest.mark.parametrize("guide_class", MIXTURES)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


WEIGHTS = torch.tensor([0.1, 0.6, 0.3])
CENTERS = torch.tensor([[-9.0, 0.0], [0.0, 9.0], [9.0, -9.0]])
TARGET = MixtureOfDiagNormals(CENTERS, torch.ones(3, 2), WEIGHTS.log())


def model():
    """Of three modes, in an unconstrained and a positive coordinate."""
    prior = dist.Normal(0.0, 10.0)
    x = pyro.sample("x", prior)
    y = pyro.sample("y", dist.LogNormal(0.0, 10.0))
    z = torch.stack([x, y.log()], -1)
    pyro.factor("f", TARGET.log_prob(z) - prior.log_prob(z).sum(-1))


# -------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [3.0, -30.0, 0.0], [-math.inf, 0.0, 0.0]])
def test_weights_of_components_at_their_modes(logits):
    """Exact ones, and also those of components whose weight had died."""
    q = MixtureOfDiagNormals(CENTERS, torch.ones(3, 2), torch.tensor(logits))
    guide = AutoDiagonalNormalMixture.from_mixture(model, q)
    guide.refit_weights(num_samples=20)
    torch.testing.assert_close(guide.get_posterior().log_weights.exp(), WEIGHTS, atol=1e-4, rtol=0)


def test_the_elbo_is_largest_there():
    """Of components that overlap and do not fit; by its gradient, with other draws."""
    locs, scale = CENTERS / 9 + 0.2, torch.full((3, 2), 0.7)
    q = MixtureOfDiagNormals(locs, scale, torch.tensor([2.0, 0.0, -2.0]))

    def near():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("f", torch.zeros(()))

    guide = AutoDiagonalNormalMixture.from_mixture(near, q)
    guide.refit_weights(num_samples=20_000)
    posterior = guide.get_posterior()
    assert (posterior.log_weights > -6).all()
    z = posterior.components.sample(40_000)
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    gain = (log_p - posterior.log_prob(z)).mean(0)  # (K,): equal where the gradient is zero
    assert (gain - gain.mean()).abs().max() < 0.03


def test_the_fixed_point_by_quadrature():
    """Against the largest ELBO on a grid of weights, with exact expectations."""
    points = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    components = dist.Normal(torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.8, 1.0]).double())
    log_q = components.log_prob(points.unsqueeze(-1))  # (S, K)
    log_p = dist.Normal(0.3, 1.2).log_prob(points)
    # draws of a component, by its quantiles
    z = components.icdf((torch.arange(2000).double().unsqueeze(-1) + 0.5) / 2000)  # (S, K)
    found = best_log_weights(
        dist.Normal(0.3, 1.2).log_prob(z), components.log_prob(z.unsqueeze(-1))
    ).exp()
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    step = points[1] - points[0]

    def elbo(weight):
        q = weight * log_q[:, 0].exp() + (1 - weight) * log_q[:, 1].exp()
        return (q * (log_p - q.log())).sum() * step

    best = grid[torch.stack([elbo(weight) for weight in grid]).argmax()]
    assert found[0].item() == pytest.approx(best.item(), abs=2e-3)
    assert found.sum().item() == pytest.approx(1)


@each_guide
def test_every_guide_has_them(guide_class):
    guide = guide_class(model, 4, init_scale=1.0)
    guide()
    before = guide.state_dict()
    with torch.no_grad():
        guide.component_logits[0] = 5.0
    guide.refit_weights(num_samples=10)
    log_weights = guide.get_posterior().log_weights
    assert log_weights.exp().sum().item() == pytest.approx(1, rel=1e-4)
    assert all(
        torch.equal(value, before[name])
        for name, value in guide.state_dict().items()
        if name != "component_logits"
    )
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()  # the same parameters


def test_models_that_run_once_for_each_point_give_the_same():
    q = MixtureOfDiagNormals(CENTERS + 0.3, torch.full((3, 2), 2.0), torch.zeros(3))

    def alone():
        z = [pyro.sample(name, dist.Normal(0.0, 10.0)) for name in "xy"]
        if z[0].dim():
            raise RuntimeError("one at a time")
        z = torch.stack(z)
        pyro.factor("f", TARGET.log_prob(z) - dist.Normal(0.0, 10.0).log_prob(z).sum(-1))

    found = []
    for each in (model, alone):
        pyro.clear_param_store()
        guide = AutoDiagonalNormalMixture.from_mixture(each, q)
        pyro.set_rng_seed(1)
        guide.refit_weights(num_samples=5)
        found.append(guide.get_posterior().log_weights)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_plates_and_arguments():
    """The same as of a vector without a plate; a subsample is the same for all draws."""

    def plated(data, subsample_size=None):
        level = pyro.sample("level", dist.Normal(0.0, 3.0))
        with pyro.plate("groups", 2):
            group = pyro.sample("group", dist.Normal(level, 1.0))
        with pyro.plate("data", len(data), subsample_size=subsample_size) as index:
            pyro.sample("y", dist.Normal(group.sum(-1, keepdim=True).abs(), 1.0), obs=data[index])

    def joint(data):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        groups = dist.Normal(z[..., :1], 1.0).log_prob(z[..., 1:]).sum(-1)
        likelihood = dist.Normal(z[..., 1:].sum(-1, keepdim=True).abs(), 1.0).log_prob(data)
        prior = dist.Normal(0.0, 3.0).log_prob(z[..., 1:]).sum(-1)
        pyro.factor("f", groups + likelihood.sum(-1) - prior)

    data = torch.tensor([3.0, 2.0, 2.5])
    locs = torch.tensor([[0.5, 1.5, 1.0], [-0.5, -1.5, -1.0], [0.0, 1.0, -1.0]])
    q = MixtureOfDiagNormals(locs, torch.full((3, 3), 0.5), torch.zeros(3))
    found = []
    for each in (plated, joint):
        pyro.clear_param_store()
        guide = AutoDiagonalNormalMixture.from_mixture(each, q, data)
        pyro.set_rng_seed(1)
        guide.refit_weights(data, num_samples=8)
        found.append(guide.get_posterior().log_weights)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    guide = AutoDiagonalNormalMixture.from_mixture(plated, q, data, subsample_size=2)
    guide.refit_weights(data, subsample_size=2)
    assert guide.get_posterior().log_weights[2] < -1


@pytest.mark.parametrize("at_once", [False, True])
def test_components_outside_of_the_support_lose_their_weight(at_once):
    def half():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        if not at_once:
            x = torch.stack([torch.tensor(float(each)) for each in x])  # one point alone
        pyro.factor("f", torch.where(x[..., 0] > 0, 0.0, -torch.inf))

    q = MixtureOfDiagNormals(CENTERS[[0, 2]], torch.ones(2, 2), torch.zeros(2))
    guide = AutoDiagonalNormalMixture.from_mixture(half, q)
    guide.refit_weights()
    assert guide.get_posterior().log_weights.tolist() == [-math.inf, 0]
    guide.set_posterior(MixtureOfDiagNormals(CENTERS[[0, 0]], torch.ones(2, 2), torch.zeros(2)))
    with pytest.raises(ValueError, match="Expected a component within the support"):
        guide.refit_weights()


@pytest.mark.parametrize(
    ("hidden", "told"),
    [("ky", "a model with data or factors"), ("k", "a log density that is the same in each run")],
)
def test_models_of_which_a_block_hides_a_part(hidden, told):
    def discrete():
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(x + 9 * k, 1.0), obs=torch.tensor(1.0))

    guide = AutoDiagonalNormalMixture(poutine.block(discrete, hide=list(hidden)), 2)
    guide()
    with pytest.raises(ValueError, match=told):
        guide.refit_weights(num_samples=20)


def test_sites_that_the_guide_does_not_know():
    def growing(size):
        for index in range(size):
            pyro.sample(f"x{index}", dist.Normal(0.0, 1.0))

    guide = AutoDiagonalNormalMixture(growing, 2)
    guide(1)
    with pytest.raises(ValueError, match="all latent sites of the model, but got 'x1'"):
        guide.refit_weights(2)
    guide = AutoDiagonalNormalMixture(growing, 2)
    pyro.clear_param_store()
    guide(3)
    with pytest.raises(ValueError, match="sites x0, x1, x2 of the guide, in 3 .* but got x0 in 1"):
        guide.refit_weights(1)


def test_mistakes():
    guide = AutoDiagonalNormalMixture(model, 3)
    for method in (guide.refit_weights, guide.prune):
        with pytest.raises(ValueError, match="Expected a guide that was called before"):
            method()
    guide()
    with pytest.raises(ValueError, match="num_samples"):
        guide.refit_weights(num_samples=0)
    for name in ("min_weight", "max_overlap"):
        with pytest.raises(ValueError, match=f"Expected {name} between 0 and 1, but got 1.5"):
            guide.prune(**{name: 1.5})


# -------------------------------------------------------------------------------------- pruning


def test_merging():
    weights = torch.tensor([0.2, 0.25, 5e-4, 6e-4, 0.0004, 0.5485])
    overlap = torch.eye(6)
    overlap[0, 1] = overlap[1, 0] = 0.99  # to the heavier of the two
    overlap[2, 3] = overlap[3, 2] = 0.98  # together they are heavy enough
    index, mass = merged(weights, overlap, 1e-3, 0.97)
    assert index.tolist() == [1, 3, 5]
    expected = torch.tensor([0.45, 0.0011, 0.5485])
    torch.testing.assert_close(mass, expected / expected.sum())
    assert merged(weights, overlap, 0.0, 1.0)[0].tolist() == list(range(6))
    assert merged(weights, overlap, 1.0, 1.0)[0].tolist() == [5]  # the heaviest stays


def test_overlaps_of_other_families_are_those_of_their_densities():
    locs = torch.tensor([[0.0], [1.0], [40.0]])
    weights = dist.Categorical(logits=torch.zeros(3))
    scales = torch.tensor([[1.0], [2.0], [1.0]])
    q = MixtureSameFamily(weights, dist.Laplace(locs, scales).to_event(1))
    x = torch.linspace(-40, 80, 200_001)
    log_q = dist.Laplace(locs, scales).log_prob(x)  # (K, X)
    exact = ((log_q.unsqueeze(0) + log_q.unsqueeze(1)) / 2).exp().sum(-1) * (x[1] - x[0])
    torch.testing.assert_close(overlaps(q, 4000), exact, atol=0.03, rtol=0)
    normals = MixtureOfNormals(locs, torch.ones(3, 1, 1), torch.zeros(3))
    assert overlaps(normals, 1)[0, 1].item() == pytest.approx(math.exp(-1 / 8))


@each_guide
def test_what_is_left_is_the_same(guide_class):
    """Components and their parameters; the density is that without the others."""
    guide = guide_class(model, 6, init_scale=1.0)
    guide()
    with torch.no_grad():
        guide.component_logits[:] = torch.tensor([0.0, -30.0, 1.0, -30.0, 0.5, -30.0])
        if guide_class is not AutoGaussianScaleMixture:
            guide.locs *= 5  # apart
    before = guide.get_posterior()
    guide.prune()
    after = guide.get_posterior()
    assert guide.num_components == after.num_components == 3
    z = torch.randn(20, 2)
    torch.testing.assert_close(after.log_prob(z), before.log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        after.component_log_prob(z),
        before.component_log_prob(z)[:, [0, 2, 4]],
        rtol=1e-4,
        atol=1e-4,
    )
    assert all(value.is_leaf and value.requires_grad for value in guide.parameters())
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    stored = dict(pyro.get_param_store().named_parameters())
    assert set(map(id, stored.values())) == set(map(id, guide.parameters()))


def test_what_a_hub_has_learned_stays():
    guide = AutoAVFDiagonalNormalMixture(model, 3)
    guide()
    with torch.no_grad():
        guide.control_var.copy_(torch.randn(2, 3, 2))
        guide.component_logits[1] = -30.0
    expected = guide.control_var[:, [0, 2]].detach()
    guide.prune()
    assert torch.equal(guide.control_var, expected)


def test_twins():
    locs = torch.cat([CENTERS, CENTERS + 0.05])
    logits = torch.cat([WEIGHTS.log(), WEIGHTS.log() - 1.0])
    q = MixtureOfNormals(locs, torch.eye(2).expand(6, 2, 2), logits)
    guide = AutoMultivariateNormalMixture.from_mixture(model, q)
    guide.prune(max_overlap=1.0)
    assert guide.num_components == 6
    same = guide.locs
    guide.prune()
    assert torch.equal(guide.locs, same[:3])
    torch.testing.assert_close(guide.get_posterior().log_weights.exp(), WEIGHTS)


def test_nothing_to_leave_out_leaves_the_parameters():
    guide = AutoLaplaceMixture(model, 3, init_scale=0.1)
    guide()
    parameters = list(guide.parameters())
    guide.prune()
    assert all(a is b for a, b in zip(guide.parameters(), parameters, strict=True))


def test_sizes_are_apart_though_their_location_is_one():
    sizes = torch.tensor([1.0, 1.01, 5.0])
    q = GaussianScaleMixture(torch.ones(2), torch.zeros(3), sizes)
    guide = AutoGaussianScaleMixture.from_mixture(model, q)
    guide.prune()
    assert guide.num_components == 2
    torch.testing.assert_close(guide.component_scale[-1], sizes[-1])
