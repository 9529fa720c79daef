"""What ``AutoMixture`` asks of guides that users write, and how it refuses what it cannot use."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam

from pyro_mixtures.distributions import MixtureSameFamily
from pyro_mixtures.infer import AutoMixture


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def weighted(components):
    return MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), components)


def hooked(init_components=None, make_mixture=None):
    methods = {"init_components": init_components, "make_mixture": make_mixture}
    given = {name: method for name, method in methods.items() if method is not None}
    return type("AutoOwnMixture", (AutoMixture,), given)(model, 2)


def locs_alone(self, locs):
    return {"locs": locs}


def of_numbers(self, **options):
    return weighted(dist.Laplace(self.locs[:, 0], 1.0))


def of_another_size(self, **options):
    return weighted(dist.Laplace(self.locs[:, :2], 1.0).to_event(1))


def of_torch(self, **options):
    components = dist.Laplace(self.locs, 1.0).to_event(1)
    weights = dist.Categorical(logits=torch.zeros(2))
    return torch.distributions.MixtureSameFamily(weights, components)


def of_a_batch(self, **options):
    return weighted(dist.Laplace(self.locs, 1.0).to_event(1)).expand((1,))


@pytest.mark.parametrize(
    "make_mixture", [of_numbers, of_another_size, of_torch, of_a_batch, lambda self, **options: 3]
)
def test_what_is_no_mixture_of_the_latent_vector(make_mixture):
    with pytest.raises(ValueError, match=r"Expected make_mixture .*event shape \(3,\), but got"):
        hooked(locs_alone, make_mixture)()


def test_hooks_that_are_not_defined():
    with pytest.raises(
        NotImplementedError, match=r"AutoMixture to define init_components\(locs\)"
    ):
        AutoMixture(model, 2)()
    with pytest.raises(NotImplementedError, match="AutoOwnMixture to define make_mixture"):
        hooked(locs_alone)()


@pytest.mark.parametrize("name", ["scale", "loc", "median", "transport"])
def test_names_that_are_taken(name):
    guide = hooked(lambda self, locs: {name: locs}, of_torch)
    with pytest.raises(ValueError, match=f"Expected init_components .* but got '{name}'"):
        guide()


def test_parameters_of_the_hook_are_learned():
    """Tensors, parameters and those with constraints, with the right gradients."""

    def init_components(self, locs):
        positive = PyroParam(locs.new_tensor(2.0), dist.constraints.positive)
        return {"locs": torch.nn.Parameter(locs), "shift": locs.new_zeros(()), "size": positive}

    def make_mixture(self, **options):
        locs = self.locs + self.shift
        weights = dist.Categorical(logits=self.component_logits)
        return MixtureSameFamily(weights, dist.Laplace(locs, self.size).to_event(1), **options)

    guide = hooked(init_components, make_mixture)
    guide()
    guide.get_posterior().mean.sum().backward()
    assert guide.shift.grad.item() == pytest.approx(3)
    assert guide.locs.grad.sum().item() == pytest.approx(3)
    pyro.get_param_store().clear()
    guide.zero_grad()
    guide.get_posterior().variance.sum().backward()  # 2 size^2 each, by the logarithm of size
    assert guide.size_unconstrained.grad.item() == pytest.approx(3 * 4 * 2**2, rel=1e-4)
