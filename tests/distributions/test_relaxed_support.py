"""Relaxed laws are priors of latent sites that Pyro maps to the reals, or takes apart."""

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import AutoReparam
from torch.distributions import biject_to, constraints, transform_to

from pyro_mixtures.distributions import ExpRelaxedCategorical, RelaxedCategorical


def test_bijection_to_logarithms_of_probabilities():
    """And its volume: behind the exponential, that of torch's map to the simplex."""
    x = 3 * torch.randn(5, 4, 3, dtype=torch.float64)
    for registry in (biject_to, transform_to):
        transform = registry(ExpRelaxedCategorical.support)
        y = transform(x)
        assert y.shape == transform.forward_shape(x.shape) == (5, 4, 4)
        assert transform.inverse_shape(y.shape) == x.shape
        assert ExpRelaxedCategorical.support.check(y).all()
        torch.testing.assert_close(transform.inv(y), x)
    volume = transform.log_abs_det_jacobian(x, y) + y.sum(-1)
    simplex = biject_to(constraints.simplex)
    z = simplex.inv(y.exp())
    jacobian = torch.autograd.functional.jacobian(
        lambda x: simplex.inv(transform(x).exp()), x[0, 0]
    )
    torch.testing.assert_close(
        volume[0, 0], jacobian.slogdet()[1] + simplex.log_abs_det_jacobian(z, y.exp())[0, 0]
    )


def test_latent_logarithms_under_nuts():
    pyro.set_rng_seed(0)
    law = ExpRelaxedCategorical(1.0, logits=torch.tensor([0.0, 1.0, 2.0]))
    posterior = MCMC(NUTS(lambda: pyro.sample("x", law)), 400, 100, disable_progbar=True)
    posterior.run()
    drawn, exact = posterior.get_samples()["x"].exp(), law.sample((20000,)).exp()
    error = exact.std(0) / 100**0.5  # about 100 of the draws are independent
    assert ((drawn.mean(0) - exact.mean(0)).abs() < 5 * error).all()


def test_automatic_reparameterization_leaves_the_law():
    """It is for torch's class alone, whose samples have lost their coordinates."""
    logits = torch.zeros(3, 4)

    @AutoReparam()
    def model():
        with pyro.plate("plate", 3):
            pyro.sample("y", RelaxedCategorical(0.5, logits=logits))

    trace = poutine.trace(model).get_trace()
    assert isinstance(trace.nodes["y"]["fn"], RelaxedCategorical)
    assert trace.log_prob_sum().isfinite()
