"""``MarginalizedMixture_ELBO`` against exact gradients by quadrature, and its variance."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch.distributions import AffineTransform, ExpTransform

from pyro_mixtures.distributions import Mixture, MixtureOfDiagNormals, MixtureSameFamily
from pyro_mixtures.infer import BaselinedTrace_ELBO, MarginalizedMixture_ELBO
from tests.registry import each_family, leaves
from tests.strata import diag_normals, gradient_of, gradients, log_joint, model

each_landing = pytest.mark.parametrize("landing", [False, True], ids=["plain", "stl"])


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def estimates(elbo, model, guide, parameters, repeats):
    draws = []
    for _ in range(repeats):
        for value in parameters.values():
            value.grad = None
        elbo.loss_and_grads(model, guide)
        draws.append(gradients(parameters))
    return torch.stack(draws)


def z_scores(draws, exact):
    return (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)


def grid(low, high, count, dims):
    axis = torch.linspace(low, high, count)
    points = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    return points, (axis[1] - axis[0]) ** dims


@each_family
@each_landing
def test_gradient_is_unbiased(family, landing):
    parameters = family.parameters()
    q = family.reference(parameters)
    z, area = grid(-9.0, 10.0, 301, 2)
    log_q = q.log_prob(z)
    exact = gradient_of(-(log_q.exp() * (log_joint(z) - log_q)).sum() * area, parameters)
    elbo = MarginalizedMixture_ELBO(
        num_particles=500,
        vectorize_particles=True,
        max_plate_nesting=0,
        sticking_the_landing=landing,
    )

    def guide():
        pyro.sample("z", family.build(parameters))

    draws = estimates(elbo, model, guide, parameters, 60)
    # at most 15 entries: false alarm 15 * 2e-5 (t with 59 degrees of freedom beyond 4.6)
    assert z_scores(draws, exact).abs().max() < 4.6
    assert draws.std(0).max() / math.sqrt(60) < 0.05 * exact.abs().max()  # it can see a bias


def gamma_components(parameters):
    return MixtureSameFamily(
        dist.Categorical(logits=parameters["logits"]),
        dist.Gamma(parameters["shape"].exp(), parameters["rate"].exp()),
    )


def unlike_components(parameters):
    shape, rate = parameters["shape"].exp(), parameters["rate"].exp()
    components = [dist.Gamma(shape[0], rate[0]), dist.LogNormal(shape[1], rate[1])]
    return Mixture(dist.Categorical(logits=parameters["logits"]), components)


def exp_normals(parameters):
    locs, scales = parameters["shape"].unsqueeze(-1), parameters["rate"].exp().unsqueeze(-1)
    base = MixtureOfDiagNormals(locs, scales, parameters["logits"])
    transforms = [AffineTransform(0.1, parameters["slope"].exp(), event_dim=1), ExpTransform()]
    return dist.TransformedDistribution(base, transforms)


@each_landing
@pytest.mark.parametrize("build", [gamma_components, unlike_components, exp_normals])
def test_gradient_is_unbiased_for_other_mixtures(build, landing):
    parameters = leaves(
        {
            "logits": torch.tensor([0.4, -0.2]),
            "shape": torch.tensor([1.2, 0.5]),
            "rate": torch.tensor([0.3, -0.6]),
        }
    )
    if build is exp_normals:
        parameters["slope"] = torch.tensor(-0.3, requires_grad=True)
    event = len(build(parameters).event_shape)

    def model():
        x = pyro.sample("x", dist.Gamma(2.0, 1.0).expand([1] * event).to_event(event))
        if event:
            x = x.squeeze(-1)
        pyro.factor("f", 1.5 * torch.sin(2 * x))

    x = torch.linspace(-14, 6, 20_001).exp()  # in the logarithm
    q = build(parameters)
    log_q = q.log_prob(x.unsqueeze(-1) if event else x)
    log_p = dist.Gamma(2.0, 1.0).log_prob(x) + 1.5 * torch.sin(2 * x)
    exact = gradient_of(-(log_q.exp() * (log_p - log_q) * x).sum() * 20 / 20_000, parameters)
    elbo = MarginalizedMixture_ELBO(
        num_particles=500,
        vectorize_particles=True,
        max_plate_nesting=0,
        sticking_the_landing=landing,
    )
    draws = estimates(elbo, model, lambda: pyro.sample("x", build(parameters)), parameters, 60)
    assert z_scores(draws, exact).abs().max() < 4.6  # 7 * 2e-5
    assert draws.std(0).max() / math.sqrt(60) < 0.1 * exact.abs().max()


OBSERVED = torch.tensor([0.5, 2.0, 3.0, 1.0])


def local_model(size=4):
    w = pyro.sample("w", dist.Normal(0.5, 1.0))
    with pyro.plate("data", 4, subsample_size=size) as index:
        x = pyro.sample("x", dist.Normal(w.unsqueeze(-1), torch.tensor([1.5])).to_event(1))
        pyro.sample("y", dist.Normal(x.squeeze(-1).square(), 1.0), obs=OBSERVED[index])


def local_mixture(parameters, index=slice(None)):
    return MixtureOfDiagNormals(
        parameters["locs"][index],
        parameters["scales"][index].exp(),
        parameters["logits"][index],
        weight_gradient="clustered",
    )


def local_guide(parameters):
    def guide(size=4):
        pyro.sample("w", dist.Normal(parameters["mean"], parameters["log_std"].exp()))
        with pyro.plate("data", 4, subsample_size=size) as index:
            pyro.sample("x", local_mixture(parameters, index))

    return guide


def local_parameters():
    generator = torch.Generator().manual_seed(5)
    return leaves(
        {
            "mean": torch.tensor(0.2),
            "log_std": torch.tensor(-0.5),
            "locs": torch.randn(4, 3, 1, generator=generator) * 1.5,
            "scales": 0.3 * torch.randn(4, 3, 1, generator=generator) - 0.3,
            "logits": torch.randn(4, 3, generator=generator),
        }
    )


def local_exact(parameters):
    """Minus the ELBO, by a grid over the latent number of an element and over the common one."""
    x, w = torch.linspace(-8, 8, 801), torch.linspace(-5, 5, 201).unsqueeze(-1)
    dx, dw = 16 / 800, 10 / 200
    q_w = dist.Normal(parameters["mean"], parameters["log_std"].exp()).log_prob(w)
    terms = (q_w.exp() * (dist.Normal(0.5, 1.0).log_prob(w) - q_w)).sum() * dw
    prior = (q_w.exp() * dist.Normal(w, 1.5).log_prob(x)).sum(0) * dw  # expected
    log_q = local_mixture(parameters).log_prob(x.reshape(-1, 1, 1)).T  # (4, 801)
    log_y = dist.Normal(x.square(), 1.0).log_prob(OBSERVED.unsqueeze(-1))
    return -(terms + (log_q.exp() * (prior + log_y - log_q)).sum() * dx)


@pytest.mark.parametrize(
    ("size", "kwargs"),
    [
        (4, {"num_particles": 300, "vectorize_particles": True}),
        (2, {"num_particles": 20}),
        (2, {"num_particles": 20, "sticking_the_landing": True}),
    ],
    ids=["vectorized", "subsampled", "subsampled-stl"],
)
def test_gradient_is_unbiased_in_plates(size, kwargs):
    """A mixture for each element of a plate, beside a Normal site of all."""
    parameters = local_parameters()
    exact = gradient_of(local_exact(parameters), parameters)
    repeats = 60 if size == 4 else 30
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1, **kwargs)
    guide = local_guide(parameters)
    draws = []
    for _ in range(repeats):
        for value in parameters.values():
            value.grad = None
        elbo.loss_and_grads(local_model, guide, size)
        draws.append(gradients(parameters))
    draws = torch.stack(draws)
    # 38 entries: false alarm 38 * 2e-6 (t with 59 degrees of freedom), 38 * 3e-6 (6.0, with 29)
    assert z_scores(draws, exact).abs().max() < (5.3 if size == 4 else 6.0)
    assert draws.std(0).max() / math.sqrt(repeats) < 0.2 * exact.abs().max()


def test_amortized_guide_and_model_with_parameters():
    """As in a VAE: an encoder, a decoder, minibatches; every part gets a gradient and fits."""
    pyro.set_rng_seed(0)
    encoder, decoder = torch.nn.Linear(3, 2 * (2 + 2 + 1)), torch.nn.Linear(2, 3)
    data = torch.randn(8, 3) @ torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 0, 0.1]])

    def model():
        pyro.module("decoder", decoder)
        with pyro.plate("data", 8, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.3).to_event(1), obs=data[index])

    def guide():
        pyro.module("encoder", encoder)
        with pyro.plate("data", 8, subsample_size=4) as index:
            locs, scales, logits = encoder(data[index]).split([4, 4, 2], -1)
            locs, scales = (value.reshape(-1, 2, 2) for value in (locs, scales))
            pyro.sample("z", MixtureOfDiagNormals(locs, scales.exp(), logits))

    elbo = MarginalizedMixture_ELBO(num_particles=2, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step() for _ in range(300)]
    assert all(value.grad is not None for value in decoder.parameters())
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])


def test_variance_is_lower_than_with_sampled_components():
    """For as many evaluations of the model, near the optimum and with components apart.

    Measured for the logits: 28 times lower, as with ``sticking_the_landing``; with that, 9 times
    lower for the means.
    """
    parameters = leaves(
        {
            "component_logits": torch.tensor([0.3, -0.3]),
            "locs": torch.tensor([[-2.0, 0.5], [2.0, -0.5]]),
            "coord_scale": torch.tensor([[1.2, 0.8], [0.9, 1.0]]),
        }
    )
    locs, scales = (1.05 * parameters[name].detach() for name in ("locs", "coord_scale"))
    target = MixtureOfDiagNormals(locs, scales, torch.zeros(2))

    def variance(elbo, weight_gradient="pathwise"):
        def guide():
            pyro.sample("z", diag_normals(parameters, weight_gradient=weight_gradient))

        draws = estimates(elbo, lambda: pyro.sample("z", target), guide, parameters, 300)
        return draws[:, :2].var(0).sum(), draws[:, 2:6].var(0).sum()

    logits, _ = variance(MarginalizedMixture_ELBO(max_plate_nesting=0))
    landed_logits, landed_locs = variance(
        MarginalizedMixture_ELBO(max_plate_nesting=0, sticking_the_landing=True)
    )
    two = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 0}
    for weight_gradient in ("clustered", "hybrid"):
        their_logits, their_locs = variance(BaselinedTrace_ELBO(**two), weight_gradient)
        assert logits < 0.2 * their_logits
        assert landed_logits < 0.2 * their_logits
        assert landed_locs < 0.4 * their_locs
