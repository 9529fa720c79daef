"""``ImportanceWeighted_ELBO``: its bound, and its gradients against integrals."""

import functools
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals, TransformedDistribution
from pyro_mixtures.infer import BaselinedTrace_ELBO, ImportanceWeighted_ELBO
from pyro_mixtures.infer.objectives.importance_bound import leave_one_out
from tests.infer.quantiles import quantiles_for_samples

OBSERVED = torch.tensor(1.5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def leaves():
    """Two components that overlap and one that is apart."""
    values = ([[-1.0], [-0.2], [2.5]], [[0.8], [0.6], [0.4]], [0.2, -0.3, 0.1])
    return [torch.tensor(value, requires_grad=True) for value in values]


def torchs(locs, scales, logits):
    """The same mixture, by torch."""
    components = dist.Normal(locs.squeeze(-1), scales.squeeze(-1))
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def smooth_abs(z):
    return (z.square() + 1).sqrt() - 1


def log_joint(z):
    return dist.Normal(0.0, 2.0).log_prob(z) + dist.Normal(smooth_abs(z), 0.5).log_prob(OBSERVED)


def model(count, scale=1.0):
    with pyro.plate("data", count), poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(smooth_abs(z).squeeze(-1), 0.5), obs=OBSERVED.expand(count))


def guide(count, scale=1.0, parameters=(), **options):
    with pyro.plate("data", count), poutine.scale(scale=scale):
        return pyro.sample("z", MixtureOfDiagNormals(*parameters, **options))


class Grid:
    """Points in place of samples, for all pairs of two particles, and their probabilities."""

    def __init__(self, parameters, points=140):
        z = torch.linspace(-8, 8, points)
        mass = torchs(*parameters).log_prob(z).exp().detach() * (z[1] - z[0])
        self.pairs = torch.cartesian_prod(z, z).T.unsqueeze(-1)  # (2, M, 1)
        self.mass = torch.outer(mass, mass).flatten()  # (M,)
        self.next = 0

    def take(self, shape):
        if len(shape) == 2:  # one particle after the other
            self.next += 1
            return self.pairs[self.next - 1]
        return self.pairs.reshape(shape)

    def bound(self, parameters):
        """The integral, as a function of the mixture's parameters."""
        q = torchs(*parameters)
        first, second = self.pairs.squeeze(-1)
        log_q = q.log_prob(first), q.log_prob(second)
        log_weights = torch.stack([log_joint(first) - log_q[0], log_joint(second) - log_q[1]])
        density = (log_q[0] + log_q[1]).exp() / (log_q[0] + log_q[1]).exp().detach()
        return (self.mass * density * (log_weights.logsumexp(0) - math.log(2))).sum()


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_gradient": "hybrid"},
        {"weight_gradient": "pathwise"},
        {"weight_gradient": "pathwise", "doubly_reparameterized": True},
        {"weight_gradient": "clustered", "doubly_reparameterized": True},
    ],
    ids=["clustered", "hybrid", "pathwise", "doubly", "doubly clustered"],
)
def test_gradients_are_those_of_the_bound(options, vectorized):
    """Integrated over a grid of the two samples, without chance."""
    parameters = leaves()
    grid = Grid(parameters)
    expected_bound = grid.bound(parameters)
    expected = torch.autograd.grad(expected_bound, parameters)
    options = dict(options)
    elbo = ImportanceWeighted_ELBO(
        2,
        doubly_reparameterized=options.pop("doubly_reparameterized", False),
        vectorize_particles=vectorized,
        max_plate_nesting=1,
    )
    run = functools.partial(guide, parameters=parameters, **options)
    with quantiles_for_samples(grid):
        loss = elbo.loss_and_grads(model, run, len(grid.mass), grid.mass)
    assert loss == pytest.approx(-expected_bound.item(), rel=1e-9)
    for leaf, gradient in zip(parameters, expected, strict=True):
        # the displacement integrates to 1e-6
        torch.testing.assert_close(-leaf.grad, gradient, rtol=1e-6, atol=2e-6)


