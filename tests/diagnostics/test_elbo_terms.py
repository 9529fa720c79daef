"""Terms of the ELBO: the identities between them, and their values where those are known."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mixtures import estimators
from pyro_mixtures.diagnostics import elbo_terms
from pyro_mixtures.diagnostics.encodings import Encodings, aggregate
from pyro_mixtures.nn import ConditionalMixture, HierarchicalPrior, MixturePrior, VampPrior
from tests.diagnostics.linear_gaussian import LinearGaussian, SigmaNormal
from tests.registry import randn


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def assert_identities(found):
    """VAE, DVAE and MAXENT forms, and the total correlation where the prior is a product."""
    close(found.elbo, -found.distortion - found.rate)
    close(found.rate, found.mutual_information + found.marginal_kl)
    close(found.elbo, -found.distortion - found.mutual_information - found.marginal_kl)
    close(found.elbo, -found.distortion + found.entropy - found.cross_entropy)
    close(found.marginal_kl, found.total_correlation + found.dimension_kl.sum())


# values that are known


def known(linear, x):
    """Means over the data of what is quadratic in z."""
    loc, scale = linear.means(x), linear.scale
    q = dist.Normal(loc, scale).to_event(1)
    spread = (linear.factor * scale).square().sum() / (2 * linear.noise**2)
    distortion = -linear.decoder(loc).log_prob(x) + spread
    rate = kl_divergence(q, linear.prior())
    return {"distortion": distortion, "rate": rate, "entropy": q.entropy()}, q


@pytest.mark.parametrize("size", [1, 2, 4])
def test_forms_on_a_linear_gaussian_model(size):
    """By draws that are exact for quadratic functions: EM, VAE and MAXENT forms."""
    torch.manual_seed(size)
    linear, SigmaNormal.turn = LinearGaussian(size, normal=SigmaNormal), 0
    x = linear.evidence().sample((7,))
    found = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=2 * size)
    exact, q = known(linear, x)
    for name, values in exact.items():
        close(getattr(found, name), values.mean())
    close(found.cross_entropy, (exact["rate"] + exact["entropy"]).mean())
    full = MultivariateNormal(q.base_dist.loc, scale_tril=q.base_dist.scale.diag_embed())
    gap = kl_divergence(full, linear.posterior(x))
    close(found.elbo, (linear.evidence().log_prob(x) - gap).mean())
    close(found.activity, linear.means(x).var(0, unbiased=False))
    assert_identities(found)


@pytest.mark.parametrize(
    ("centers", "correlation"),
    [
        (torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)), 0.0),
        (torch.arange(4.0).unsqueeze(-1).expand(4, 2), math.log(4)),
    ],
    ids=["product", "diagonal"],
)
def test_all_terms_where_encodings_are_apart(centers, correlation):
    """Posteriors that are the same within a cluster, and do not overlap between them."""
    torch.manual_seed(0)
    linear, SigmaNormal.turn = LinearGaussian(2, 2, normal=SigmaNormal), 0
    linear.weight, linear.shift = torch.eye(2).double(), torch.zeros(2).double()
    x = (60 * centers).double().repeat(5, 1)
    found = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=4)
    exact, q = known(linear, x)
    clusters = math.log(len(centers))
    close(found.mutual_information, clusters)
    close(found.marginal_kl, exact["rate"].mean() - clusters)
    close(found.total_correlation, correlation)
    each = kl_divergence(q.base_dist, dist.Normal(0.0, 1.0)).mean(0)
    places = math.log(len(centers[:, 0].unique()))
    close(found.dimension_kl, each - places)
    assert_identities(found)
    assert found.active_units == 2
    assert found.log_q_bias == 0


def test_all_terms_by_quadrature():
    """Of overlapping posteriors in two dimensions."""
    torch.manual_seed(0)
    linear = LinearGaussian(2)
    x = linear.evidence().sample((5,))
    found = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=700)
    axis = torch.linspace(-14, 14, 561).double()
    step = 28 / 560
    z = torch.cartesian_prod(axis, axis)
    prior = linear.prior()
    each = linear.encoder(x).log_prob(z.unsqueeze(1))  # (561 * 561, 5)
    log_q = each.logsumexp(-1) - math.log(5)
    table = log_q.reshape(561, 561).exp()
    ones, twos = table.sum(1) * step, table.sum(0) * step
    log_p = dist.Normal(0.0, 1.0).log_prob(axis)
    exact = {
        "mutual_information": (each.exp() / 5 * (each - log_q.unsqueeze(-1))).sum() * step**2,
        "marginal_kl": (log_q.exp() * (log_q - prior.log_prob(z))).sum() * step**2,
        "total_correlation": (table * (table.log() - ones.log().unsqueeze(-1) - twos.log())).sum()
        * step**2,
        "dimension_kl": torch.stack(
            [(each * (each.log() - log_p)).sum() * step for each in (ones, twos)]
        ),
        "rate": kl_divergence(linear.encoder(x), prior).mean(),
    }
    for name, expected in exact.items():  # 6 scores: false alarm 1e-4
        score = (getattr(found, name) - expected) / found.errors[name]
        assert score.abs().max() < 4.3, name
        assert expected.abs().max() > 5 * found.errors[name].max(), name
    assert_identities(found)


def test_exact_posteriors_leave_no_gap():
    """The EM form: each draw has the evidence."""
    torch.manual_seed(0)
    linear = LinearGaussian(3)
    x = linear.evidence().sample((6,))

    def guide(x):
        posterior = linear.posterior(x)
        q = dist.MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    found = elbo_terms(linear.model, guide, x, plate="data")
    close(found.elbo, linear.evidence().log_prob(x).mean())
    close(found.errors["elbo"], 0.0)
    assert_identities(found)


def test_a_collapsed_posterior_tells_nothing():
    torch.manual_seed(0)
    linear = LinearGaussian(2)
    linear.weight, linear.shift, linear.scale = (
        torch.zeros(2, 3).double(),
        torch.zeros(2).double(),
        torch.ones(2).double(),
    )
    found = elbo_terms(linear.model, linear.guide, randn(6, 3), plate="data")
    for name in ("rate", "mutual_information", "marginal_kl", "total_correlation"):
        close(getattr(found, name), 0.0)
    close(found.dimension_kl, torch.zeros(2))
    assert found.active_units == 0


def test_the_best_prior_is_the_mean_of_posteriors():
    """As a VampPrior whose pseudo-inputs are the data: KL(q(z) || p(z)) is zero."""
    torch.manual_seed(0)
    linear = LinearGaussian(2)
    x = linear.evidence().sample((6,))
    before = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=150)
    linear.prior = VampPrior(linear.encoder, x)
    found = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=150)
    close(found.marginal_kl, 0.0)
    close(found.rate, found.mutual_information)
    close(found.dimension_kl, torch.zeros(2))  # by the marginals of the mixture
    assert found.elbo > before.elbo


# against the distributions' own densities, at the same draws


def recorded(name, encoder, drawn):
    def guide(x):
        with pyro.plate("data", len(x)):
            drawn.append(pyro.sample(name, encoder(x)))

    return guide


@pytest.mark.parametrize("family", ["diagonal", "shared_diagonal", "scale", "full", "shared_full"])
def test_mixture_posteriors(family):
    torch.manual_seed(0)
    encoder = ConditionalMixture(3, 2, 4, family=family, init_spread=2.0).double()
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(0.4 * torch.randn_like(value))
    prior = MixturePrior(2, 3).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    drawn, x = [], randn(8, 3)
    found = elbo_terms(model, recorded("z", encoder, drawn), x, plate="data", num_samples=5)
    q, p = encoder(x), prior()
    z = torch.stack(drawn).detach()  # (5, 8, 2)

    def log_q(each, z):
        own = each.log_prob(z).mean()
        log_prob = each.log_prob(z.unsqueeze(2)).logsumexp(-1) - math.log(8)
        return own, log_prob.mean()

    own, mean = log_q(q, z)
    close(found.entropy, -own)
    close(found.mutual_information, own - mean)
    close(found.cross_entropy, -p.log_prob(z).mean())
    parts = torch.stack([log_q(q.marginal([i]), z[..., i : i + 1])[1] for i in range(2)])
    close(found.total_correlation, mean - parts.sum())
    marginals = torch.stack([p.marginal([i]).log_prob(z[..., i : i + 1]).mean() for i in range(2)])
    close(found.dimension_kl, parts - marginals)
    close(found.activity, q.mean.var(0, unbiased=False))


def test_estimators_change_no_term():
    torch.manual_seed(0)
    linear = LinearGaussian(2)
    encoder, x = ConditionalMixture(3, 2, 3).double(), randn(6, 3)
    found = []
    for estimator in (estimators.pathwise, estimators.score, estimators.stratified):
        linear.encoder = lambda x, estimator=estimator: estimator(encoder(x))
        found.append(elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=150))
        assert_identities(found[-1])
    for name in found[0].errors:
        for other in found[1:]:
            error = (found[0].errors[name].square() + other.errors[name].square()).sqrt()
            scores = (getattr(other, name) - getattr(found[0], name)) / error
            assert scores.abs().max() < 4.6, name  # of 20: false alarm 1e-4


def test_several_sites_are_one_vector():
    """In plates of other places, with scalars."""
    torch.manual_seed(0)
    x = randn(6, 1)

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("a", dist.Normal(x / 2, 0.5))
            pyro.sample("b", dist.Normal(torch.stack([x, -x], -1) / 3, 0.4).to_event(1))

    def joined(x):
        with pyro.plate("data", len(x)):
            loc = torch.cat([x / 2, x / 3, -x / 3], -1)
            scale = torch.tensor([0.5, 0.4, 0.4]).double()
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def joint(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    found = elbo_terms(model, guide, x, plate="data", num_samples=400)
    other = elbo_terms(joint, joined, x, plate="data", num_samples=400)
    assert_identities(found)
    assert found.dimension_kl.shape == found.activity.shape == (3,)
    for name in found.errors:
        error = (found.errors[name].square() + other.errors[name].square()).sqrt()
        scores = (getattr(found, name) - getattr(other, name)) / error
        assert scores.abs().max() < 4.6, name  # of 12: false alarm 1e-4
    close(found.activity, other.activity)


def test_a_hierarchy_in_one_site():
    torch.manual_seed(0)
    prior = HierarchicalPrior(MixturePrior(1, 2), ConditionalMixture(1, 1, 2))
    encoder = ConditionalMixture(3, 2, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    found = elbo_terms(model, guide, torch.randn(6, 3), plate="data")
    assert found.dimension_kl is None
    assert "of coordinates" not in str(found)
    close(found.rate, found.mutual_information + found.marginal_kl)


def test_single_precision():
    torch.manual_seed(0)
    linear = LinearGaussian(2, normal=SigmaNormal)
    x, found = linear.evidence().sample((6,)), []
    for dtype in (torch.float64, torch.float32):
        SigmaNormal.turn = 0
        for name in ("factor", "offset", "weight", "shift", "scale"):
            setattr(linear, name, getattr(linear, name).to(dtype))
        linear.prior = lambda dtype=dtype: dist.Normal(torch.zeros(2, dtype=dtype), 1).to_event(1)
        found.append(
            elbo_terms(linear.model, linear.guide, x.to(dtype), plate="data", num_samples=4)
        )
    for name in found[0].errors:
        one, two = (getattr(each, name) for each in found)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


# estimates by a minibatch


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("count", [3, 4])
def test_the_estimate_is_unbiased(count, full):
    """The mean over all minibatches is q(z), for the vector and each coordinate."""
    torch.manual_seed(0)
    locs, scales = randn(5, 2, 2), 0.5 + randn(5, 2, 2).abs()
    scales = scales.diag_embed() + 0.3 * randn(5, 2, 2, 2).tril(-1) if full else scales
    sites = [Encodings(randn(5, 2).log_softmax(-1), locs, scales)]
    z = [randn(5, 2)]
    exact = aggregate(sites, z, torch.arange(5))
    each = [
        aggregate(sites, z, torch.tensor(index))
        for index in itertools.combinations(range(5), count)
    ]
    for name in ("log_prob", "coordinates"):
        mean = torch.stack([getattr(one, name).exp() for one in each]).mean(0)
        close(mean, getattr(exact, name).exp())
    assert torch.equal(exact.bias, torch.zeros(5).double())


def test_the_bias_is_told():
    torch.manual_seed(0)
    linear = LinearGaussian(1, 1)
    linear.weight, linear.scale = torch.ones(1, 1).double(), torch.tensor([0.3]).double()
    x = randn(60, 1)
    exact = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=150)
    found = elbo_terms(linear.model, linear.guide, x, plate="data", num_samples=500, minibatch=10)
    bias = found.mutual_information - exact.mutual_information
    error = float(
        (found.errors["mutual_information"] ** 2 + exact.errors["mutual_information"] ** 2) ** 0.5
    )
    assert bias > 4 * error  # too high
    assert abs(bias + found.log_q_bias) < 0.25 * bias + 4 * error
    assert found.marginal_kl < exact.marginal_kl
    assert_identities(found)
    assert "log q(z) by 10, bias" in str(found)
    assert found.minibatch == 10
