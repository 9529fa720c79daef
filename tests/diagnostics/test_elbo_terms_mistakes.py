"""What elbo_terms refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import AutoDiagonalNormalMixture
from pyro_mixtures.diagnostics import elbo_terms
from pyro_mixtures.nn import ConditionalMixture, HierarchicalPrior, MixturePrior

X = torch.linspace(-1, 1, 6)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7))


def refused(message, model=model, guide=guide, x=X, error=ValueError, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    with pytest.raises(error, match=message):
        elbo_terms(model, guide, x, **{"plate": "data", **options})


def test_numbers():
    refused("num_samples to be an integer >= 2, but got 1", num_samples=1)
    refused("minibatch to be an integer >= 3, but got 2", minibatch=2)
    refused("minibatch below the number of data, 6, or None .* but got 6", minibatch=6)
    refused("at least 2 data, .* but got 1", x=X[:1])


def test_plates():
    refused("all sites in plate 'rows'.*site 'z' of the model outside", plate="rows")

    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=3) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.7))

    def of_a_subsample(x):
        with pyro.plate("data", len(x), subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    refused("'data' without a subsample, but got 3 of 6", of_a_subsample, subsampled)

    def nested(x):
        with pyro.plate("data", len(x)), pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(4, -1))

    def nested_guide(x):
        with pyro.plate("data", len(x)), pyro.plate("rows", 4):
            pyro.sample("z", dist.Normal((x / 2).expand(4, -1), 0.7))

    refused(r"'z' .* plate of the 6 data alone, .* \(4, 6\): make", nested, nested_guide)


def test_other_weights_of_latents():
    for owner in ("model", "guide"):
        scaled = {"model": model, "guide": guide}
        scaled[owner] = pyro.poutine.scale(scaled[owner], scale=0.5)
        refused(f"no scale at the latent site 'z' of the {owner}, but got 0.5", **scaled)
        masked = {"model": model, "guide": guide}
        masked[owner] = pyro.poutine.mask(masked[owner], mask=X > 0)
        refused(f"no mask at the latent site 'z' of the {owner}", **masked)


def test_posteriors():
    def lognormal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x, 1.0))

    refused("is for mixtures of Normals.*LogNormal", guide=lognormal, error=NotImplementedError)

    def with_dropout(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.nn.functional.dropout(x), 0.7))

    refused("posteriors that are functions of the data.*eval", guide=with_dropout)

    def with_more(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.sample("y", dist.Normal(x, 1.0), infer={"is_auxiliary": True})

    refused("nothing but the latent sites of the model, but got y", guide=with_more)
    packed = AutoDiagonalNormalMixture(model, 2)
    refused("outside of it", guide=packed)


def test_priors():
    def of_labels(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal((x > 0).float(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    refused("the prior of 'z' to be the same for all data", of_labels)
    prior = HierarchicalPrior(MixturePrior(1, 2), ConditionalMixture(1, 1, 1, hidden=(4,)))

    def of_two_sites(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", prior.top())
            z1 = pyro.sample("z1", prior.conditional(3 * z2))
            pyro.sample("x", dist.Normal(z1.squeeze(-1), 1.0), obs=x)

    def both(x):
        with pyro.plate("data", len(x)):
            for name in ("z1", "z2"):
                pyro.sample(name, dist.Normal(x.unsqueeze(-1), 1.0).to_event(1))

    refused("the prior of 'z1' to be the same for all data", of_two_sites, both)


@pytest.mark.parametrize("size", [1, 3])
def test_a_prior_of_another_size(size):
    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", MixturePrior(2, 2)())

    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, size), 1.0).to_event(1))

    refused(rf"guide to sample z of event shape \(2,\), but got \({size},\)", wide, other)
