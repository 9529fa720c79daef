"""``poutine.scale`` and subsampling under the objectives of all components."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    MarginalizedMixture_ELBO,
)
from tests.infer.mixture_guides import MIXTURES
from tests.pairwise import in_pairs
from tests.registry import FAMILIES, leaves
from tests.strata import diag_normals, gradient_of, gradients, log_joint, model, parameters_of_two

OBSERVED = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
SCALES = [2.0, 0.3, torch.tensor(2.0), torch.tensor([0.5, 3.0, 1.5])]
each_scale = pytest.mark.parametrize("scale", SCALES, ids=["two", "less", "tensor", "each"])
each_objective = pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def at(scale, index):
    """Of some elements of a plate."""
    return scale[index] if isinstance(scale, torch.Tensor) and scale.dim() else scale


def local_model(scale, index, latent_scale=1.0):
    with pyro.plate("data", 3, subsample=index), poutine.scale(scale=at(scale, index)):
        with poutine.scale(scale=latent_scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("views", 2, dim=-2):
            y = OBSERVED[index]
            pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.stack([y, y + 0.3]))


def local_guide(parameters):
    def guide(scale, index, latent_scale=1.0):
        chosen = {name: value[index] for name, value in parameters.items()}
        with pyro.plate("data", 3, subsample=index), poutine.scale(scale=at(scale, index)):
            with poutine.scale(scale=latent_scale):
                pyro.sample("z", MixtureOfDiagNormals(**chosen))

    return guide


def local_parts(z, index):
    """Logarithms of the prior and of the likelihood, ``(*X, B, 2) -> (*X, B)``."""
    y, observed = OBSERVED[index], dist.Normal(z.sum(-1), 0.5)
    likelihood = observed.log_prob(y) + observed.log_prob(y + 0.3)
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1), likelihood


def average(objective, log_ratio, log_weights):
    """A bound for each element of a batch, of ``(T, K, *B)`` and ``(K, *B)``."""
    if objective is MarginalizedMixture_ELBO:
        return (log_weights.exp() * log_ratio).sum(1).mean(0)
    return (log_ratio + log_weights).logsumexp((0, 1)) - math.log(len(log_ratio))


@in_pairs
@each_objective
@each_scale
@pytest.mark.parametrize("index", [[0, 1, 2], [0, 2], [1]], ids=["all", "two", "one"])
@pytest.mark.parametrize("particles", [1, 3])
def test_common_scale_multiplies_the_bounds(objective, scale, index, particles):
    """Of each element of the plate, and their gradients; that of subsampling is one more."""
    index = torch.tensor(index)
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    elbo = objective(particles, vectorize_particles=True, max_plate_nesting=2)
    pyro.set_rng_seed(0)
    loss = elbo.loss_and_grads(local_model, local_guide(parameters), scale, index)
    found = gradients(parameters)
    pyro.set_rng_seed(0)
    q = MixtureOfDiagNormals(**{name: value[index] for name, value in parameters.items()})
    z = component_samples(q, (particles,))  # (T, K, B, 2)
    log_ratio = sum(local_parts(z, index)) - q.log_prob(z)
    bounds = average(objective, log_ratio, q.log_weights.T)
    expected = -(at(scale, index) * bounds).sum() * 3 / len(index)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(found, gradient_of(expected, parameters), rtol=1e-9)


@in_pairs
@each_objective
@pytest.mark.parametrize("guide_class", MIXTURES)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("scale", [2.0, torch.tensor(0.5)])
@pytest.mark.parametrize("landing", [False, True], ids=["plain", "stl"])
def test_scaled_automatic_guides(objective, guide_class, particles, scale, landing):
    pyro.set_rng_seed(0)
    guide = guide_class(model, 2, init_scale=0.5)
    guide()
    parameters = dict(guide.named_parameters())
    results = []
    for one in (1.0, scale):
        guide.zero_grad()
        pyro.set_rng_seed(1)
        options = {"vectorize_particles": True, "max_plate_nesting": 0}
        elbo = objective(particles, sticking_the_landing=landing, **options)
        pair = (poutine.scale(program, scale=one) for program in (model, guide))
        results.append((elbo.loss_and_grads(*pair), gradients(parameters)))
    assert results[1][0] == pytest.approx(float(scale) * results[0][0])
    assert torch.allclose(results[1][1], scale * results[0][1])


@pytest.mark.parametrize("particles", [1, 2])
def test_scaled_bound_lies_below_the_scaled_evidence(particles):
    """And its mean and gradient are twice those of the bound, by quadrature."""
    count, scale = 20_000, 2.0
    p = leaves(
        {
            "locs": torch.tensor([[-1.0], [1.2]]),
            "coord_scale": torch.tensor([[0.6], [0.9]]),
            "component_logits": torch.tensor([0.4, -0.3]),
        }
    )

    def latent_model():  # independent copies of one model
        with pyro.plate("copies", count), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("y", dist.Normal(z.squeeze(-1).abs(), 0.5), obs=torch.ones(count))

    def guide():
        with pyro.plate("copies", count), poutine.scale(scale=scale):
            pyro.sample("z", MixtureOfDiagNormals(**p))

    def joint(z):
        observed = dist.Normal(z.abs(), 0.5).log_prob(torch.tensor(1.0))
        return dist.Normal(0.0, 1.0).log_prob(z) + observed

    noise = torch.linspace(-7, 7, 301)
    log_noise = dist.Normal(0.0, 1.0).log_prob(noise) + math.log(14 / 300)
    q = MixtureOfDiagNormals(**p)
    z = p["locs"] + p["coord_scale"] * noise  # (K, N), of common random numbers
    ratio = (joint(z) - q.log_prob(z.unsqueeze(-1)) + q.log_weights.unsqueeze(-1)).logsumexp(0)
    if particles == 1:
        bound = (log_noise.exp() * ratio).sum()
    else:
        pairs = torch.logaddexp(ratio, ratio.unsqueeze(-1)) - math.log(2)
        bound = ((log_noise + log_noise.unsqueeze(-1)).exp() * pairs).sum()
    grid = torch.linspace(-9, 9, 4001)
    evidence = (joint(grid).exp().sum() * 18 / 4000).log()
    exact = gradient_of(-scale * bound, p)
    elbo = SIWAE_ELBO(particles, max_plate_nesting=1)
    losses, draws = [], []
    for _ in range(20):
        for value in p.values():
            value.grad = None
        losses.append(elbo.loss_and_grads(latent_model, guide) / count)
        draws.append(gradients(p) / count)
    draws = torch.cat([torch.tensor(losses).unsqueeze(-1), torch.stack(draws)], -1)
    expected = torch.cat([(-scale * bound).detach().reshape(1), exact])
    deviations = draws.std(0) / math.sqrt(20)
    # t with 19 degrees of freedom: false alarm 7 * 9e-6
    assert ((draws.mean(0) - expected) / deviations).abs().max() < 6
    assert deviations.max() < 0.02 * expected.abs().max()  # it can see a bias
    assert scale * bound < scale * evidence < bound  # so that what was missed would be seen


@each_objective
@pytest.mark.parametrize("mask", [torch.tensor([True, False, True])])
def test_masks_are_inside(objective, mask):
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    index = torch.arange(3)

    def masked(program):
        return poutine.mask(poutine.scale(program, scale=2.0), mask=mask)

    pyro.set_rng_seed(0)
    elbo = objective(2, vectorize_particles=True, max_plate_nesting=2)
    guide = local_guide(parameters)
    loss = elbo.loss_and_grads(masked(local_model), masked(guide), torch.ones(3), index)
    pyro.set_rng_seed(0)
    q = MixtureOfDiagNormals(**parameters)
    z = component_samples(q, (2,))
    log_ratio = (sum(local_parts(z, index)) - q.log_prob(z)) * mask
    expected = -2 * average(objective, log_ratio, q.log_weights.T).sum()
    assert loss == pytest.approx(expected.item())
    found = gradients(parameters)
    assert found.isfinite().all()
    assert torch.allclose(found, gradient_of(expected, parameters))


@pytest.mark.parametrize("scale", [0.2, torch.tensor([0.5, 3.0, 1.5])])
def test_divergence_alone_may_be_scaled_in_the_elbo(scale):
    """The ELBO is linear: any scale is that of its own site."""
    index = torch.tensor([0, 2])
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    elbo = MarginalizedMixture_ELBO(2, vectorize_particles=True, max_plate_nesting=2)
    pyro.set_rng_seed(0)
    guide = local_guide(parameters)
    loss = elbo.loss_and_grads(local_model, guide, 1.0, index, at(scale, index))
    found = gradients(parameters)
    pyro.set_rng_seed(0)
    q = MixtureOfDiagNormals(**{name: value[index] for name, value in parameters.items()})
    z = component_samples(q, (2,))
    prior, likelihood = local_parts(z, index)
    terms = at(scale, index) * (prior - q.log_prob(z)) + likelihood
    expected = -1.5 * (q.log_weights.T.exp() * terms).sum() / 2
    assert loss == pytest.approx(expected.item())
    assert torch.allclose(found, gradient_of(expected, parameters))


def subsampled_data(index):
    z = pyro.sample("z", dist.Normal(0.3, 1.5).expand([2]).to_event(1))
    with pyro.plate("data", 3, subsample=index):
        pyro.sample("y", dist.Normal(z.prod(-1), 0.8), obs=OBSERVED[index])


def test_data_alone_may_be_subsampled_in_the_elbo():
    """The mean over the subsamples is the loss of all data, for the same draw."""
    q = diag_normals(parameters_of_two())
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1)

    def loss(index):
        pyro.set_rng_seed(0)
        return elbo.loss(subsampled_data, lambda index: pyro.sample("z", q), torch.tensor(index))

    assert sum(loss([i]) for i in range(3)) / 3 == pytest.approx(loss([0, 1, 2]))
    assert loss([0]) != pytest.approx(loss([1]))


def refused(message, program, guide, *args, particles=1):
    for count in (particles, particles + 1):
        with pytest.raises(ValueError, match=message):
            SIWAE_ELBO(count, max_plate_nesting=2).loss(program, guide, *args)


def test_unlike_scales_within_a_logarithm_are_refused():
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    local, index = local_guide(parameters), torch.arange(3)
    annealed = r"0.2 at 'z' of the model, 1 at 'y' of the model, 0.2 at 'z' of the guide"
    refused(annealed, local_model, local, 1.0, index, 0.2)
    each = r"0.5 to 3 at 'z' of the model, 1 at 'y'"
    refused(each, local_model, local, 1.0, index, torch.tensor([0.5, 3.0, 1.5]))
    half = poutine.scale(local_model, scale=2.0)
    refused(r"2 at 'z' of the model.*, 1 at 'z' of the guide", half, local, 1.0, index)

    def guide(*args):
        pyro.sample("z", diag_normals(parameters_of_two()))

    refused(r"3 at 'y' of the model, 1 at 'z' of the guide", subsampled_data, guide, index[:1])


def test_scales_that_differ_along_another_plate_are_refused():
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    scale, index = torch.tensor([[2.0], [3.0]]), torch.arange(3)

    def program(scaled):
        def run(*args):
            scale_ = scale if scaled else 2.0
            with pyro.plate("data", 3):
                with poutine.scale(scale=2.0):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                with pyro.plate("views", 2, dim=-2), poutine.scale(scale=scale_):
                    pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.zeros(2, 3))

        return run

    guide = poutine.scale(local_guide(parameters), scale=2.0)
    assert math.isfinite(SIWAE_ELBO().loss(program(False), guide, 1.0, index))
    refused("2 to 3 at 'y' of the model", program(True), guide, 1.0, index)


def test_scales_outside_of_the_logarithm_are_their_own():
    """Those of sites that do not differ between the draws."""
    q = diag_normals(parameters_of_two())

    def program(scale):
        def run():
            model()
            with poutine.scale(scale=scale):
                pyro.sample("a", dist.Normal(0.0, 1.0))
                pyro.sample("b", dist.Normal(0.7, 1.0), obs=torch.tensor(1.0))

        return run

    def guide(scale):
        def run():
            pyro.sample("z", q)
            with poutine.scale(scale=scale):
                pyro.sample("a", dist.Normal(0.4, 0.5))

        return run

    def loss(scale):
        pyro.set_rng_seed(0)
        return SIWAE_ELBO(max_plate_nesting=0).loss(program(scale), guide(scale))

    pyro.set_rng_seed(0)
    z = component_samples(q)
    a = dist.Normal(0.4, 0.5).sample()
    common = average(SIWAE_ELBO, (log_joint(z) - q.log_prob(z)).unsqueeze(0), q.log_weights)
    rest = dist.Normal(0.0, 1.0).log_prob(a) - dist.Normal(0.4, 0.5).log_prob(a)
    rest = rest + dist.Normal(0.7, 1.0).log_prob(torch.tensor(1.0))
    for scale in (1.0, 3.0):
        assert loss(scale) == pytest.approx(-(common + scale * rest).item())


def test_masked_site_may_have_any_scale():
    q = diag_normals(parameters_of_two())

    def losses():
        for recorded in (False, True):

            def program(recorded=recorded):
                z = pyro.sample("z", dist.Normal(0.3, 1.5).expand([2]).to_event(1))
                pyro.sample("y", dist.Normal(z.prod(-1), 0.8), obs=torch.tensor(1.5))
                if recorded:
                    with poutine.scale(scale=3.0):
                        pyro.deterministic("total", z.sum(-1), event_dim=0)

            pyro.set_rng_seed(0)
            yield SIWAE_ELBO(2, max_plate_nesting=0).loss(program, lambda: pyro.sample("z", q))

    plain, recorded = losses()
    assert plain == recorded


def test_one_draw_of_one_component_takes_any_scales():
    q = diag_normals(parameters_of_two(K=1))

    def guide(index):
        pyro.sample("z", q)

    losses = []
    for objective in (MarginalizedMixture_ELBO, SIWAE_ELBO):
        pyro.set_rng_seed(0)
        elbo = objective(max_plate_nesting=1)
        losses.append(elbo.loss(subsampled_data, guide, torch.tensor([1])))
    assert losses[0] == pytest.approx(losses[1])


def test_rounding_of_scales_is_no_difference():
    q = diag_normals(parameters_of_two())
    product = 0.1 * 3
    assert product != 0.3
    elbo = SIWAE_ELBO(max_plate_nesting=0)
    scaled = poutine.scale(lambda: pyro.sample("z", q), scale=0.3)
    assert math.isfinite(elbo.loss(poutine.scale(model, scale=product), scaled))
    single = poutine.scale(model, scale=torch.tensor(0.3, dtype=torch.float32))
    assert math.isfinite(elbo.loss(single, scaled))
