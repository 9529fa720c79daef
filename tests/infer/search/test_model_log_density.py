"""Batched log densities of models against runs of the model, one point at a time."""

import warnings

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to

from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from tests.infer.search.models import MODELS

CONTINUOUS = [name for name in MODELS if name not in ("mixture of two", "switch")]


def density(name, **options):
    model, args, kwargs, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ModelLogDensity(model, args, kwargs, **options)


def by_hand(name, z):
    """Of one point, by the model's trace: values, and the log density."""
    model, args, kwargs, _ = MODELS[name]
    values, jacobian, at = {}, 0.0, 0

    class Point(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            nonlocal jacobian, at
            if msg["is_observed"] or poutine.util.site_is_subsample(msg):
                return
            transform = biject_to(msg["fn"].support)
            shape = transform.inverse_shape(msg["fn"].batch_shape + msg["fn"].event_shape)
            u = z[at : at + shape.numel()].reshape(shape)
            at += shape.numel()
            msg["value"], msg["done"] = transform(u), True
            values[msg["name"]] = msg["value"]
            jacobian = jacobian + transform.log_abs_det_jacobian(u, msg["value"]).sum()

    with Point():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    assert at == len(z)
    return values, trace.log_prob_sum() + jacobian


@pytest.mark.parametrize("name", CONTINUOUS)
def test_values_gradients_and_sites_are_those_of_single_runs(name):
    log_density = density(name)
    assert log_density.way == MODELS[name][3]
    z = log_density.prior_draws(7)
    z.requires_grad_()
    found = log_density(z)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    sites = log_density.constrain(z)
    for row in range(7):
        point = z[row].detach().requires_grad_()
        values, expected = by_hand(name, point)
        torch.testing.assert_close(found[row], expected)
        torch.testing.assert_close(gradient[row], torch.autograd.grad(expected, point)[0])
        assert list(sites) == list(values)
        for site, value in values.items():
            torch.testing.assert_close(sites[site][row], value.detach())


def test_parameters_and_random_numbers_stay():
    pyro.clear_param_store()
    state = torch.get_rng_state()
    log_density = density("parameter")
    assert torch.equal(torch.get_rng_state(), state)
    first = log_density(torch.ones(2, 1))
    assert not list(pyro.get_param_store().keys())
    try:
        pyro.param("scale", torch.tensor(5.0))
        assert not torch.equal(log_density(torch.ones(2, 1)), first)
    finally:
        pyro.clear_param_store()
