"""``expectation``: values, baselines, what it takes and what it refuses."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Categorical, Gamma, Independent, Normal

from pyro_mixtures.diagnostics import gradient_variance
from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals, MixtureSameFamily
from pyro_mixtures.estimators import ESTIMATORS, expectation, gumbel_soft, marginalized
from tests.estimators.registry import CASES, named
from tests.registry import FAMILIES, gradients, leaves

FAMILY = FAMILIES["diag_normals"]
each_estimator = pytest.mark.parametrize("name", list(ESTIMATORS))


def square(z):
    return z.square().sum(-1)


@each_estimator
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_value_and_shape(name, batch_shape):
    """The value is the mean cost; a constant cost leaves no gradient but noise."""
    parameters = FAMILY.parameters(batch_shape)
    mixture = FAMILY.build(parameters)
    ones = expectation(mixture, lambda z: 1 + 0 * z[..., 0], estimator=name, num_samples=4)
    torch.testing.assert_close(ones, torch.ones(batch_shape, dtype=torch.float64))
    # leave-one-out baselines take a constant away altogether
    assert all(value.abs().max() < 1e-12 for value in gradients(ones, parameters).values())


@each_estimator
def test_cost_may_depend_on_the_parameters(name):
    """E_q[log q] has the gradient of the entropy, whose explicit part has mean zero."""
    parameters = FAMILY.parameters(K=3, D=1, scales=(0.7, 1.3))
    replicas = leaves({key: x.expand(4000, *x.shape) for key, x in parameters.items()})
    mixture = FAMILY.build(replicas)
    value = expectation(mixture, mixture.log_prob, estimator=name, num_samples=2)
    sampled = gradients(value.sum(), replicas)
    points = torch.arange(-12, 12, 0.02, dtype=torch.float64).unsqueeze(-1)
    density = FAMILY.reference(parameters).log_prob(points)
    exact = gradients((density.exp() * density).sum() * 0.02, parameters)
    for key, values in sampled.items():
        error = values.std(0) / 4000**0.5
        deviation = ((values.mean(0) - exact[key]) / error).abs().max()
        if CASES[name].unbiased:
            assert deviation < 5  # false alarms of 6e-7 an entry
    if not CASES[name].unbiased:
        assert sampled["component_logits"].isfinite().all()


def measured(estimator, **options):
    given = FAMILY.parameters(K=4, D=3, spread=3.0, seed=1)
    parameters = {name: value.detach() for name, value in given.items()}

    def cost(z):
        return square(z) + 100.0

    return gradient_variance(
        MixtureOfDiagNormals,
        cost,
        parameters,
        estimator=named(estimator),
        num_draws=5000,
        **options,
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.score])
def test_baselines_keep_the_mean_and_lower_the_variance(name):
    """Leave-one-out, a given one, and a given one for a single sample."""
    plain = measured(name, num_samples=4, baseline=0.0)
    single = measured(name)
    for found, without in (
        (measured(name, num_samples=4), plain),
        (measured(name, num_samples=4, baseline=125.0), plain),
        (measured(name, baseline=torch.tensor(125.0)), single),
    ):
        logits, other = found["component_logits"], without["component_logits"]
        assert logits.variance.sum() < 0.5 * other.variance.sum()
        for key in found:
            error = (found[key].mean_error.square() + without[key].mean_error.square()).sqrt()
            # false alarms of 6e-7 for each of some 80 entries
            assert ((found[key].mean - without[key].mean).abs() < 5 * error).all()


def test_leave_one_out_is_the_default():
    parameters = FAMILY.parameters(spread=3.0)
    mixture = FAMILY.build(parameters)
    torch.manual_seed(0)
    actual = gradients(expectation(mixture, square, estimator="hybrid", num_samples=3), parameters)
    torch.manual_seed(0)
    costs = square(mixture.sample((3,)))
    baseline = torch.stack([costs[[1, 2]].mean(), costs[[0, 2]].mean(), costs[[0, 1]].mean()])
    torch.manual_seed(0)
    value = expectation(mixture, square, estimator="hybrid", num_samples=3, baseline=baseline)
    torch.testing.assert_close(actual, gradients(value, parameters))


def test_functions_for_estimators():
    mixture = FAMILY.build(FAMILY.parameters((2,)))
    value = expectation(
        mixture, square, estimator=partial(gumbel_soft, temperature=0.1), num_samples=3
    )
    assert value.shape == (2,)
    own = expectation(
        mixture, square, estimator=lambda q: Independent(Normal(q.mean, q.stddev), 1)
    )
    assert own.shape == (2,)


def test_a_component_without_weight_may_have_any_cost():
    parameters = FAMILY.parameters()
    with torch.no_grad():
        parameters["component_logits"][0] = -torch.inf
        parameters["locs"][0] = -1e300
        parameters["locs"][1:] = 1e3

    def cost(z):  # neither the value nor the slope at the first component is finite
        return z.sum(-1).log()

    value = marginalized(FAMILY.build(parameters), cost, num_samples=5)
    assert value.item() == pytest.approx(math.log(2e3), abs=0.01)
    for gradient in gradients(value, parameters).values():
        assert gradient.isfinite().all()
        assert not gradient[0].any()


MIXTURE = MixtureOfDiagNormals(
    torch.zeros(3, 2, 2), torch.ones(2, 2), torch.zeros(2, requires_grad=True)
)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"estimator": "reinforce"}, "one of pathwise, clustered, .* but got 'reinforce'"),
        ({"num_samples": 0}, "num_samples to be an integer >= 1, but got 0"),
        ({"num_samples": 2.0}, "num_samples to be an integer >= 1, but got 2.0"),
        ({"cost": torch.sum}, r"one value for each sample, shape \(5, 3\) .* but got \(\)"),
        ({"cost": lambda z: 1.0}, r"shape \(5, 3\) .* but got float"),
        ({"baseline": torch.zeros(4)}, r"broadcasts .* shape \(5, 3\) .* but got \(4,\)"),
        ({"baseline": torch.zeros(2, 5, 3)}, r"but got \(2, 5, 3\)"),
    ],
)
def test_mistakes_are_told(settings, told):
    given = {"cost": square, "estimator": "hybrid", "num_samples": 5, **settings}
    with pytest.raises(ValueError, match=told):
        expectation(MIXTURE, **given)


@each_estimator
@pytest.mark.parametrize(
    "what",
    [Normal(0.0, 1.0), MIXTURE.to_event(1), MIXTURE.mask(True), ESTIMATORS["score"](MIXTURE)],
)
def test_only_mixtures(name, what):
    with pytest.raises(ValueError, match="Expected a mixture .* but got"):
        ESTIMATORS[name](what)


@pytest.mark.parametrize("name", ["implicit", "graves", "gumbel_soft", "gumbel_hard"])
def test_other_components(name):
    gammas = MixtureSameFamily(Categorical(torch.ones(2)), Gamma(torch.ones(2), 1.0))
    with pytest.raises(NotImplementedError, match=f"'{name}', but got Gamma; use"):
        ESTIMATORS[name](gammas)


@pytest.mark.parametrize("name", ["graves", "gumbel_soft", "gumbel_hard"])
def test_full_covariances(name):
    full = MixtureOfNormals(torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), torch.zeros(2))
    with pytest.raises(NotImplementedError, match=f"diagonal .* '{name}', but got MixtureOfNorm"):
        ESTIMATORS[name](full)
