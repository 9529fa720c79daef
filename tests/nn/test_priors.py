"""Priors: what they are, their divergences by quadrature, and that SVI trains them."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    estimators,
)
from pyro_mixtures.nn import (
    ConditionalMixture,
    HierarchicalPrior,
    MixturePrior,
    VampPrior,
    prior_kl,
)
from tests.registry import randn

GRID = torch.linspace(-30, 30, 6001).double()
STEP = 60 / 6000


class Encoder(torch.nn.Module):
    """One Normal for each input."""

    def __init__(self, features, size, full=False):
        super().__init__()
        self.net = torch.nn.Linear(features, 2 * size).double()
        self.full = full

    def forward(self, x):
        loc, raw = self.net(x).chunk(2, -1)
        scale = raw.exp()
        if self.full:
            return dist.MultivariateNormal(
                loc,
                scale_tril=scale.diag_embed()
                + 0.1 * loc.new_ones(scale.shape[-1], scale.shape[-1]).tril(-1),
            )
        return dist.Normal(loc, scale).to_event(1)


def trained(module, size=0.5):
    """Away from the start, in float64."""
    module = module.double()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(size * torch.randn_like(value))
    return module


def mixtures(size, features=3, **options):
    return trained(ConditionalMixture(features, size, 3, **options))


def vamp(size, encoder=None):
    encoder = Encoder(4, size) if encoder is None else encoder
    return trained(VampPrior(encoder, torch.rand(6, 4).double(), lo=0.0, hi=1.0))


def hierarchy(size=1):
    return HierarchicalPrior(trained(MixturePrior(1, 2)), mixtures(size, features=1))


PRIORS = {
    "mixture": lambda: trained(MixturePrior(1, 4))(),
    "vamp": lambda: vamp(1)(),
    "vamp of mixtures": lambda: vamp(1, mixtures(1, features=4))(),
    "conditional": lambda: mixtures(1)(randn(3)),
}
POSTERIORS = {
    "normal": lambda: dist.Normal(randn(1), 0.7 * torch.ones(1).double()).to_event(1),
    "mixture": lambda: mixtures(1)(randn(3)),
}


def by_quadrature(q, p):
    """Of distributions of event shape (1,)."""
    log_q, log_p = (each.log_prob(GRID.unsqueeze(-1)) for each in (q, p))
    return (log_q.exp() * (log_q - log_p)).sum() * STEP


# divergences


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_divergences_in_one_dimension(prior, posterior):
    torch.manual_seed(0)
    p, q = PRIORS[prior](), POSTERIORS[posterior]()
    exact = by_quadrature(q, p).detach()
    draws = torch.stack([prior_kl(q, p, num_samples=500) for _ in range(40)]).detach()
    # false alarm 1e-4 of t with 39 degrees of freedom
    assert (draws.mean() - exact).abs() < 4.4 * draws.std() / 40**0.5
    low, high = (prior_kl(q, p, way=f"{side}_bound") for side in ("lower", "upper"))
    assert low <= exact <= high


@pytest.mark.parametrize("name", ["locs", "raw_scale", "component_logits"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_gradients_in_one_dimension(name, posterior):
    """Those of the prior's parameters and, for a mixture, those of the posterior's weights."""
    torch.manual_seed(1)
    prior = trained(MixturePrior(1, 3))
    q = POSTERIORS[posterior]()
    wanted = [getattr(prior, name)]
    if posterior == "mixture":
        logits = q.component_logits.detach().requires_grad_()
        q = MixtureOfDiagNormals(q.locs.detach(), q.coord_scale.detach(), logits)
        wanted.append(logits)

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, wanted)])

    exact = gradient(by_quadrature(q, prior()))
    draws = torch.stack([gradient(prior_kl(q, prior(), num_samples=300)) for _ in range(60)])
    error = draws.std(0) / 60**0.5 + 1e-9
    assert ((draws.mean(0) - exact) / error).abs().max() < 4.8  # of at most 6: false alarm 1e-4


def test_divergences_of_single_normals_are_exact():
    torch.manual_seed(0)
    q = dist.Normal(randn(5, 2), 0.3).to_event(1)
    one = MixturePrior(2, 1).double()()
    same = dist.Normal(one.locs[0], one.coord_scale[0]).to_event(1)
    exact = torch.distributions.kl_divergence(q, same)
    torch.testing.assert_close(prior_kl(q, same), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior_kl(q, one), exact, rtol=1e-10, atol=1e-10)
    full = dist.MultivariateNormal(one.locs[0], scale_tril=one.coord_scale[0].diag())
    torch.testing.assert_close(prior_kl(q, full), exact, rtol=1e-10, atol=1e-10)
    assert not torch.equal(prior_kl(q, one, way="sampled"), prior_kl(q, one, way="sampled"))


SINGLE = {
    "diagonal": lambda loc, scale: dist.Normal(loc, scale).to_event(1),
    "full": lambda loc, scale: dist.MultivariateNormal(loc, scale_tril=scale.diag_embed()),
    "mixture of one": lambda loc, scale: MixtureOfDiagNormals(
        loc.unsqueeze(-2), scale.unsqueeze(-2), torch.zeros(1)
    ),
    "full mixture of one": lambda loc, scale: MixtureOfNormals(
        loc.unsqueeze(-2), scale.diag_embed().unsqueeze(-3), torch.zeros(1)
    ),
    "estimator": lambda loc, scale: estimators.score(SINGLE["mixture of one"](loc, scale)),
}


@pytest.mark.parametrize("prior", SINGLE)
@pytest.mark.parametrize("posterior", SINGLE)
def test_single_normals_of_any_form_are_exact(posterior, prior):
    """No samples: twice the same, with the same gradient."""
    torch.manual_seed(0)
    values = [randn(5, 2), randn(5, 2).exp(), randn(2), randn(2).exp()]
    for each in values:
        each.requires_grad_()
    q, p = SINGLE[posterior](*values[:2]), SINGLE[prior](*values[2:])
    one, two = (dist.Normal(*values[i : i + 2]).to_event(1) for i in (0, 2))
    exact = torch.distributions.kl_divergence(one, two)
    found = prior_kl(q, p)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    pairs = zip(*(torch.autograd.grad(kl.sum(), values) for kl in (found, exact)), strict=True)
    for gradient, same in pairs:
        torch.testing.assert_close(gradient, same, rtol=1e-9, atol=1e-9)


def test_the_upper_bound_is_that_of_the_joint_with_the_label():
    """Of one Normal: KL(q(c) || p(c)) + sum_c q(c) KL(q || p_c), at the best q(c)."""
    torch.manual_seed(0)
    p = trained(MixturePrior(2, 4))()
    q = dist.Normal(randn(5, 2), 0.3).to_event(1)
    each = torch.stack(
        [
            torch.distributions.kl_divergence(q, dist.Normal(loc, scale).to_event(1))
            for loc, scale in zip(p.locs, p.coord_scale, strict=True)
        ],
        -1,
    )
    label = (p.log_weights - each).log_softmax(-1)
    joint = (label.exp() * (label - p.log_weights + each)).sum(-1)
    torch.testing.assert_close(prior_kl(q, p, way="upper_bound"), joint)


def joint_by_quadrature(q2, q1, prior):
    """Of one coordinate for each level."""
    axis = torch.linspace(-12, 12, 801).double()
    z1, z2 = torch.meshgrid(axis, axis, indexing="ij")
    z = torch.stack([z1, z2], -1)
    log_q = q2.log_prob(z[..., 1:]) + q1(z[..., 1:]).log_prob(z[..., :1])
    log_p = prior().log_prob(z)
    return (log_q.exp() * (log_q - log_p)).sum() * (24 / 800) ** 2


@torch.no_grad()
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_hierarchies_by_quadrature(posterior):
    torch.manual_seed(0)
    prior, q2 = hierarchy(), POSTERIORS[posterior]()

    def q1(z2):
        return dist.Normal(0.5 * z2, 0.8).to_event(1)

    exact = joint_by_quadrature(q2, q1, prior)
    draws = torch.stack([prior.kl_divergence(q2, q1, num_samples=300) for _ in range(40)])
    assert (draws.mean() - exact).abs() < 4.4 * draws.std() / 40**0.5  # false alarm 1e-4


def test_gradients_of_hierarchies():
    """Of the weights of a mixture on top, whose score function has to meet the lower level."""
    torch.manual_seed(0)
    prior = hierarchy()
    logits = torch.tensor([0.3, -0.5]).double().requires_grad_()
    q2 = MixtureOfDiagNormals(torch.tensor([[-3.0], [2.0]]).double(), torch.ones(2, 1), logits)

    def q1(z2):
        return dist.Normal(0.5 * z2, 0.8).to_event(1)

    (exact,) = torch.autograd.grad(joint_by_quadrature(q2, q1, prior), logits)
    draws = torch.stack(
        [
            torch.autograd.grad(prior.kl_divergence(q2, q1, num_samples=300), logits)[0]
            for _ in range(60)
        ]
    )
    error = draws.std(0) / 60**0.5
    assert ((draws.mean(0) - exact) / error).abs().max() < 4.5  # of 2: false alarm 1e-4


@torch.no_grad()
def test_the_joint_is_a_distribution_of_both_levels():
    torch.manual_seed(0)
    prior = hierarchy()
    p = prior()
    z = p.sample((20_000,))
    z1, z2 = p.split(z)
    assert z.shape == (20_000, 2)
    expected = prior.top().log_prob(z2) + prior.conditional(z2).log_prob(z1)
    torch.testing.assert_close(p.log_prob(z), expected)
    moment = prior.conditional(prior.top().sample((20_000,))).mean.mean()
    assert (z1.mean() - moment).abs() < 4 * 2**0.5 * z1.std() / 20_000**0.5  # false alarm 6e-5
    assert p.expand((3,)).sample((4,)).shape == (4, 3, 2)
    nested = HierarchicalPrior(prior, mixtures(2, features=2))
    assert nested().sample().shape == (4,)


@torch.no_grad()
def test_exact_levels_have_no_noise_of_their_own():
    torch.manual_seed(0)
    prior = HierarchicalPrior(
        trained(MixturePrior(1, 1)), trained(ConditionalMixture(1, 1, 1, hidden=(4,)))
    )
    p = prior()
    one, two = (dist.Normal(torch.zeros(n).double(), 1.0).to_event(1) for n in (1, 2))
    draws = torch.stack([prior_kl(two, p, num_samples=300) for _ in range(40)])
    parts = torch.stack(
        [prior.kl_divergence(one, lambda z2: one, num_samples=300) for _ in range(40)]
    )
    error = (draws.var() + parts.var()).sqrt() / 40**0.5
    assert (draws.mean() - parts.mean()).abs() < 4.4 * error
    assert parts.std() < 0.7 * draws.std()


# mixtures of posteriors


@pytest.mark.parametrize("family", ["diagonal", "shared_diagonal", "scale", "full", "shared_full"])
def test_a_vamp_prior_is_the_mean_of_posteriors(family):
    torch.manual_seed(0)
    prior = vamp(2, mixtures(2, features=4, family=family))
    p, z = prior(), randn(10, 2)
    assert p.num_components == 18
    assert type(p) is (MixtureOfNormals if "full" in family else MixtureOfDiagNormals)
    each = prior.encoder(prior.pseudo_inputs).log_prob(z.unsqueeze(1))  # (10, 6)
    torch.testing.assert_close(p.log_prob(z), each.logsumexp(-1) - math.log(6))


@pytest.mark.parametrize("full", [False, True])
def test_of_an_encoder_of_normals(full):
    torch.manual_seed(0)
    prior = vamp(3, Encoder(4, 3, full))
    p, z = prior(), randn(10, 3)
    assert p.num_components == 6
    each = prior.encoder(prior.pseudo_inputs).log_prob(z.unsqueeze(1))
    torch.testing.assert_close(p.log_prob(z), each.logsumexp(-1) - math.log(6))


def test_of_an_encoder_with_an_estimator():
    torch.manual_seed(0)
    encoder = mixtures(2, features=4)
    prior = VampPrior(lambda x: estimators.score(encoder(x)), torch.rand(6, 4).double())
    same = VampPrior(encoder, prior.pseudo_inputs)
    z = randn(10, 2)
    torch.testing.assert_close(prior().log_prob(z), same().log_prob(z))
    q = estimators.implicit(encoder(randn(4)))
    low, high = (prior_kl(q, prior(), way=f"{side}_bound") for side in ("lower", "upper"))
    assert low < prior_kl(q, prior(), num_samples=10_000) < high


def test_pseudo_inputs_stay_within_their_interval():
    torch.manual_seed(0)
    start = torch.tensor([[0.0, 1.0, 0.3, 0.995]])
    prior = VampPrior(Encoder(4, 1).float(), start, lo=0, hi=1)
    expected = torch.tensor([[0.01, 0.99, 0.3, 0.99]])
    torch.testing.assert_close(prior.pseudo_inputs, expected)
    trained(prior, size=100.0)
    assert ((prior.pseudo_inputs >= 0) & (prior.pseudo_inputs <= 1)).all()
    free = VampPrior(Encoder(4, 1).float(), start)
    assert torch.equal(free.pseudo_inputs, start)
    free.pseudo_inputs.sum().backward()
    assert not start.requires_grad  # the data stay as they are
    assert free.raw_inputs.grad is not None


# the start


def test_a_mixture_prior_starts_spread_out_or_where_it_is_told():
    torch.manual_seed(0)
    p = MixturePrior(3, 5, init_spread=10.0)()
    assert torch.allclose(p.locs.sort(0).values, torch.linspace(-10, 10, 5).unsqueeze(-1))
    assert torch.allclose(p.coord_scale, torch.tensor(5.0))
    assert torch.allclose(p.log_weights.exp(), torch.tensor(0.2))
    assert not torch.equal(p.locs[:, 0], p.locs[:, 1])
    start = MixtureOfDiagNormals(100 * torch.randn(5, 3), torch.rand(5, 3) + 1, torch.randn(5))
    prior = MixturePrior(3, 5).start_at(start)
    found = prior()
    assert torch.allclose(found.locs, start.locs, rtol=1e-4)
    assert torch.allclose(found.coord_scale, start.coord_scale, rtol=1e-3)
    assert torch.allclose(found.log_weights, start.log_weights, atol=1e-5)
    assert torch.allclose(prior.unit, start.stddev)
    for copied in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert torch.equal(copied().locs, found.locs)
    again = MixturePrior(3, 5)
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again().locs, found.locs)


def test_it_starts_at_samples():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(300, 2) + 40, torch.randn(900, 2) - 40])
    p = MixturePrior(2, 2).init_from(z)()
    assert torch.allclose(p.log_weights.exp().sort().values, torch.tensor([0.25, 0.75]), atol=1e-3)
    assert torch.allclose(p.coord_scale, torch.ones(2, 2), atol=0.15)


# training

POINTS = torch.tensor([[-4.0, -4.0], [4.0, 4.0]]).repeat(20, 1)


def fit(prior, encoder, elbo, steps=250):
    """A model that sees its latent with little noise; the first and the last losses."""
    pyro.clear_param_store()
    torch.manual_seed(0)

    def model(x):
        pyro.module("prior", prior)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z[..., :2], 0.3).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), elbo)
    data = POINTS + 0.3 * torch.randn(len(POINTS), 2)
    losses = [svi.step(data) / len(data) for _ in range(steps)]
    return sum(losses[:10]) / 10, sum(losses[-10:]) / 10


@pytest.mark.parametrize("name", ["mixture", "vamp", "vamp of mixtures", "hierarchical"])
def test_svi_trains_them(name):
    torch.manual_seed(0)
    size = 3 if name == "hierarchical" else 2
    count = 2 if name == "vamp of mixtures" else 1
    encoder = ConditionalMixture(2, size, count, hidden=(16,))
    prior = {
        "mixture": lambda: MixturePrior(2, 2),
        "vamp": lambda: VampPrior(encoder, POINTS[:4].clone()),
        "vamp of mixtures": lambda: VampPrior(encoder, POINTS[:4].clone(), lo=-9.0, hi=9.0),
        "hierarchical": lambda: HierarchicalPrior(
            MixturePrior(1, 2), ConditionalMixture(1, 2, 1, hidden=(8,))
        ),
    }[name]()
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    elbo = SIWAE_ELBO() if count == 2 else BaselinedTrace_ELBO(num_particles=2)
    first, last = fit(prior, encoder, elbo)
    moved = [key for key, value in prior.named_parameters() if not torch.equal(value, before[key])]
    assert set(moved) == {key for key, _ in prior.named_parameters()}
    # log p(x) of two clusters of scale 0.3 * 2 ** 0.5 is -2.8; by a standard Normal it is -17
    assert last < min(6.0, first)


def test_classes_have_their_own_prior():
    """p(z | y) by a conditional mixture of one-hot labels."""
    torch.manual_seed(0)
    prior = ConditionalMixture(2, 2, 1, init_spread=3.0)
    encoder = ConditionalMixture(2, 2, 1, hidden=(16,))
    labels = torch.eye(2).repeat(20, 1)

    def model(x):
        pyro.module("prior", prior)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(labels))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(300):
        svi.step(POINTS)
    assert torch.allclose(prior(torch.eye(2)).mean, POINTS[:2], atol=1.0)