def test_one_particle_is_the_elbo():
    results = []
    for objective in (ImportanceWeighted_ELBO, BaselinedTrace_ELBO):
        pyro.set_rng_seed(0)
        parameters = leaves()
        elbo = objective(max_plate_nesting=1, blending=False)
        run = functools.partial(guide, parameters=parameters)
        for _ in range(3):  # the baselines of both learn the same
            loss = elbo.loss_and_grads(model, run, 50)
        results.append((loss, *(leaf.grad for leaf in parameters)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("particles", [2, 7])
def test_each_datum_has_a_logarithm(particles):
    """And all that is inside of its plate lies within."""
    y, z = torch.tensor([0.5, -1.0, 2.0]), torch.randn(particles, 3)

    def model(subsample=None):
        with pyro.plate("data", 3, subsample=subsample) as index:
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            with pyro.plate("views", 2, dim=-2):
                pyro.sample("y", dist.Normal(x, 0.5), obs=torch.stack([y, y + 0.3])[:, index])

    def fixed(subsample=None):
        with pyro.plate("data", 3, subsample=subsample) as index:
            pyro.sample("x", _Fixed(0.3, 1.5, z[:, index].unsqueeze(-2)))

    def bounds(index):
        x = z[:, index]
        log_joint = dist.Normal(0.0, 1.0).log_prob(x)
        for shift in (0.0, 0.3):
            log_joint = log_joint + dist.Normal(x, 0.5).log_prob(y[index] + shift)
        log_weights = log_joint - dist.Normal(0.3, 1.5).log_prob(x)
        return log_weights.logsumexp(0) - math.log(particles)

    elbo = ImportanceWeighted_ELBO(particles, vectorize_particles=True, max_plate_nesting=2)
    assert elbo.loss(model, fixed) == pytest.approx(-bounds(slice(None)).sum().item())
    half = elbo.loss(model, fixed, torch.tensor([0, 2]))
    assert half == pytest.approx(-1.5 * bounds([0, 2]).sum().item())  # 3 / 2 for each of both


class _Fixed(dist.Normal):
    """A Normal whose draws are given."""

    def __init__(self, loc, scale, draws):
        super().__init__(loc, scale)
        self.draws = draws

    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance=_Fixed.__new__(_Fixed))
        new.draws = self.draws
        return new

    def rsample(self, sample_shape=torch.Size()):
        return self.draws.expand(self.batch_shape)


def test_it_agrees_with_pyros_bound_of_one_logarithm():
    """``RenyiELBO(alpha=0)`` takes one for all, which is what sites without a plate have."""

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(smooth_abs(z).squeeze(-1), 0.5), obs=OBSERVED.expand(3))

    def guide():
        parameters = (pyro.param(f"p{i}", leaf) for i, leaf in enumerate(leaves()))
        q = MixtureOfDiagNormals(*parameters, weight_gradient="pathwise")
        pyro.sample("z", q)

    results = []
    for objective in (ImportanceWeighted_ELBO, functools.partial(RenyiELBO, 0.0)):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        elbo = objective(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
        loss = elbo.loss_and_grads(model, guide)
        stored = pyro.get_param_store().named_parameters()
        results.append((loss, *(parameter.grad for _, parameter in stored)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def chain_model():
    with pyro.plate("data", 400):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a.sin(), 1.0))
        pyro.sample("y", dist.Normal(a + b, 0.7), obs=torch.tensor(1.2).expand(400))


def chain_guide(leaf):
    """The second sample's distribution depends on the first, by place and by scale."""
    with pyro.plate("data", 400):
        a = pyro.sample("a", dist.Normal(leaf[0], leaf[1].exp()))
        transforms = [dist.transforms.AffineTransform(leaf[4], 1.3)]
        inner = dist.Normal(leaf[2] * a, (leaf[3] + 0.4 * a.tanh()).exp())
        pyro.sample("b", TransformedDistribution(inner, transforms))


def test_doubly_reparameterized_samples_may_depend_on_each_other():
    """The same mean as that of the plain gradient, |z| < 4.5, with a tenth of its variance."""
    means, errors, variances = [], [], []
    for doubly in (False, True):
        elbo = ImportanceWeighted_ELBO(
            20, doubly_reparameterized=doubly, vectorize_particles=True, max_plate_nesting=1
        )
        leaf = torch.tensor([0.5, -0.3, 0.2, -0.4, 0.3], requires_grad=True)
        gradients = []
        for _ in range(100):
            leaf.grad = None
            elbo.loss_and_grads(chain_model, lambda leaf=leaf: chain_guide(leaf))
            gradients.append(leaf.grad)
        draws = torch.stack(gradients)
        means.append(draws.mean(0))
        errors.append(draws.std(0) / 10)
        variances.append(draws.var(0).sum())
    z = (means[0] - means[1]) / torch.hypot(*errors)
    assert z.abs().max() < 4.5
    assert variances[1] < 0.1 * variances[0]
    assert (means[1].abs() > 5 * errors[1]).all()  # so that a bias would show


def test_doubly_reparameterized_gradients_vanish_at_the_posterior():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    loc, log_scale = torch.tensor(0.5, requires_grad=True), torch.tensor(-0.5 * math.log(2))
    log_scale.requires_grad_()
    elbo = ImportanceWeighted_ELBO(8, doubly_reparameterized=True, vectorize_particles=True)
    elbo.loss_and_grads(model, lambda: pyro.sample("x", dist.Normal(loc, log_scale.exp())))
    assert abs(loc.grad) < 1e-12
    assert abs(log_scale.grad) < 1e-12


def test_the_model_learns_with_its_own_weights():
    """Of the doubly reparameterized gradient only the guide's part changes."""
    shift = torch.tensor(0.3, requires_grad=True)
    grads = []

    def shifted():
        z = pyro.sample("z", dist.Normal(shift, 2.0).expand([1]).to_event(1))
        pyro.sample("y", dist.Normal(smooth_abs(z).squeeze(-1), 0.5), obs=OBSERVED)

    for doubly in (False, True):
        pyro.set_rng_seed(0)
        shift.grad = None
        q = MixtureOfDiagNormals(*leaves(), weight_gradient="pathwise")
        elbo = ImportanceWeighted_ELBO(
            5, doubly_reparameterized=doubly, vectorize_particles=True, max_plate_nesting=1
        )
        elbo.loss_and_grads(shifted, lambda q=q: pyro.sample("z", q))
        grads.append(shift.grad)
    assert grads[0] == pytest.approx(grads[1].item(), rel=1e-12)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("vectorized", [True, False])
def test_discrete_sites(particles, vectorized):
    """The score term of a site without ``rsample`` is unbiased: against the sum, |z| < 4.5."""
    logit = torch.tensor(0.4, requires_grad=True)
    log_p = torch.tensor([0.3, 0.7]).log() + dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(
        torch.tensor(1.8)
    )

    def model():
        with pyro.plate("data", 300):
            a = pyro.sample("a", dist.Bernoulli(0.7))
            pyro.sample("y", dist.Normal(2 * a, 1.0), obs=torch.tensor(1.8).expand(300))

    def guide():
        with pyro.plate("data", 300):
            pyro.sample("a", dist.Bernoulli(logits=logit))

    q = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)])
    cases = torch.cartesian_prod(*[torch.arange(2)] * particles).reshape(-1, particles)
    log_w = (log_p - q.log())[cases]
    exact = (q[cases].prod(-1) * (log_w.logsumexp(-1) - math.log(particles))).sum()
    (expected,) = torch.autograd.grad(exact, logit)
    elbo = ImportanceWeighted_ELBO(
        particles,
        vectorize_particles=vectorized,
        max_plate_nesting=1,
    )
    draws = []
    for _ in range(60):
        logit.grad = None
        elbo.loss_and_grads(model, guide)
        draws.append(-logit.grad / 300)
    draws = torch.stack(draws)
    assert abs(draws.mean() - expected) < 4.5 * draws.std() / 60**0.5


