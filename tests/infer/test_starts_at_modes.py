"""Guides that start at the modes that ascents find."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.infer import (
    AutoAVFDiagonalNormalMixture,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
    starting_mixture,
)
from tests.infer.mixture_guides import MIXTURES
from tests.infer.search.models import SCHOOLS, eight_schools

MEANS = 50 * (2 * torch.rand(10, 2, generator=torch.Generator().manual_seed(3)) - 1)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def ten_normals():
    """Far apart, at most 14 of their standard deviations from the origin of a wide prior."""
    x = torch.as_tensor(pyro.sample("x", dist.Normal(torch.zeros(2), 30.0).to_event(1)))
    squares = (x.unsqueeze(-2) - MEANS).square().sum(-1)
    pyro.factor("data", (-squares / 2).logsumexp(-1))


def modes_of(posterior):
    """How many of the ten have more than a hundredth of the mass."""
    distances = torch.cdist(posterior.sample((4000,)).float(), MEANS)
    nearest = distances.argmin(1)[distances.amin(1) < 3]
    return int((nearest.bincount(minlength=10) > 40).sum())


@pytest.mark.parametrize("guide_class", MIXTURES)
def test_every_guide_starts_at_the_modes(guide_class):
    guide = guide_class(ten_normals, 10, init="modes")
    svi = SVI(ten_normals, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert math.isfinite(svi.step())
    count = 1 if guide_class is AutoGaussianScaleMixture else 10  # of one location
    assert modes_of(guide.get_posterior()) == count
    assert guide.prior_units.shape == (2,)
    again = pickle.loads(pickle.dumps(guide))
    found, expected = (each.get_posterior().log_prob(MEANS) for each in (again, guide))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture])
def test_steps_keep_the_modes_that_the_default_does_not_find(guide_class):
    found = {}
    for init in (None, "modes"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = guide_class(ten_normals, 10, init=init)
        elbo = Trace_ELBO(num_particles=8, vectorize_particles=True)
        svi = SVI(ten_normals, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        losses = [svi.step() for _ in range(150)]
        found[init] = modes_of(guide.get_posterior()), sum(losses[-50:]) / 50
    assert found[None][0] <= 1
    assert found["modes"][0] == 10
    assert found["modes"][1] < found[None][1] - 10


def scaled(size):
    """Modes at +- 300 in a coordinate, and correlated with one that is a thousand times less."""
    x = pyro.sample("x", dist.Normal(0.0, 300.0))
    y = pyro.sample("y", dist.Normal(0.0, 1.0))
    pyro.sample("a", dist.Normal(x.abs(), 5.0), obs=torch.tensor(300.0))
    pyro.sample("b", dist.Normal(y - 0.01 * x, 0.05), obs=torch.tensor(float(size)))


def test_a_guide_of_full_covariance_is_the_mixture_and_steps_are_in_its_units():
    guide = AutoMultivariateNormalMixture(scaled, 2, init="modes")
    guide(0)
    posterior = guide.get_posterior()
    start = starting_mixture(scaled, (0,), num_components=2)
    order, expected = (q.locs[:, 0].argsort() for q in (posterior, start))
    for name in ("locs", "scale_tril", "log_weights"):
        found = getattr(posterior, name)[order].double()
        torch.testing.assert_close(found, getattr(start, name)[expected], rtol=1e-2, atol=1e-2)
    stddevs = posterior.scale_tril.norm(dim=-1).log().mean(0).exp()
    torch.testing.assert_close(guide.prior_units, stddevs, rtol=1e-3, atol=0)
    before = guide.locs.detach().clone()
    SVI(scaled, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=10)).step(0)
    steps = (guide.locs - before).abs().amax(0)
    torch.testing.assert_close(steps, 0.01 * guide.prior_units, rtol=2e-2, atol=1e-5)


def test_other_covariances_are_the_nearest_ones():
    locs = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double()
    precisions = torch.tensor([[[4.0, 1.0], [1.0, 1.0]], [[8.0, 0.0], [0.0, 3.0]]]).double()

    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        offset = 20 * (x.unsqueeze(-2) - 3 * locs)
        squares = (offset.unsqueeze(-2) @ precisions @ offset.unsqueeze(-1)).squeeze(-1)
        pyro.factor("f", (-squares.squeeze(-1) / 2).logsumexp(-1))

    weights = precisions.det().rsqrt()
    mean = ((weights / weights.sum())[:, None, None] * precisions).sum(0)
    for guide_class, expected in (
        (AutoDiagonalNormalMixture, precisions.diagonal(dim1=1, dim2=2).rsqrt()),
        (AutoAVFDiagonalNormalMixture, precisions.diagonal(dim1=1, dim2=2).rsqrt()),
        (AutoSharedDiagonalNormalMixture, mean.diagonal().rsqrt()),
        (AutoSharedMultivariateNormalMixture, torch.linalg.cholesky(mean.inverse())),
    ):
        pyro.clear_param_store()
        guide = guide_class(model, 2, init="modes")
        guide()
        posterior = guide.get_posterior()
        found = getattr(posterior, "scale_tril", None)
        found = posterior.coord_scale if found is None else found
        if expected.dim() == 2 and "Shared" not in guide_class.__name__:
            found = found[posterior.locs[:, 0].argsort()]
        torch.testing.assert_close(found.double(), expected / 20, rtol=1e-2, atol=1e-4)


def test_a_mixture_that_was_given_goes_first():
    calls = []

    def model():
        calls.append(None)
        pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = AutoDiagonalNormalMixture(model, 3, init="modes")
    guide.set_posterior(MixtureOfDiagNormals(torch.ones(2, 1), torch.ones(2, 1), torch.zeros(2)))
    guide()
    assert guide.get_posterior().mean == 1.0
    assert len(calls) < 5


def test_a_fit_goes_on_from_the_store():
    first = AutoDiagonalNormalMixture(scaled, 2, init="modes")
    first(0)
    with torch.no_grad():
        first.locs[:, 0] += 7.0
    pyro.set_rng_seed(1)
    second = AutoDiagonalNormalMixture(scaled, 2, init="modes")
    second(0)
    assert torch.equal(second.locs, first.locs)
    torch.testing.assert_close(second.prior_units, first.prior_units)


def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=10) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(100)[index])


def test_subsamples_are_refused_with_the_way_out():
    guide = AutoDiagonalNormalMixture(subsampled, 2, init="modes")
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="hand them over: guide.set_posterior"):
            guide()
    with pytest.raises(ValueError, match="init .*prior, modes"):
        AutoDiagonalNormalMixture(subsampled, 2, init="mode")


# ----------------------------------------------------------------------------------- the mixture


def test_the_heaviest_modes_come_first_and_the_prior_last():
    masses = -MEANS.square().sum(-1) / (2 * (900 + 1))  # of the prior, where they are
    for count in (3, 10, 14):
        start = starting_mixture(ten_normals, num_components=count)
        assert start.locs.shape == (count, 2)
        distances = torch.cdist(start.locs.float(), MEANS)
        assert bool((distances.amin(1) < 0.1)[:10].all())
        order = masses.argsort(descending=True)[:count]
        assert distances.argmin(1)[:10].tolist() == order.tolist()
        expected = masses[order].softmax(0).double()
        found = start.log_weights.exp()
        torch.testing.assert_close(found[:10], expected, rtol=0.02, atol=5e-3)
        stddevs = start.scale_tril.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(
            stddevs[:10], torch.ones(10, 2)[:count].double(), atol=0.01, rtol=0
        )
        assert bool((stddevs[10:] > 10).all())
        assert bool((found >= 0.9 * 0.01 / count).all())


def test_a_funnel_has_fits_where_it_has_no_optimum():
    start = starting_mixture(eight_schools, SCHOOLS, num_components=4, num_starts=50)
    assert isinstance(start, MixtureOfNormals)
    assert float(start.mean[0]) == pytest.approx(4.4, abs=3.0)
    assert bool(start.sample((100,)).isfinite().all())


def test_many_coordinates_have_diagonal_components():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(150), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.ones(150))

    start = starting_mixture(model, num_components=2, num_starts=20)
    assert isinstance(start, MixtureOfDiagNormals)
    torch.testing.assert_close(
        start.locs[0], torch.full((150,), 36 / 37).double(), rtol=0, atol=0.3
    )


def test_it_is_the_same_again_and_touches_nothing():
    pyro.param("scale", torch.tensor(2.0))
    state = torch.get_rng_state()
    first, second, other = (
        starting_mixture(ten_normals, num_components=12, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store()) == ["scale"]
    assert torch.equal(first.locs, second.locs)
    assert not torch.equal(first.locs, other.locs)


@pytest.mark.parametrize("name", ["num_components", "num_starts", "max_evaluations"])
def test_numbers_that_are_too_small_are_named(name):
    with pytest.raises(ValueError, match=f"{name} .* but got 0"):
        starting_mixture(ten_normals, **{"num_components": 2} | {name: 0})
