"""What ``torch.jit.trace`` records at some values is right at others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO

from pyro_mixtures.distributions import (
    Mixture,
    MixtureDistribution,
    MixtureOfDiagNormals,
    RelaxedBernoulliStraightThrough,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from tests.every import KINDS, each_kind
from tests.pairwise import in_turn

pytestmark = [
    # of choices by values in torch's own code, and in the checks of values
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


# sizes times numbers are recorded in float32
RECORDED = {"rtol": 1e-6, "atol": 1e-6}


def traced(function, *args):
    return torch.jit.trace(function, args, check_trace=False)


def snaps(law):
    return isinstance(law, (RelaxedCategoricalStraightThrough, RelaxedBernoulliStraightThrough))


def constant(kind, batch_shape=()):
    """A law that is no function of anything."""
    parameters = kind.parameters(batch_shape)
    return kind.build({name: value.detach() for name, value in parameters.items()})


def of_seed(function, *args):
    """Densities may be random."""
    torch.manual_seed(1)
    return function(*args)


@in_turn
@pytest.mark.parametrize("batch_shape", [(), (4,)], ids=str)
@each_kind
def test_density_at_another_sample(kind, batch_shape):
    law = constant(kind, batch_shape)
    y, x = law.rsample((5,)).clone(), law.rsample((5,))
    if snaps(law):  # of discrete values alone there is none
        with pytest.raises(ValueError, match="relaxed sample behind it"):
            traced(law.log_prob, x)
        return
    function = traced(law.log_prob, x)
    expected = of_seed(law.log_prob, y)
    torch.testing.assert_close(of_seed(function, y), expected, **RECORDED)
    function = traced(lambda value: law.score_parts(value).log_prob, law.rsample((5,)))
    torch.testing.assert_close(of_seed(function, y), expected, **RECORDED)


@each_kind
def test_samples_and_densities_in_one(kind):
    """Of other parameters and random numbers, with the gradients that go with them."""
    parameters = kind.parameters(())
    if "control_var" in parameters:  # its gradient is not that of the cost
        parameters["control_var"] = parameters["control_var"].detach()
    names = [name for name in parameters if name != "control_var"]

    def step(*values):
        law = kind.build({**parameters, **dict(zip(names, values, strict=True))})
        z = law.rsample((6,))
        return z, law.log_prob(z)

    function = traced(step, *(parameters[name] for name in names))
    moved = [parameters[name].detach().mul(1.01).requires_grad_() for name in names]
    with torch.jit.optimized_execution(False):
        first, (z, density) = function(*moved)[0], function(*moved)
    law = kind.build({**parameters, **dict(zip(names, moved, strict=True))})
    assert snaps(law) or not torch.equal(first, z)
    if not snaps(law) and kind is not KINDS["gumbel_softmax"]:  # known for the sample, or random
        torch.testing.assert_close(density, law.log_prob(z.detach()), **RECORDED)
    if isinstance(law, MixtureDistribution):
        x = law.reparameterize(z)
        gradients = (
            torch.autograd.grad(cost, moved, retain_graph=True, materialize_grads=True)
            for cost in (z.cos().sum() + density.sum(), x.cos().sum() + law.log_prob(x).sum())
        )
        torch.testing.assert_close(*gradients, **RECORDED)


@pytest.mark.parametrize("law", [RelaxedCategorical, RelaxedCategoricalStraightThrough])
def test_samples_keep_their_coordinates_within_a_trace(law):
    """At a temperature where most of them are lost in the value."""
    logits = torch.randn(10)

    def elbo(logits):
        z = law(0.01, logits=logits).rsample((4,))
        return law(0.01, logits=torch.zeros(10)).log_prob(z) - law(0.01, logits=logits).log_prob(z)

    function = traced(elbo, logits)
    torch.manual_seed(1)
    expected = elbo(logits)
    torch.manual_seed(1)
    torch.testing.assert_close(function(logits), expected, rtol=1e-3, atol=1e-3)


def test_draws_of_a_component_that_was_seldom_drawn_in_the_trace():
    """Each asks for as many draws as it may get, not as it got."""
    locs = torch.tensor([0.0, 100.0])
    components = [dist.Normal(0.0, 1.0), dist.StudentT(5.0, 100.0, 1.0)]

    def draw(logits):
        return Mixture(dist.Categorical(logits=logits), components).sample((20,))

    function = traced(draw, torch.zeros(2))
    for index in (0, 1):
        z = function(torch.tensor([0.0, 50.0]).roll(1 - index))
        assert ((z - locs[index]).abs() < 20).all()


def test_groups_of_other_parameters():
    """The score function is there where the groups of the trace were one."""
    scales, logits = torch.ones(3, 1), torch.zeros(3, requires_grad=True)

    def score(locs):
        law = MixtureOfDiagNormals(locs, scales, logits.exp(), weight_gradient="clustered")
        return law.score_parts(law.reparameterize(locs)).score_function * torch.ones(3)

    near, far = torch.zeros(3, 1), torch.tensor([[0.0], [50.0], [100.0]])
    weights = torch.tensor([1.0, 2.0, 3.0])
    function = torch.jit.trace(lambda locs, logits: score(locs), (near, logits), check_trace=False)
    torch.testing.assert_close(function(far, logits), score(far))
    (expected,) = torch.autograd.grad((weights * score(far)).sum(), logits)
    assert (expected != 0).all()


def test_an_elbo():
    """Of a guide with a relaxed site and a mixture: as without tracing."""

    def model():
        choice = pyro.sample("choice", RelaxedCategorical(0.1, logits=torch.tensor([0.0, 1.0])))
        locs = torch.stack([choice, -choice])
        pyro.sample("z", MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2)))

    def guide():
        logits = pyro.param("logits", torch.zeros(2))
        pyro.sample("choice", RelaxedCategorical(0.1, logits=logits))
        locs = pyro.param("locs", torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        pyro.sample("z", MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2)))

    losses = []
    for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo)
        svi.step()  # a trace draws once more
        steps = []
        for seed in range(3):
            pyro.set_rng_seed(seed)
            steps.append(svi.step())
        losses.append(steps)
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4)
