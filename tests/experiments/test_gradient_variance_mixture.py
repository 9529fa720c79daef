"""Fig. 1b and 1c: the paper's fields, gradients sample by sample, and the quick run."""

import json
import math
from functools import partial

import pytest
import torch
from torch.distributions import Independent, Normal

from experiments.gradient_variance_mixture import GradientVarianceMixture, circle, experiment
from experiments.gradient_variance_mixture.families import FAMILIES, random_mixture, ratios
from experiments.logit_gradients import costs, estimators
from experiments.logit_gradients.costs import COSTS, exact_gradient
from experiments.logit_gradients.draws import Draws, mean_cost
from experiments.logit_gradients.moments import THRESHOLD, moments
from experiments.logit_gradients.paper import PaperMixtureOfDiagNormals
from pyro_mixtures import estimators as package
from pyro_mixtures.diagnostics import gradient_variance

FILES = {"config.json", "metrics.csv", "summary.json", "table.md", "families.png", "circle.png"}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_cost = pytest.mark.parametrize("cost", COSTS)
BASELINE = torch.tensor(0.7, dtype=torch.float64)


def copies(mixture, count, **options):
    """As many of the mixture, and their logits, which take a gradient each."""
    logits = mixture.component_logits.expand(count, -1).clone().requires_grad_()
    parameters = {name: value.expand(count, *value.shape) for name, value in mixture.given.items()}
    return type(mixture)(**parameters, component_logits=logits, **options), logits


@each_family
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_divergence_of_the_papers_fields(family, dim):
    """``div w^j = h - q_j`` where the hub h mixes Normals of one scale, all for autograd."""
    mixture = random_mixture(family, 3, dim, seed=dim)
    locs, scales = mixture.components.normals("test")
    scales = scales.expand_as(locs)
    weights = mixture.log_weights.exp()
    z = mixture.sample((50,)).requires_grad_()
    log_prob = mixture.log_prob(z).unsqueeze(-1)
    field = type(mixture).transports["paper"]
    currents = [
        log_prob.exp()
        * field(
            z,
            unit.expand_as(z),
            log_prob,
            weights[None],
            *mixture.components.parameters,
            precision=torch.float64,
        )
        for unit in torch.eye(dim, dtype=torch.float64)
    ]  # of each coordinate, (N, K)
    found = torch.zeros(50, 3, dtype=torch.float64)
    for i, current in enumerate(currents):
        for j in range(3):
            (slope,) = torch.autograd.grad(current[:, j].sum(), z, retain_graph=True)
            found[:, j] += slope[:, i]
    components = Independent(Normal(locs, scales), 1).log_prob(z.unsqueeze(1)).exp()
    if family == "scale mixture, zero means":  # its hub is another scale; only differences matter
        hub = found[:, :1] + components[:, :1]
    else:
        common = Independent(Normal(locs, scales.amin(-2, keepdim=True).expand_as(locs)), 1)
        hub = common.log_prob(z.unsqueeze(1)).exp() @ weights[:, None]
    size = components.amax(-1, keepdim=True) + hub.abs()
    assert ((found + components - hub) / size).abs().max() < 1e-8


@each_family
def test_samples_have_the_gradients_of_the_package(family):
    """Those of ``reparameterize`` and ``score_parts``, one sample of each of many mixtures.

    But for the displacement of a shared covariance, whose hub is along the axes of the means when
    there are several samples of a mixture.
    """
    mixture = random_mixture(family, 4, 3, seed=1)
    cost = costs.ragged(mixture)
    draws = Draws.draw(mixture, cost, 60, BASELINE)
    blending = estimators.learn(Draws.draw(mixture, cost, 60, BASELINE))
    every = estimators.single(draws, draws) | {"blended": estimators.blended(draws, blending)}
    if family == "shared covariance":
        every = {name: every[name] for name in ("score", "telescoping", "pairwise", "implicit")}
    for name, expected in every.items():
        options = {}
        if name in type(mixture).transports:
            options["transport"] = name
        many, logits = copies(mixture, 60, **options)
        chosen = {"score": package.hybrid, "clustered": package.clustered}
        chosen["blended"] = partial(package.blended, blending=blending)
        many = chosen.get(name, package.pathwise)(many)
        z = many.reparameterize(draws.record.z)
        value, score = cost.value(z), many.score_parts(z).score_function
        (value + (value - BASELINE).detach() * score).sum().backward()
        torch.testing.assert_close(logits.grad, expected, rtol=1e-8, atol=1e-10)


