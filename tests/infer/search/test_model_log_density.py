"""Batched log densities of models against runs of the model, one point at a time."""

import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.mcmc.util import initialize_model
from torch import nn
from torch.distributions import biject_to

from pyro_mixtures.infer.search import model_sites
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from tests.infer.search.models import MODELS, SCHOOLS, Y, eight_schools, pareto

IN_A_PLATE = ("switch", "mixture in a plate", "switches in plates")
ENUMERATED = (*IN_A_PLATE, "mixture of two", "hidden Markov")
CONTINUOUS = [name for name in MODELS if name not in (*ENUMERATED, "Pareto")]
WAYS = ("plate", "vmap", "loop")


def density(name, **options):
    model, args, kwargs, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model runs once for each point")
        return ModelLogDensity(model, args, kwargs, **options)


class At(poutine.messenger.Messenger):
    """Values at a packed vector, by hand."""

    def __init__(self, z):
        super().__init__()
        self.z, self.at, self.values, self.jacobian = z, 0, {}, 0.0

    def _pyro_sample(self, msg):
        if msg["is_observed"] or msg["done"] or poutine.util.site_is_subsample(msg):
            return
        transform = biject_to(msg["fn"].support)
        shape = transform.inverse_shape(msg["fn"].batch_shape + msg["fn"].event_shape)
        part = self.z[self.at : self.at + shape.numel()].reshape(shape)
        msg["value"], msg["done"] = transform(part), True
        self.at += shape.numel()
        self.values[msg["name"]] = msg["value"]
        self.jacobian = self.jacobian + transform.log_abs_det_jacobian(part, msg["value"]).sum()


def by_hand(name, z):
    """Values and the log density of one point, by the model's trace."""
    model, args, kwargs, _ = MODELS[name]
    with pyro.get_param_store().scope(), At(z) as at:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    assert at.at == len(z)
    return at.values, trace.log_prob_sum() + at.jacobian


def with_gradient(function, z):
    z = z.detach().requires_grad_()
    value = function(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_values_gradients_and_sites_are_those_of_single_runs(name):
    log_density = density(name)
    assert log_density.way == MODELS[name][3]
    assert set(log_density.refused) == set(WAYS[: WAYS.index(log_density.way)])
    z = log_density.prior_draws(7)
    found, gradients = with_gradient(log_density, z)
    sites = log_density.constrain(z)
    for row in range(7):
        expected, gradient = with_gradient(lambda point: by_hand(name, point)[1], z[row])
        torch.testing.assert_close(found[row], expected.to(z.dtype))
        torch.testing.assert_close(gradients[row], gradient)
        values, _ = by_hand(name, z[row])
        assert list(sites) == list(values)
        for site, value in values.items():
            torch.testing.assert_close(sites[site][row], value, check_dtype=False)


@pytest.mark.parametrize("name", MODELS)
def test_all_ways_that_are_right_give_the_same(name):
    """Second derivatives along a direction, too."""
    first = density(name)
    z = first.prior_draws(5).double()
    expected = with_gradient(first, z)
    others = [way for way in WAYS if way not in first.refused and way != first.way]
    if name == "branches":
        assert others == []
    for way in others:
        other = density(name, way=way)
        for found, value in zip(with_gradient(other, z), expected, strict=True):
            torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-4, equal_nan=True)
        for site, value in other.constrain(z).items():
            torch.testing.assert_close(value, first.constrain(z)[site])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, None) for name in ENUMERATED),
        *((name, way) for name in ENUMERATED for way in ("vmap", "loop")),
    ],
)
def test_discrete_sites_are_summed_out(name, way):
    model, args, kwargs, _ = MODELS[name]
    log_density = density(name, way=way)
    assert log_density.way == (way or MODELS[name][3])
    _, potential, transforms, trace = initialize_model(model, args, kwargs)
    z = log_density.prior_draws(4)
    values = log_density(z)
    for row in range(4):
        parts = {}
        for site, place in log_density.site_slices.items():
            shape = transforms[site](trace.nodes[site]["value"]).shape
            parts[site] = z[row, place].reshape(shape)
        torch.testing.assert_close(values[row], -potential(parts))


def test_a_chain_of_discrete_sites_has_second_derivatives():
    log_density = density("hidden Markov")
    point = log_density.prior_draws(1)[0].double()
    assert torch.autograd.gradcheck(
        lambda z: with_gradient_graph(log_density, z), point.requires_grad_(), eps=1e-2, atol=1e-2
    )