def test_leave_one_out_ignores_what_it_leaves_out():
    log_weights = torch.randn(5, 3)
    changed = log_weights.clone()
    changed[2] += 7.0
    found, after = leave_one_out(log_weights), leave_one_out(changed)
    assert torch.equal(found[2], after[2])
    others = log_weights[[0, 1, 3, 4]]
    mean = torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0) - math.log(5)
    torch.testing.assert_close(found[2], mean)
    huge = torch.tensor([[1000.0], [0.0], [-math.inf]])
    assert leave_one_out(huge)[0].item() == pytest.approx(-math.log(3))  # 1, and no weight
    assert torch.equal(leave_one_out(huge)[2], torch.tensor([1000.0 - math.log(3)]))


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_site_outside_of_the_logarithms(vectorized):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(z.sum(-1, True), 1.0), obs=torch.tensor(1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    elbo = ImportanceWeighted_ELBO(3, vectorize_particles=vectorized, max_plate_nesting=1)
    with pytest.raises(NotImplementedError, match=r"'total' to depend on no sample.*\['data'\]"):
        elbo.loss(model, guide)


def test_refusals():
    discrete = ImportanceWeighted_ELBO(2, doubly_reparameterized=True, max_plate_nesting=0)
    with pytest.raises(NotImplementedError, match=r"without rsample at \['a'\]"):
        discrete.loss_and_grads(
            lambda: pyro.sample("a", dist.Bernoulli(0.5)),
            lambda: pyro.sample("a", dist.Bernoulli(torch.tensor(0.3, requires_grad=True))),
        )
    with pytest.raises(ValueError, match="baseline_decay < 1"):
        ImportanceWeighted_ELBO(baseline_decay=1.0)
    other = SimpleNamespace(model=lambda: model(3), guide=lambda: None)
    with pytest.raises(ValueError, match="each latent site of the model in the guide"):
        ImportanceWeighted_ELBO(2, max_plate_nesting=1).loss(other.model, other.guide)


def test_state():
    parameters = leaves()
    run = functools.partial(guide, parameters=parameters)
    elbo = ImportanceWeighted_ELBO(max_plate_nesting=1)
    for _ in range(3):
        elbo.loss_and_grads(model, run, 3)
    other = ImportanceWeighted_ELBO(max_plate_nesting=1)
    other.load_state_dict(elbo.state_dict())
    grads = []
    for each in (elbo, other):
        pyro.set_rng_seed(1)
        parameters[-1].grad = None
        each.loss_and_grads(model, run, 3)
        grads.append(parameters[-1].grad)
    assert torch.equal(*grads)


def test_evaluation_is_that_of_trace_elbo_for_one_particle():
    run = functools.partial(guide, parameters=leaves())
    losses = []
    for elbo in (ImportanceWeighted_ELBO(max_plate_nesting=1), Trace_ELBO(max_plate_nesting=1)):
        pyro.set_rng_seed(2)
        losses.append(elbo.loss(model, run, 7))
    assert losses[0] == pytest.approx(losses[1])