def test_a_learned_hub_has_the_gradients_of_the_package():
    torch.manual_seed(0)
    mixture = random_mixture("diagonal covariances", 4, 3, seed=1)
    cost = costs.ragged(mixture)
    draws = Draws.draw(mixture, cost, 60, BASELINE)
    hub = estimators.learned_hub(mixture, cost, 5, 20)
    many, logits = copies(hub, 60)
    cost.value(package.pathwise(many).reparameterize(draws.record.z)).sum().backward()
    found = estimators.by_learned_hub(draws, hub)
    torch.testing.assert_close(logits.grad, found, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found, estimators.transported(draws, "displacement"), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "estimator", "samples"),
    [
        ("score", "hybrid", 1),
        ("displacement", "pathwise", 1),
        ("clustered", "clustered", 1),
        ("implicit", "implicit", 1),
        ("implicit", "graves", 1),
        ("stratified", "stratified", 5),
        ("marginalized", package.marginalized, 1),
    ],
)
@pytest.mark.parametrize("cost", ["quadratic", "cosine"])
def test_moments_are_those_of_the_package(name, estimator, samples, cost):
    """Mean and variance of ``gradient_variance``; 5 sigma."""
    mixture = random_mixture("diagonal covariances", 3, 2, seed=3)
    chosen = COSTS[cost](mixture)
    if name == "stratified":
        found = estimators.stratified(mixture, chosen, 4000, samples)
    elif name == "marginalized":
        found = estimators.marginalized(mixture, chosen, 4000)
    else:
        draws = Draws.draw(mixture, chosen, 4000, BASELINE)
        found = estimators.single(draws, draws)[name]
    parameters = {**mixture.given, "component_logits": mixture.component_logits}
    theirs = gradient_variance(
        PaperMixtureOfDiagNormals,
        chosen.value,
        parameters,
        num_draws=4000,
        estimator=estimator,
        num_samples=samples,
        baseline=BASELINE,
    )["component_logits"]
    ours = moments(found, exact_gradient(mixture, chosen))
    error = math.hypot(ours.error, theirs.variance_error.sum().item())
    assert abs(ours.variance - theirs.variance.sum().item()) < 5 * error
    error = (found.var(0) / len(found) + theirs.mean_error.square()).sqrt()
    assert ((found.mean(0) - theirs.mean).abs() < 5 * error).all()


@each_cost
def test_exact_gradients_are_those_of_a_quadrature(cost):
    mixture = random_mixture("diagonal covariances", 3, 1, seed=0)
    chosen = COSTS[cost](mixture)
    z = torch.linspace(-15, 15, 20_001, dtype=torch.float64)[:, None]
    draws = Draws.of(mixture, chosen, z, BASELINE)
    mass = draws.record.log_prob.exp() * (z[1] - z[0])
    expected = (mass * estimators.score(draws)).sum(0)
    exact = exact_gradient(mixture, chosen)
    assert ((exact.gradient - expected).abs() <= 5 * exact.error + 1e-7).all()


@each_family
@each_cost
def test_all_estimators_are_unbiased(family, cost):
    mixture = random_mixture(family, 4, 3, seed=2)
    chosen = COSTS[cost](mixture)
    baseline = mean_cost(mixture, chosen, 500)
    draws, trial = (Draws.draw(mixture, chosen, 10_000, baseline) for _ in range(2))
    exact = exact_gradient(mixture, chosen)
    every = estimators.single(draws, trial)
    every["stratified"] = estimators.stratified(mixture, chosen, 2000, 5)
    every["marginalized"] = estimators.marginalized(mixture, chosen, 10_000)
    if family == "diagonal covariances":
        hub = estimators.learned_hub(mixture, chosen, 20, 50)
        every["learned hub"] = estimators.by_learned_hub(draws, hub)
    for name, values in every.items():
        assert moments(values, exact).rms_z < THRESHOLD, name


def test_a_field_that_misses_the_gap_is_unreliable():
    """Its variance is small, for no sample lies between the components."""
    mixture = circle.ring(3, 0.08)
    cost = costs.linear(torch.tensor([1.0, 0.5], dtype=torch.float64))
    draws = Draws.draw(mixture, cost, 1000, BASELINE)
    exact = exact_gradient(mixture, cost)
    assert not moments(estimators.transported(draws, "telescoping"), exact).reliable
    assert moments(estimators.score(draws), exact).reliable


def test_grid_and_samples_agree_where_components_overlap():
    found = circle.cell(3, 1.0, draws=20_000, pilot=1000, seed=0)
    for name, variance in found["grid"].items():
        assert found["samples"][name]["variance"] == pytest.approx(variance, rel=0.08)
        assert found["samples"][name]["reliable"]


def test_learned_hub_is_better_than_the_moments():
    found = ratios("diagonal covariances", 5, 10, 0, draws=1000, pilot=500, hub_steps=100)
    assert found["learned hub"]["ratio"] < 0.8 * found["displacement"]["ratio"]
    assert found["displacement"]["ratio"] < found["paper"]["ratio"]


def test_quick_run_writes_everything_and_resumes(tmp_path, monkeypatch, capsys):
    """A run broken between two stages ends with the numbers of an unbroken one."""
    GradientVarianceMixture(quick=True, out=tmp_path / "whole").run()
    assert "| diagonal covariances | learned hub |" in capsys.readouterr().out
    folder = tmp_path / "whole" / "gradient_variance_mixture-quick"
    assert FILES <= {path.name for path in folder.iterdir()}
    expected = json.loads((folder / "summary.json").read_text())

    with monkeypatch.context() as patch:
        patch.setattr(experiment.circle, "cell", _stopped)
        with pytest.raises(KeyboardInterrupt):
            GradientVarianceMixture(quick=True, out=tmp_path / "broken").run()
    GradientVarianceMixture(quick=True, out=tmp_path / "broken", resume=True).run()
    found = tmp_path / "broken" / "gradient_variance_mixture-quick"
    assert (folder / "metrics.csv").read_text() == (found / "metrics.csv").read_text()
    summary = json.loads((found / "summary.json").read_text())
    assert summary["families"] == expected["families"]
    assert summary["circle"] == expected["circle"]


def _stopped(*args, **kwargs):
    raise KeyboardInterrupt


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="seeds >= 2, but got 1"):
        GradientVarianceMixture(seeds=1)
    with pytest.raises(ValueError, match="dims of 1 and more"):
        GradientVarianceMixture(dims=())
    with pytest.raises(ValueError, match="no draws of your own"):
        GradientVarianceMixture(quick=True, draws=70)
