"""Labels that can be exchanged: they are found, and only they, and images keep the density."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.symmetries import label_symmetries
from tests.infer.search.models import SCHOOLS, eight_schools

Y = torch.tensor([-4.0, -3.7, -3.3, 0.1, 0.4, 5.0, 5.5], dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def likelihood(weights, locs, scales):
    parts = dist.Normal(locs.unsqueeze(-2), scales.unsqueeze(-2)).log_prob(Y.unsqueeze(-1))
    pyro.factor("y", (parts + weights.log().unsqueeze(-2)).logsumexp(-1).sum(-1))


def mixture(num=3, concentration=2.0):
    """With weights, a plate and an event dimension."""
    weights = pyro.sample("weights", dist.Dirichlet(zeros(num) + concentration))
    with pyro.plate("components", num):
        locs = pyro.sample("locs", dist.Normal(zeros(()), 5.0))
    scales = pyro.sample("scales", dist.Uniform(zeros(num), 4.0).to_event(1))
    likelihood(weights, locs, scales)


def numbered_sites():
    """Of two components, of which each parameter is a site of its own."""
    first = pyro.sample("mu1", dist.Normal(zeros(()), 5.0))
    share = pyro.sample("share", dist.Beta(zeros(()) + 2, 2.0))
    second = pyro.sample("mu2", dist.Normal(zeros(()), 5.0))
    weights = torch.stack([share, 1 - share], -1)
    locs = torch.stack([first, second], -1)
    likelihood(weights, locs, torch.ones_like(locs))


def uneven_share():
    share = pyro.sample("share", dist.Beta(zeros(()) + 2, 3.0))
    locs = pyro.sample("locs", dist.Normal(zeros(2), 5.0).to_event(1))
    likelihood(torch.stack([share, 1 - share], -1), locs, torch.ones_like(locs))


def hidden_markov():
    """Rows and columns of the transitions have the labels of the states."""
    with pyro.plate("states", 3):
        rows = pyro.sample("rows", dist.Dirichlet(zeros(3) + 2))
        locs = pyro.sample("locs", dist.Normal(zeros(()), 5.0))
    alpha = zeros(3)
    for y in Y:
        emission = dist.Normal(locs, 1.0).log_prob(y)
        alpha = (alpha.unsqueeze(-1) + rows.log()).logsumexp(-2) + emission
    pyro.factor("y", alpha.logsumexp(-1))


def two_mixtures():
    """Of the same size, independent of one another."""
    for name in "ab":
        weights = pyro.sample(f"weights_{name}", dist.Dirichlet(zeros(3) + 1))
        locs = pyro.sample(f"locs_{name}", dist.Normal(zeros(3), 3.0).to_event(1))
        parts = dist.Normal(locs.unsqueeze(-2), 1.0).log_prob(Y.unsqueeze(-1))
        value = (parts + weights.log().unsqueeze(-2)).logsumexp(-1).sum(-1)
        pyro.factor(f"y_{name}", value)


def ordered_locs():
    free = dist.Normal(zeros(3), 2.0).to_event(1)
    order = dist.transforms.OrderedTransform()
    locs = pyro.sample("locs", dist.TransformedDistribution(free, order))
    weights = pyro.sample("weights", dist.Dirichlet(zeros(3) + 1))
    likelihood(weights, locs, torch.ones_like(locs))


def uneven_prior():
    weights = pyro.sample("weights", dist.Dirichlet(zeros(3) + 1))
    locs = pyro.sample(
        "locs", dist.Normal(torch.tensor([0.0, 0.0, 1e-3]).double(), 5.0).to_event(1)
    )
    likelihood(weights, locs, torch.ones_like(locs))


def groups():
    scale = pyro.sample("scale", dist.HalfNormal(zeros(()) + 1))
    with pyro.plate("groups", 5):
        pyro.sample("x", dist.Normal(zeros(()), scale))


def correlated():
    """A Cholesky factor has dimensions of one size that no permutation leaves triangular."""
    root = pyro.sample("root", dist.LKJCholesky(3, torch.tensor(2.0).double()))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.MultivariateNormal(zeros(3), scale_tril=root), obs=zeros(4, 3))


FOUND = {
    "mixture": (mixture, [("weights", "locs", "scales")]),
    "sparse weights": (lambda: mixture(3, 0.1), [("weights", "locs", "scales")]),
    "numbered sites": (numbered_sites, [("mu*", "share")]),
    "hidden Markov": (hidden_markov, [("rows", "locs")]),
    "two mixtures": (two_mixtures, [("weights_a", "locs_a"), ("weights_b", "locs_b")]),
    "groups": (groups, [("x",)]),
    "uneven share": (uneven_share, []),
    "uneven prior": (uneven_prior, []),
    "ordered": (ordered_locs, []),
    "correlated": (correlated, []),
}


def symmetries(model):
    torch.manual_seed(0)
    density = ModelLogDensity(model)
    evaluations = Evaluations(density)
    return density, label_symmetries(density, evaluations), evaluations.count


@pytest.mark.parametrize("name", FOUND)
def test_exchangeable_labels_are_found_and_no_others(name):
    model, expected = FOUND[name]
    _, found, count = symmetries(model)
    assert [each.names for each in found] == expected
    assert count <= 100


def test_data_tell_labels_apart():
    torch.manual_seed(0)
    assert label_symmetries(ModelLogDensity(eight_schools, SCHOOLS)) == ()


def test_labels_are_found_in_single_precision():
    def model():
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        likelihood(weights, locs, torch.ones_like(locs))

    _, (found,), _ = symmetries(model)
    assert found.names == ("weights", "locs")


def test_random_numbers_stay():
    density = ModelLogDensity(mixture)
    torch.manual_seed(3)
    label_symmetries(density)
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(())


@pytest.mark.parametrize("name", [name for name, (_, sites) in FOUND.items() if sites])
def test_images_keep_the_density(name):
    density, found, _ = symmetries(FOUND[name][0])
    z = 0.5 * density.prior_draws(4)
    for symmetry in found:
        for permutation in itertools.islice(symmetry.permutations(), 0, None, 5):
            image = symmetry.image(z, permutation)
            torch.testing.assert_close(
                density(image) - symmetry.log_jacobian(image),
                density(z) - symmetry.log_jacobian(z),
                rtol=1e-7,
                atol=1e-6,
            )


def test_the_jacobian_is_that_of_the_image():
    density, (symmetry,), _ = symmetries(mixture)
    z = density.prior_draws(1)
    image = symmetry.image(z, (2, 0, 1))
    derivative = torch.autograd.functional.jacobian(
        lambda point: symmetry.image(point.unsqueeze(0), (2, 0, 1)).squeeze(0), z[0]
    )
    expected = symmetry.log_jacobian(z) - symmetry.log_jacobian(image)
    torch.testing.assert_close(derivative.det().abs().log()[None], expected)


def test_images_are_permutations_in_the_model_s_terms():
    density, (symmetry,), _ = symmetries(mixture)
    z = density.prior_draws(5)
    permutation = (2, 0, 1)
    before, after = density.constrain(z), density.constrain(symmetry.image(z, permutation))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value[:, permutation])


def test_images_of_rows_and_columns():
    density, (symmetry,), _ = symmetries(hidden_markov)
    z = density.prior_draws(2)
    rows = density.constrain(z)["rows"]
    image = density.constrain(symmetry.image(z, (1, 2, 0)))["rows"]
    torch.testing.assert_close(image, rows[:, [1, 2, 0]][:, :, [1, 2, 0]])


def test_weights_of_two_are_reflected():
    density, (symmetry,), _ = symmetries(numbered_sites)
    z = density.prior_draws(3)
    before, after = density.constrain(z), density.constrain(symmetry.image(z, (1, 0)))
    torch.testing.assert_close(after["share"], 1 - before["share"])
    torch.testing.assert_close(after["mu1"], before["mu2"])


def test_the_report():
    _, (symmetry,), _ = symmetries(mixture)
    assert str(symmetry) == (
        "the labels of weights, locs, scales (3) are exchangeable: up to 6 copies of each mode"
    )


def test_the_supports_of_sites():
    density, _, _ = symmetries(mixture)
    supports = density.supports(density.prior_draws(1)[0])
    assert list(supports) == ["weights", "locs", "scales"]
    assert supports["weights"] is dist.constraints.simplex
    assert supports["scales"].event_dim == 1
    with pytest.raises(ValueError, match=r"shape \(S, 8\), but got \(1, 7\)"):
        density.supports(torch.zeros(7))
