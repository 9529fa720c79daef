"""The guide with a flow on a mixture: starts, units, the store, copies, and what it refuses."""

import copy
import functools
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.reparam import NeuTraReparam
from torch import nn
from torch.distributions import ComposeTransform, ExpTransform

from pyro_mixtures.diagnostics import psis
from pyro_mixtures.distributions import (
    MixtureFlow,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    MixtureSameFamily,
)
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoDiagonalNormalMixture,
    AutoMixtureFlow,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
)
from tests.infer.mixture_guides import Bend

TWO_COUPLINGS = functools.partial(flows.iterated, 2, flows.affine_coupling, hidden_dims=[8])


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model(dtype=torch.float32):
    x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(x.sum(-1), 1.0))


def called(init_transform_fn=TWO_COUPLINGS, count=3, of=model, **options):
    guide = AutoMixtureFlow(of, count, init_transform_fn, **options)
    guide()
    return guide


def steps(guide, count=3, objective=BaselinedTrace_ELBO, **options):
    optimizer = pyro.optim.Adam({"lr": 0.02})
    svi = SVI(guide.model, guide, optimizer, objective(**options))
    return [svi.step() for _ in range(count)]


# ----------------------------------------------------------------------------------------- fits


def two_arcs():
    """Two modes, each bent."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    bent = x[..., 1].abs() + x[..., 0].square() / 4
    pyro.sample("arc", dist.Normal(bent, 0.2), obs=torch.tensor(3.5))


def test_a_flow_bends_what_a_mixture_alone_cannot():
    """Of the same number of components, each in its mode at first."""
    losses = {}
    for kind in ("mixture", "flow"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        signs = itertools.cycle([1.0, -1.0])

        def start(site, signs=signs):
            return next(signs) * torch.tensor([0.1, 3.0])

        if kind == "flow":
            flow = functools.partial(flows.affine_coupling, hidden_dims=[16])
            guide = AutoMixtureFlow(two_arcs, 2, flow, start, 0.3)
        else:
            guide = AutoDiagonalNormalMixture(two_arcs, 2, start, 0.3)
        elbo = {"num_particles": 16, "vectorize_particles": True, "max_plate_nesting": 0}
        steps(guide, 200, **elbo)
        many = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
        losses[kind] = many.loss(two_arcs, guide)
        x = guide.get_posterior().sample((1000,))[:, 1]
        assert 300 < (x > 0).sum() < 700
    assert losses["flow"] < losses["mixture"] - 0.1


@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO, BaselinedTrace_ELBO])
@pytest.mark.parametrize("init_transform_fn", [TWO_COUPLINGS, Bend, flows.spline_coupling])
def test_evidence_of_a_conjugate_model(objective, init_transform_fn):
    """The bounds lie below, by draws of the guide and of each component."""

    def conjugate():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([0.5, -0.5]))

    guide = called(init_transform_fn, of=conjugate, init_scale=0.8)
    with torch.no_grad():
        guide.locs *= 0.2
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor([0.5, -0.5])).sum().item()
    options = {"vectorize_particles": True, "max_plate_nesting": 0}
    bound = -objective(num_particles=20_000, **options).loss(conjugate, guide)
    assert bound < exact + 0.05
    if objective is SIWAE_ELBO:
        assert bound == pytest.approx(exact, abs=0.05)


def test_parameters_of_all_parts_learn():
    guide = called()
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    steps(guide, 3)
    for name, value in guide.named_parameters():
        assert not torch.equal(value, before[name]), name
    stored = set(pyro.get_param_store())
    assert {f"AutoMixtureFlow.{name}" for name in ("locs", "coord_scale", "component_logits")} < (
        stored
    )
    assert len(stored) == len(before)


@pytest.mark.parametrize(
    "made",
    [
        lambda size: flows.Spline(size).inv,
        lambda size: ComposeTransform([flows.Spline(size), flows.Permute(torch.arange(size))]),
        lambda size: ComposeTransformModule([flows.Spline(size).inv, flows.Spline(size)]),
    ],
)
def test_modules_wherever_they_are(made):
    guide = called(made)
    before = [value.detach().clone() for value in guide.transforms.parameters()]
    assert len(before) >= 4
    steps(guide, 2)
    for old, new in zip(before, guide.transforms.parameters(), strict=True):
        assert not torch.equal(old, new)


# ----------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("init_transform_fn", [TWO_COUPLINGS, Bend, flows.Spline])
@pytest.mark.parametrize("init", [None, "prior"])
def test_components_start_where_the_flow_leads_to_their_points(init_transform_fn, init):
    values = {"x": torch.tensor([0.5, -1.5]), "y": torch.tensor(2.0)}

    def start(site):
        return values[site["name"]]

    guide = AutoMixtureFlow(model, 3, init_transform_fn, start, 1e-6, init=init)
    guide()
    latent = guide.get_transform()(guide.locs)
    expected = torch.tensor([0.5, -1.5, math.log(2.0)]).expand(3, 3)
    torch.testing.assert_close(latent, expected, rtol=1e-3, atol=1e-3)
    assert init_transform_fn is Bend or not torch.allclose(guide.locs, expected, atol=0.01)


def test_flows_without_an_inverse_start_below():
    guide = called(flows.Planar, init_loc_fn=lambda site: torch.ones(site["fn"].shape()))
    assert (guide.locs[:, :2] - 1).abs().max() < 0.5
    assert all(map(math.isfinite, steps(guide)))
    with pytest.raises(NotImplementedError, match="got Planar.*draw each component"):
        MarginalizedMixture_ELBO().loss(model, guide)


def test_flows_to_a_half_line():
    """Whose inverse is not that of all starting points."""

    def positive():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = called(lambda size: ExpTransform(), of=positive)
    assert guide.locs.isfinite().all()
    assert (guide.get_posterior().sample((50,)) > 0).all()


def test_a_flow_in_units_of_the_prior():
    """Acts on coordinates as small as its box."""

    def wide():
        pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([100.0, 0.01])).to_event(1))

    guide = called(flows.Spline, of=wide, init="prior", count=20)
    moved = guide.get_transform()(guide.locs)
    assert ((moved - guide.locs).abs() / guide.prior_units).amax(0).min() > 0.05
    posterior = guide.get_posterior()
    y = posterior.rsample((5,))
    torch.testing.assert_close(
        posterior.log_prob(y), posterior.log_prob(y.detach()), rtol=1e-3, atol=1e-2
    )
    assert all(map(math.isfinite, steps(guide)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_model(dtype):
    guide = AutoMixtureFlow(model, 3, TWO_COUPLINGS)
    guide(dtype)
    assert {value.dtype for value in guide.parameters()} == {dtype}
    assert guide(dtype)["x"].dtype == guide.get_posterior().log_prob(guide.locs).dtype == dtype


# ----------------------------------------------------------------------- what other guides offer


def test_posterior_and_its_parts():
    guide = called()
    posterior = guide.get_posterior()
    assert type(posterior) is MixtureFlow
    assert type(guide.get_base_dist()) is MixtureOfDiagNormals
    z = torch.randn(4, 3)
    y = guide.get_transform()(z)
    expected = dist.TransformedDistribution(guide.get_base_dist(), [guide.get_transform()])
    torch.testing.assert_close(posterior.log_prob(y), expected.log_prob(y), rtol=1e-4, atol=1e-4)


def test_moments_and_quantiles_of_draws():
    guide = called(Bend)
    with torch.no_grad():
        guide.transforms[0].shift += 40
    draws = guide.get_posterior().sample((100_000,))
    assert (guide.loc - draws.mean(0)).abs().max() < 0.06
    assert (guide.scale - draws.std(0)).abs().max() < 0.06
    levels = torch.tensor([0.2, 0.7])
    found = guide.quantiles([0.2, 0.7])["y"]
    torch.testing.assert_close(found, draws[:, 2].exp().quantile(levels), rtol=0.1, atol=0)
    assert guide.median()["x"].shape == (2,)


def test_a_given_base():
    """Before the first call and after it; the flow stays."""
    locs = torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, 2.0]])
    given = MixtureOfDiagNormals(locs, torch.ones(2, 3), torch.tensor([0.0, 1.0]))
    for when in ("before", "after"):
        pyro.clear_param_store()
        guide = AutoMixtureFlow(model, 5, Bend)
        if when == "after":
            guide()
            guide.transforms[0].shift.data += 10
        guide.set_base(given)
        guide()
        assert guide.num_components == 2
        assert torch.equal(guide.locs, locs)
        assert bool(guide.transforms[0].shift.any()) == (when == "after")
        z = torch.randn(4, 3)
        torch.testing.assert_close(guide.get_base_dist().log_prob(z), given.log_prob(z))
    for method in (guide.set_posterior, lambda q: AutoMixtureFlow.from_mixture(model, q)):
        with pytest.raises(NotImplementedError, match="set_base"):
            method(given)
    with pytest.raises(ValueError, match="Normals that are one without"):
        guide.set_base(MixtureOfNormals(locs, torch.ones(3, 3).tril().expand(2, 3, 3), locs[:, 0]))


def test_weights_are_refitted_by_the_volumes():
    """Of modes that the flow stretches, each with a component that meets it."""
    target = MixtureOfDiagNormals(
        torch.tensor([[-3.0], [3.0]]), torch.tensor([[0.3], [0.6]]), torch.tensor([0.3, 0.7]).log()
    )
    flow = Bend(1)
    with torch.no_grad():
        flow.log_tail += 30
    bent = MixtureFlow(target, flow)

    def of_two_modes():
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 100.0).to_event(1))
        density = bent.log_prob(x) - dist.Normal(0.0, 100.0).log_prob(x.squeeze(-1))
        pyro.sample("data", dist.Bernoulli(torch.ones(())).mask(False), obs=torch.tensor(1.0))
        pyro.factor("f", density)

    guide = AutoMixtureFlow(of_two_modes, 2, lambda size: copy.deepcopy(flow))
    guide.set_base(MixtureOfDiagNormals(target.locs, target.coord_scale, torch.zeros(2)))
    guide()
    guide.refit_weights(num_samples=200)
    found = guide.component_logits.detach().exp()
    torch.testing.assert_close(found, torch.tensor([0.3, 0.7]), atol=0.01, rtol=0)


@pytest.mark.parametrize("estimator", ["pathwise", "stratified", "gumbel_soft", "score"])
def test_estimators_below_the_flow(estimator):
    guide = called(estimator=estimator)
    assert all(map(math.isfinite, steps(guide, objective=Trace_ELBO, num_particles=3)))
    assert guide.component_logits.grad is not None
    trace = poutine.trace(guide).get_trace()
    (fn,) = [site["fn"] for name, site in trace.nodes.items() if name.endswith("_latent")]
    assert torch.equal(
        fn.log_prob(trace.nodes["_AutoMixtureFlow_latent"]["value"]).isfinite(), torch.tensor(True)
    )


def test_diagnostics_predictions_and_neural_transport():
    guide = called()
    steps(guide)
    assert math.isfinite(psis(model, guide, num_samples=100, vectorize=True).log_evidence)
    assert Predictive(model, guide=guide, num_samples=10, parallel=True)()["x"].shape[0] == 10
    neutra = NeuTraReparam(guide.requires_grad_(False).eval())
    kernel = NUTS(neutra.reparam(model), max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    (latent,) = mcmc.get_samples().values()
    assert neutra.transform_sample(latent)["x"].shape == (5, 2)


class AutoStudentTFlow(AutoMixtureFlow):
    """With another mixture below."""

    distribution = None

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        components = dist.StudentT(5.0, self.locs, self.coord_scale).to_event(1)
        return MixtureSameFamily(weights, components, **options)


def test_another_mixture_below():
    guide = AutoStudentTFlow(model, 3, TWO_COUPLINGS)
    assert all(map(math.isfinite, steps(guide)))
    assert guide.get_base_dist().component_distribution.base_dist.df.unique().item() == 5


# ------------------------------------------------------------------------------ copies, the store


def test_copies_are_the_same_and_apart():
    guide = called(lambda size: TWO_COUPLINGS(size))  # noqa: PLW0108 - not to be pickled
    steps(guide, objective=Trace_ELBO)
    z = torch.randn(5, 3)
    expected = guide.get_posterior().log_prob(z).detach()
    pyro.clear_param_store()
    other = called()
    assert not torch.equal(other.get_posterior().log_prob(z), expected)
    other.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    copies = (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), other)
    with torch.no_grad():
        for value in guide.transforms.parameters():
            value += 1.0
    for each in copies:
        pyro.clear_param_store()
        torch.testing.assert_close(each.get_posterior().log_prob(z), expected)
    assert all(map(math.isfinite, steps(other)))


def test_a_fit_goes_on_with_the_parameters_in_the_store():
    """Those of the flow, too: a second guide of the name shares and trains them."""
    first = called()
    steps(first)
    z = torch.randn(5, 3)
    expected = first.get_posterior().log_prob(z)
    second = called()
    assert torch.equal(second.get_posterior().log_prob(z), expected)
    steps(second)
    assert not torch.equal(first.get_posterior().log_prob(z), expected)
    assert torch.equal(first.get_posterior().log_prob(z), second.get_posterior().log_prob(z))


def test_a_saved_store_is_loaded(tmp_path):
    """As the parameters of other guides are, by a new guide."""
    guide = called()
    z = torch.randn(5, 3)
    expected = guide.get_posterior().log_prob(z).detach()
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().set_state(torch.load(tmp_path / "store.pt", weights_only=False))
    again = called()
    assert torch.equal(again.get_posterior().log_prob(z), expected)
    steps(again)
    assert not torch.equal(again.get_posterior().log_prob(z), expected)
    assert torch.equal(guide.get_posterior().log_prob(z), expected)


def test_another_flow_of_the_same_name_is_refused():
    called(lambda size: flows.Spline(size, count_bins=4))
    other = AutoMixtureFlow(model, 3, lambda size: flows.Spline(size, count_bins=8))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 'AutoMixtureFlow.transforms.*\(3, 8\)"):
            other()
    pyro.clear_param_store()
    other()


def test_apart_in_one_store():
    first, second = (AutoMixtureFlow(model, 3, TWO_COUPLINGS) for _ in range(2))
    for guide in (first, second):
        guide.keep_apart()
        steps(guide)
    z = torch.randn(5, 3)
    assert not torch.equal(first.get_posterior().log_prob(z), second.get_posterior().log_prob(z))


def test_local_parameters():
    with pyro.settings.context(module_local_params=True):
        guide = called()
        before = [value.clone() for value in guide.parameters()]
        loss = Trace_ELBO()(model, guide)
        loss().backward()
        assert not list(pyro.get_param_store())
        assert all(value.grad is not None for value in guide.parameters())
        assert len(before) > 5


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("given", [None, flows.Spline(3), [flows.Spline]])
def test_what_makes_no_transform(given):
    with pytest.raises(ValueError, match="Expected init_transform_fn to make a transform"):
        AutoMixtureFlow(model, 3, given)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda size: nn.Linear(size, size), "transform of torch or Pyro, of vectors of size 3"),
        (lambda size: [flows.Spline(size)], "but got list"),
        (lambda size: flows.affine_coupling(size + 2), r"\(3,\).*but AffineCoupling"),
        (lambda size: flows.SoftmaxTransform(), "bijective"),
    ],
)
def test_transforms_that_do_not_fit(made, match):
    """In each call until it is mended."""
    guide = AutoMixtureFlow(model, 3, made)
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            guide()


def test_not_called_before():
    guide = AutoMixtureFlow(model, 3, TWO_COUPLINGS)
    for method in (guide.get_posterior, guide.get_base_dist, guide.get_transform, guide.median):
        with pytest.raises(ValueError, match="AutoMixtureFlow makes its parameters at its first"):
            method()