def with_gradient_graph(log_density, z):
    return torch.autograd.grad(log_density(z[None]).sum(), z, create_graph=True)[0]


@pytest.mark.parametrize("name", ["eight schools", "event dimensions", "nested plates"])
def test_vectors_are_packed_as_those_of_automatic_guides(name):
    model, args, kwargs, _ = MODELS[name]
    log_density = density(name)
    guide = AutoDiagonalNormal(model)
    with pyro.get_param_store().scope():
        guide(*args, **kwargs)
    z = log_density.prior_draws(1)
    own = log_density.constrain(z)
    at, names = 0, []
    for site, value in guide._unpack_latent(z[0]):
        expected = biject_to(site["fn"].support)(value)
        torch.testing.assert_close(own[site["name"]][0], expected)
        assert log_density.site_slices[site["name"]] == slice(at, at + value.numel())
        names += [site["name"]] * value.numel()
        at += value.numel()
    assert [each.split("[")[0] for each in log_density.coordinate_names] == names
    assert log_density.dimension == at == guide.latent_dim


def test_coordinates_have_names():
    assert density("eight schools").coordinate_names[:4] == ["mu", "tau", "theta[0]", "theta[1]"]
    names = density("nested plates").coordinate_names
    assert names[:7] == ["x[0,0]", "x[0,1]", "x[0,2]", "x[1,0]", "x[1,1]", "x[1,2]", "w[0,0,0]"]
    assert names[-1] == "w[1,2,2]"
    assert len(names) == 6 + 18


@pytest.mark.parametrize("way", WAYS)
def test_the_model_keeps_its_precision(way):
    log_density = density("eight schools", way=way)
    assert log_density.dtype == torch.float32
    z = log_density.prior_draws(3)
    assert log_density(z).dtype == z.dtype == torch.float32
    found, gradients = with_gradient(log_density, z.double())
    assert found.dtype == gradients.dtype == torch.float64
    torch.testing.assert_close(found.float(), log_density(z))
    seen = set()

    def model(y, sigma):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        seen.add(x.dtype)

    ModelLogDensity(model, SCHOOLS, way=way)(torch.zeros(2, 1).double())
    assert seen == {torch.float32}
    assert density("mixed precision").dtype == torch.float64


def test_no_points_have_no_densities():
    for name in ("eight schools", "regression", "branches"):
        log_density = density(name)
        none = torch.zeros(0, log_density.dimension)
        assert log_density(none).shape == (0,)
        assert log_density.prior_draws(0).shape == none.shape
        assert all(value.shape[0] == 0 for value in log_density.constrain(none).values())


@pytest.mark.parametrize("way", WAYS)
def test_outside_of_a_support_there_is_no_density(way):
    """Neither is there one with wrong parameters, and other points of the batch keep theirs."""
    log_density = ModelLogDensity(pareto, (torch.full((3,), 3.0),), way=way)
    z = torch.tensor([[0.5], [2.0], [-3.0], [torch.nan], [0.9]])
    values = log_density(z)
    expected = [by_hand("Pareto", z[row])[1] for row in (0, 4)]
    torch.testing.assert_close(values[[0, 4]], torch.stack(expected))
    assert values[1] == -math.inf
    assert bool(values[[2, 3]].isnan().all())
    with pyro.validation_enabled(False):
        assert log_density(z)[1] > -math.inf  # as the user wants it


def undefined_in_a_strip():
    x = torch.as_tensor(pyro.sample("x", dist.Normal(0.0, 1.0)))
    pyro.factor("strip", torch.where((x > 0.5) & (x < 0.6), torch.nan, 0.0))


