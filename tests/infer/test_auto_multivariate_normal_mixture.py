"""The guide with full covariances: correlated modes, which diagonal components cannot have."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from pyro.optim import ClippedAdam

from pyro_mixtures.distributions import MixtureOfNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, AutoMultivariateNormalMixture

WEIGHTS = torch.tensor([0.3, 0.7])
LOCS = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
SCALE_TRIL = torch.tensor([[[1.0, 0.0], [0.8, 0.4]], [[1.0, 0.0], [-0.8, 0.4]]])


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def target():
    return MixtureOfNormals(LOCS, SCALE_TRIL, WEIGHTS.log())


def model():
    pyro.sample("x", target())


def start():
    """One component in each basin."""
    places = iter(LOCS)
    return lambda site: init_to_value(site, values={"x": next(places)})


def fit(guide_class, steps=1200, **options):
    guide = guide_class(model, 2, init_loc_fn=start(), init_scale=0.5, **options)
    optimizer = ClippedAdam({"lr": 0.03, "lrd": 0.05 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8, vectorize_particles=True))
    losses = [svi.step() for _ in range(steps)]
    return guide, sum(losses[-100:]) / 100


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_shapes_and_steps(weight_gradient):
    guide, loss = fit(AutoMultivariateNormalMixture, 3, weight_gradient=weight_gradient)
    assert torch.tensor(loss).isfinite()
    assert {name: tuple(p.shape) for name, p in guide.named_parameters()} == {
        "component_logits": (2,),
        "locs": (2, 2),
        "coord_scale_unconstrained": (2, 2),
        "scale_tril_unconstrained": (2, 2, 2),
    }
    assert guide.quantiles([0.1, 0.9])["x"].shape == (2, 2)


def test_finds_correlated_modes():
    """The posterior is such a mixture: the divergence of the fit vanishes, to within what the
    last hundred of 8 samples each tell; that of diagonal components does not."""
    guide, loss = fit(AutoMultivariateNormalMixture)
    assert loss == pytest.approx(0, abs=0.02)
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.component_logits.softmax(-1), WEIGHTS, atol=0.05, rtol=0)
    torch.testing.assert_close(posterior.locs, LOCS, atol=0.1, rtol=0)
    torch.testing.assert_close(posterior.scale_tril, SCALE_TRIL, atol=0.1, rtol=0)
    _, diagonal_loss = fit(AutoDiagonalNormalMixture, 200)
    assert diagonal_loss > 0.3
