"""Mixtures of any components keep to the memory budget, and it changes no result."""

import torch
from torch.distributions import Categorical, Independent, Laplace

from pyro_mixtures import MixtureSameFamily
from pyro_mixtures.numerics import chunks
from tests.families.registry import COMPONENTS, cost_gradients, each_components, some_components
from tests.registry import relative_error


def inside(family, points):
    """Off the ends, to which tanh rounds and where torch's densities are NaN."""
    bound = 1 - 1e-9
    return points.clamp(-bound, bound) if family is COMPONENTS["shared_tanh_student_t"] else points


def assert_budget_changes_nothing(monkeypatch, family, **options):
    parameters = family.parameters((2,), D=family.dimension)
    mixture = family.mixture(parameters, **options)
    points = inside(family, mixture.sample((10,)))
    whole = cost_gradients(mixture, points, parameters)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 200)
    assert relative_error(cost_gradients(mixture, points, parameters), whole) < 1e-10
    z = mixture.rsample((10,))
    assert z.shape == points.shape


@each_components
def test_budget_changes_no_result(monkeypatch, family):
    assert_budget_changes_nothing(monkeypatch, family)


@some_components("normal", "gamma_scalar", "multivariate_student_t", "dirichlet", "mixed_real")
def test_budget_changes_no_result_without_transport(monkeypatch, family):
    assert_budget_changes_nothing(monkeypatch, family, weight_gradient="hybrid")


def test_memory_of_many_samples(monkeypatch):
    """What is kept for the backward pass does not grow with samples times components."""
    S, K, D = 4000, 20, 5
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 2**17)
    locs, scales = torch.randn(K, D).requires_grad_(), torch.ones(K, D).requires_grad_()
    logits = torch.zeros(K, requires_grad=True)
    mixture = MixtureSameFamily(Categorical(logits=logits), Independent(Laplace(locs, scales), 1))
    points = mixture.sample((S,))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        z = mixture.reparameterize(points)
    assert sum(kept.values()) < S * K * D * 4 / 2
    z.sum().backward()
    assert logits.grad.isfinite().all()