@pytest.mark.parametrize("way", WAYS)
def test_a_factor_that_is_not_a_number_harms_no_other_point(way):
    values = ModelLogDensity(undefined_in_a_strip, way=way)(torch.tensor([[0.0], [0.55], [1.0]]))
    normal = dist.Normal(0.0, 1.0).log_prob(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(values[[0, 2]], normal)
    assert bool(values[1].isnan())


@pytest.mark.parametrize("name", ["parameter", "module", "eight schools"])
def test_parameters_and_random_numbers_stay(name):
    pyro.clear_param_store()
    states = [torch.get_rng_state(), pyro.util.get_rng_state()["numpy"][1].tolist()]
    log_density = density(name)
    first = log_density(torch.ones(2, log_density.dimension))
    log_density.constrain(torch.ones(2, log_density.dimension))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert pyro.util.get_rng_state()["numpy"][1].tolist() == states[1]
    assert not list(pyro.get_param_store().keys())
    assert first.isfinite().all()


def test_parameters_have_their_current_values():
    pyro.clear_param_store()
    log_density = density("parameter")
    z = torch.ones(2, 1)
    before = log_density(z)
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(5.0))
        expected = dist.Normal(0.0, 5.0).log_prob(z[:, 0])
        torch.testing.assert_close(log_density(z), expected)
    torch.testing.assert_close(log_density(z), before)


def test_handlers_outside_see_nothing():
    log_density = density("eight schools")
    z = log_density.prior_draws(3)
    expected = log_density(z)
    with poutine.trace() as tracing, poutine.scale(scale=3.0):
        found = log_density(z)
        log_density.constrain(z)
        log_density.prior_draws(3)
    assert list(tracing.trace.nodes) == []
    torch.testing.assert_close(found, expected)


def test_draws_are_those_of_the_prior():
    torch.manual_seed(1)
    for name in ("dependent supports", "event dimensions"):
        model = MODELS[name][0]
        log_density = density(name)
        draws = log_density.constrain(log_density.prior_draws(400))
        runs = [poutine.trace(model).get_trace() for _ in range(400)]
        for site, values in draws.items():
            others = torch.stack([run.nodes[site]["value"] for run in runs])
            ranks = torch.cat([values, others]).reshape(800, -1).argsort(0).argsort(0).float()
            score = (ranks[:400].mean(0) - 399.5) / math.sqrt(400 * 400 * 801 / 12) * 400
            moving = values.reshape(400, -1).std(0) > 0
            assert score[moving].abs().max() < 4.5, site


def test_draws_repeat_with_the_seed():
    log_density = density("regression")
    torch.manual_seed(3)
    first = log_density.prior_draws(4)
    torch.manual_seed(3)
    assert torch.equal(log_density.prior_draws(4), first)
    assert len(first.unique()) == first.numel()


def test_large_models_are_evaluated_in_small_batches(monkeypatch):
    assert density("eight schools").batch_size > 10_000
    monkeypatch.setattr(model_sites, "MEMORY_BUDGET", 2**13)
    rows = []

    def model():
        with pyro.plate("many", 150):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        rows.append(len(x) if x.dim() == 2 else 1)

    log_density = ModelLogDensity(model)
    assert log_density.batch_size == 3
    rows.clear()
    assert log_density.prior_draws(7).shape == (7, 150)
    assert rows == [3, 3, 1]
    rows.clear()
    Evaluations(log_density).values(torch.zeros(4, 150))
    assert rows == [3, 1]


def test_sites_without_a_distribution_to_draw_from_are_named():
    log_density = density("improper")
    assert log_density.unsampled_sites == ("x",)
    assert log_density.prior_draws(50).abs().max() <= 2
    assert density("eight schools").unsampled_sites == ()


def test_draws_on_the_edge_of_a_support_come_again():
    log_density = ModelLogDensity(lambda: pyro.sample("x", dist.LogNormal(86.0, 5.0)))
    assert bool(log_density.prior_draws(200).isfinite().all())


def test_a_log_density_can_be_pickled():
    log_density = density("eight schools")
    again = pickle.loads(pickle.dumps(log_density))
    z = log_density.prior_draws(3)
    assert torch.equal(again(z), log_density(z))
    assert again.way == "plate"


def test_parameters_travel_with_a_log_density():
    """To processes whose parameter store has none of them."""
    pyro.clear_param_store()
    log_density = density("parameter")
    z = torch.ones(2, 1)
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(5.0))
        expected = log_density(z)
        pickled = pickle.dumps(log_density)
    assert not torch.equal(log_density(z), expected)
    torch.testing.assert_close(pickle.loads(pickled)(z), expected)


def test_coordinates_without_a_density_are_named():
    """The values of what is observed, as Pyro has them with a mask, are free."""
    flat = density("partly observed").flat_coordinates
    assert flat == [f"y_unobserved[{index}]" for index in (2, 3, 4, 5)]
    assert density("eight schools").flat_coordinates == []
    assert density("constant").flat_coordinates == []


