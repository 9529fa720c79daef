"""Every distribution drawn under ``torch.func.vmap``, with the same randomness or different."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Categorical, Distribution, VonMises
from torch.func import grad, vmap

from pyro_mixtures import MixtureSameFamily
from tests.elliptical import LAWS as ELLIPTICAL
from tests.families.registry import COMPONENTS
from tests.registry import FAMILIES, Parameters, leaves, relative_error
from tests.relaxed import LAWS as RELAXED

BATCH = 3

pytestmark = [
    pytest.mark.usefixtures("no_validation"),
    pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:torch.searchsorted"),
]

# torch itself cannot draw these components under vmap: in-place or data-dependent random numbers
NOT_DRAWN = {
    "von_mises",  # a class of the tests' own, derived from torch's
    "multivariate_student_t",
    "dirichlet",
    "shared_affine_laplace",
    "shared_tanh_student_t",
    "mixed_real",
    "mixed_positive",
    "mixed_unit_interval",
    "mixed_elliptical",
}


class VonMisesComponents:
    """Of torch's own class."""

    dimension = 1

    def parameters(self, batch_shape, D):
        generator = torch.Generator().manual_seed(0)
        names, shape = ("loc", "concentration", "logits"), (*batch_shape, 3)
        numbers = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
        return leaves(dict(zip(names, numbers, strict=True)))

    def mixture(self, parameters):
        components = VonMises(parameters["loc"], parameters["concentration"])
        return MixtureSameFamily(Categorical(logits=parameters["logits"]), components)


ANY = {name: family for name, family in COMPONENTS.items() if name not in NOT_DRAWN}
CASES = {
    **{name: (each.parameters, each.build) for name, each in FAMILIES.items()},
    **{
        name: (lambda shape, each=each: each.parameters(shape, D=each.dimension), each.mixture)
        for name, each in {**ANY, "torch_von_mises": VonMisesComponents()}.items()
    },
    **{name: (each.parameters, each.build) for name, each in ELLIPTICAL.items()},
    **{name: (each.parameters, each.build) for name, each in RELAXED.items()},
}
# torch has no rule for the same Gamma numbers; of transformed ones vmap has as many drawn as may
# be needed, a loop as many as are
SAME = [name for name in CASES if name not in ("avf_student_t", "affine_tanh_logistic")]
# uniform numbers in place, of parameters that are the same for all
DIFFERENT = [name for name in CASES if name != "affine_tanh_logistic"]


@pytest.fixture
def no_validation():
    """Which looks at values. (Another fixture switches it on again.)"""
    for cls in (Distribution, TorchDistribution):
        cls._validate_args = False


def example(name: str) -> tuple[Parameters, Parameters, object]:
    """Batched parameters, the first of them, and what builds a distribution."""
    parameters, build = CASES[name]
    batched = {key: value.detach() for key, value in parameters((BATCH,)).items()}
    return batched, {key: value[0] for key, value in batched.items()}, build


def loss_of(build):
    """Of samples and of their log densities."""

    def loss(parameters):
        q = build(parameters)
        z = q.rsample((4,))
        return (z / (1 + z.abs())).cos().sum() - q.log_prob(z).sum() / 10, z

    return loss


def some_batched(batched: Parameters, single: Parameters):
    """All of the parameters, each one alone, and none."""
    yield batched
    for name in batched:
        yield {**single, name: batched[name]}


@pytest.mark.parametrize("name", SAME)
def test_same_randomness(name):
    """As in a loop that starts from the same seed each time."""
    batched, single, build = example(name)
    loss = loss_of(build)
    for given in some_batched(batched, single):
        dims = {key: 0 if given[key] is batched[key] else None for key in given}
        torch.manual_seed(1)
        step = vmap(grad(loss, has_aux=True), in_dims=(dims,), randomness="same")
        actual, samples = step(given)
        each = []
        for b in range(BATCH):
            torch.manual_seed(1)
            own = {key: x[b] if dims[key] == 0 else x for key, x in given.items()}
            each.append(grad(loss, has_aux=True)(own))
        expected = {key: torch.stack([values[key] for values, _ in each]) for key in given}
        torch.testing.assert_close(samples, torch.stack([z for _, z in each]))
        assert relative_error(actual, expected) < 1e-8
    torch.manual_seed(1)
    _, samples = vmap(lambda _: loss(single), randomness="same")(torch.zeros(BATCH))
    assert torch.equal(samples, samples[:1].expand_as(samples))


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_randomness(name):
    """Samples differ, whatever is batched, and those of each have their own law.

    Of some 150 means one is beyond five standard errors in 10,000 seeds.
    """
    batched, single, build = example(name)
    loss = loss_of(build)
    for given in some_batched(batched, single):
        dims = {key: 0 if given[key] is batched[key] else None for key in given}
        step = vmap(grad(loss, has_aux=True), in_dims=(dims,), randomness="different")
        actual, samples = step(given)
        assert all(value.isfinite().all() for value in actual.values())
        if not name.startswith("hard"):
            assert (samples[0] != samples[1]).any()

    def draw(parameters):
        q = build(parameters)
        z = q.sample((2000,)).reshape(2000, -1)
        return (z / (1 + z.abs())).cos().mean(-1)

    values = vmap(draw, randomness="different")(batched)
    for b in range(BATCH):
        own = draw({key: x[b] for key, x in batched.items()})
        error = ((values[b].var() + own.var()) / 2000).sqrt()
        assert (values[b].mean() - own.mean()).abs() < 5 * error + 1e-12
    samples = vmap(lambda _: draw(single), randomness="different")(torch.zeros(BATCH))
    if not name.startswith("hard"):
        assert (samples[0] != samples[1]).any()