def test_threads_may_share_a_log_density():
    first, second = density("eight schools"), density("regression")
    points = [each.prior_draws(8) for each in (first, second)] * 10
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(with_gradient, [first, second] * 10, points))
    for each, z, (values, gradients) in zip([first, second] * 10, points, found, strict=True):
        expected = with_gradient(each, z)
        assert torch.equal(values, expected[0])
        assert torch.equal(gradients, expected[1])
    assert dist.is_validation_enabled()


def test_a_loop_is_told():
    model = MODELS["branches"][0]
    with pytest.warns(UserWarning, match="once for each point, which is slow: in a plate") as told:
        ModelLogDensity(model)
    assert told[0].filename == __file__
    ModelLogDensity(model, way="loop")
    with pytest.raises(ValueError, match="can be evaluated with way = 'vmap', but got one of"):
        ModelLogDensity(model, way="vmap")


def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=Y[index])


def chosen_subsample():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample=torch.tensor([0, 1])):
        pyro.sample("y", dist.Normal(x, 1.0), obs=Y[:2])


def uncountable():
    x = pyro.sample("x", dist.Gamma(1.0, 1.0))
    pyro.sample("k", dist.Poisson(x))


def only_discrete():
    pyro.sample("k", dist.Bernoulli(0.3))


def only_observed():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def random_density():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("noise", torch.randn(()) * x)


def dropout():
    x = pyro.sample("x", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    pyro.factor("noise", nn.Dropout()(x).sum(-1))


def nowhere_finite():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", x - math.inf)


def never_factorized():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", torch.linalg.cholesky(-torch.eye(2) + 0 * x).sum())


def discrete_support():
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Uniform(0.0, 1.0 + k))


def off_the_plates():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("k", dist.Bernoulli(torch.tensor([0.3, 0.4])))


def without_gradient():
    x = torch.as_tensor(pyro.sample("x", dist.Normal(0.0, 1.0)))
    pyro.factor("root", torch.where(x > 9.0, (x - x).sqrt(), 0.0))


def sometimes_more():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0:
        pyro.sample("z", dist.Normal(0.0, 1.0))


def one_after_the_other():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})


def triangular():
    lower = dist.ImproperUniform(dist.constraints.lower_cholesky, (), (2, 2))
    pyro.sample("lower", lower)


def on_the_edge():
    pyro.sample("x", dist.LogNormal(1000.0, 1.0))


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (subsampled, NotImplementedError, r"plate 'data' with 2 of 6: .*SVI"),
        (chosen_subsample, NotImplementedError, r"plate 'data' with 2 of 6: .*SVI"),
        (uncountable, ValueError, "enumerated, but got 'k', a Poisson: sum or integrate it out"),
        (only_discrete, ValueError, "continuous latent sites, but got only k, discrete"),
        (only_observed, ValueError, "continuous latent sites, but got none"),
        (random_density, ValueError, "the same in each run"),
        (dropout, ValueError, "the same in each run"),
        (nowhere_finite, ValueError, "finite at some draws of the prior, but got the value -inf"),
        (without_gradient, ValueError, r"the value -\d\S+ with a gradient that is not"),
        (never_factorized, torch.linalg.LinAlgError, "positive-definite"),
        (discrete_support, ValueError, "'x' to depend on no discrete site"),
        (off_the_plates, ValueError, "discrete sites k are enumerated"),
        (sometimes_more, ValueError, "the same .*latent sites in each run of the model"),
        (one_after_the_other, ValueError, "or enumerated in parallel, but got one with 'k'"),
        (triangular, ValueError, "a Jacobian, but got .* at site 'lower'; for matrices"),
        (on_the_edge, ValueError, "100 draws of the prior .* infinite unconstrained values of x"),
    ],
)
def test_what_cannot_be_is_refused(model, error, match):
    with pytest.raises(error, match=match):
        ModelLogDensity(model)


def test_points_and_ways_are_checked():
    with pytest.raises(ValueError, match="way to be one of plate, vmap, loop or None"):
        ModelLogDensity(eight_schools, SCHOOLS, way="fast")
    log_density = density("eight schools")
    for z in (torch.zeros(10), torch.zeros(3, 9), torch.zeros(1, 3, 10)):
        with pytest.raises(ValueError, match=r"points of the shape \(S, 10\)"):
            log_density(z)
        with pytest.raises(ValueError, match=r"points of the shape \(S, 10\)"):
            log_density.constrain(z)
