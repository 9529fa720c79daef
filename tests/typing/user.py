"""What a user writes, with annotations: ``mypy --strict`` has nothing to say about it.

Its functions are not called: that names exist and have types is what mypy sees.
"""

from __future__ import annotations

import functools
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, ExpTransform, Gamma, Normal, kl_divergence
from torch.distributions.constraints import Constraint

import pyro_mixtures as pm
from pyro_mixtures import estimators, families, normals
from pyro_mixtures.distributions import MixtureDistribution, ParametricMixture
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.samples.blending import Blending

LOCS, SCALES, LOGITS = torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3)
FACTORS = torch.eye(2).expand(3, 2, 2)
WEIGHTS = Categorical(logits=LOGITS)


def mixtures() -> list[MixtureDistribution]:
    diagonal = pm.MixtureOfDiagNormals(LOCS, SCALES, LOGITS, transport="telescoping")
    full = pm.MixtureOfNormals(LOCS, FACTORS, LOGITS, weight_gradient="hybrid")
    of_scales = pm.GaussianScaleMixture(torch.ones(2), torch.ones(3), LOGITS)
    learned = pm.AVFMixtureOfDiagNormals(LOCS, SCALES, LOGITS, torch.zeros(2, 3, 2))
    one = pm.MixtureOfDiagNormalsSharedCovariance(LOCS, torch.ones(2), LOGITS)
    other = pm.MixtureOfNormalsSharedCovariance(LOCS, torch.eye(2), LOGITS)
    of_gammas = pm.MixtureSameFamily(WEIGHTS, Gamma(torch.ones(3), 1.0), validate_args=False)
    several = pm.Mixture(WEIGHTS, [Normal(0.0, 1.0), Normal(1.0, 1.0), Normal(2.0, 1.0)])
    return [diagonal, full, of_scales, learned, one, other, of_gammas, several]


def contract(q: MixtureDistribution) -> Tensor:
    """All that a mixture does."""
    z: Tensor = q.rsample((5,)) + q.sample(torch.Size([5])) + q.rsample() + q.sample()
    both: tuple[Tensor, Tensor] = q.sample_with_index((5,))
    log_prob: Tensor = q.log_prob(z) + q.log_weights.logsumexp(-1)
    each: Tensor = q.component_log_prob(z) + q.responsibilities(both[0])
    moments: Tensor = q.mean + q.variance + q.covariance_matrix.diagonal()
    values: Tensor = q.cdf(z) + q.icdf(0.5) + q.icdf(torch.rand(5))
    values = values + q.marginal_cdf(z) + q.marginal_icdf(torch.rand(2))
    low, high = q.entropy_bounds()
    wide: MixtureDistribution = q.expand((4, 3))
    part: MixtureDistribution = q.marginal([0])
    rest: MixtureDistribution = q.condition(0, torch.zeros(1))
    image = q.affine(torch.ones(2), torch.zeros(2))
    again: Tensor = q.reparameterize(z)
    score: Any = q.score_parts(z).score_function
    copies: list[MixtureDistribution] = [q.blended(None), q.with_weight_gradient("pathwise")]
    support: Constraint | None = q.support
    has_rsample: bool = q.has_rsample
    count: int = q.num_components
    shapes: tuple[torch.Size, torch.Size] = (q.batch_shape, q.event_shape)
    words: tuple[str, str, torch.device] = (q.transport, q.weight_gradient, q.device)
    groups: Tensor = q.groups
    masked, event = q.mask(True), q.to_event(1)
    known = wide, part, rest, image, again, score, copies, support, has_rsample, count
    print(known, shapes, words, groups, masked, event)
    return log_prob + each + moments + values + low + high


def fitted(samples: Tensor) -> ParametricMixture:
    learned: pm.AVFMixtureOfDiagNormals = pm.AVFMixtureOfDiagNormals.from_samples(samples, 3)
    print(learned.control_var)
    mixture: pm.MixtureOfDiagNormals = pm.MixtureOfDiagNormals.from_samples(samples, 3, seed=1)
    wide: pm.MixtureOfDiagNormals = mixture.expand([2])
    return wide


def others() -> Tensor:
    """Elliptical and relaxed distributions, and a flow."""
    control_var = torch.zeros(2, 1, 2)
    normal = pm.AVFMultivariateNormal(torch.zeros(2), torch.eye(2), control_var, planes="rows")
    heavy = pm.AVFMultivariateStudentT(
        torch.tensor(3.0), torch.zeros(2), torch.eye(2), control_var
    )
    best = pm.OMTMultivariateNormal(torch.zeros(2), torch.eye(2))
    soft = pm.RelaxedCategorical(0.5, logits=LOGITS)
    hard = pm.RelaxedCategoricalStraightThrough(0.5, probs=torch.ones(3) / 3)
    logs = pm.ExpRelaxedCategorical(torch.tensor(0.5), logits=LOGITS)
    coin = pm.RelaxedBernoulli(0.5, logits=LOGITS)
    flip = pm.RelaxedBernoulliStraightThrough(0.5, logits=LOGITS)
    gumbel = pm.GumbelSoftmaxMixtureOfDiagNormals(LOCS, SCALES, LOGITS, 0.5, hard=True)
    flow = pm.TransformedDistribution(normal, [])
    total = torch.zeros(())
    each: tuple[pm.AVFElliptical, ...] = (normal, heavy)
    for q in (*each, best):
        z: Tensor = q.rsample((3,)) + q.sample() + q.mean + q.variance
        total = total + q.log_prob(z).sum() + q.expand((2,)).log_prob(z).sum()
    for relaxed in (soft, hard, logs, coin, flip):
        y: Tensor = relaxed.rsample((3,))
        total = total + relaxed.log_prob(y).sum() + relaxed.expand([4]).probs.sum()
    slope: Tensor = normal.variance_gradient(normal.sample(), torch.ones(2))
    x: Tensor = gumbel.rsample() + gumbel.mean + flow.rsample((2,)) + slope
    of_flow: Tensor = flow.log_prob(x)
    bent = pm.MixtureFlow(gumbel.mixture, [ExpTransform()], validate_args=False)
    y, index = bent.sample_with_index((2,))
    of_flow = of_flow + bent.log_weights.sum() + bent.component_logits.sum() + bent.num_components
    print(bent.component_log_prob(y), bent.responsibilities(y), index, bent.expand((3,)))
    return total + gumbel.log_prob(x) + of_flow


def random_weights() -> Tensor:
    """Weights that are broken from sticks."""
    q = pm.KumaraswamyStickBreaking(torch.ones(2), torch.ones(2), validate_args=False)
    sticks = pm.StickBreaking(Beta(torch.ones(2), 1.0))
    priors = [sticks, pm.StickBreaking.gem(1.0, 3), pm.StickBreaking.dirichlet(torch.ones(3))]
    weights: Tensor = q.rsample((2,)) + q.mean + q.variance + q.a.sum() + q.b.sum()
    logits: Tensor = q.log_weights(weights) + q.entropy()
    wide: pm.KumaraswamyStickBreaking = q.expand((4,))
    density: Tensor = wide.log_prob(weights) + priors[0].log_prob(weights)
    total: Tensor = logits.sum() + density.sum()
    for prior in priors:
        total = total + kl_divergence(q, prior)
    return total


def model(data: Tensor) -> None:
    z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", pyro.distributions.Normal(z.sum(), 1.0), obs=data)


def fit(data: Tensor) -> dict[str, Tensor]:
    """Guides and objectives."""
    guide: pm.AutoMixture = pm.AutoDiagonalNormalMixture(model, 3, estimator="stratified")
    guide.keep_apart()
    full = pm.AutoMultivariateNormalMixture(model, num_components=3, init="prior")
    kin: list[pm.AutoMixture] = [
        pm.AutoSharedDiagonalNormalMixture(model, 3),
        pm.AutoSharedMultivariateNormalMixture(model, 3),
        pm.AutoGaussianScaleMixture(model, 3),
        pm.AutoAVFDiagonalNormalMixture(model, 3),
    ]
    bent = pm.AutoMixtureFlow(model, 3, pyro.distributions.transforms.Spline, init="prior")
    bent.set_base(pm.MixtureOfDiagNormals(LOCS, SCALES, LOGITS))
    of_flow: pm.MixtureFlow = bent.get_posterior(data)
    print(of_flow.moved(LOCS), bent.get_base_dist().mean, bent.get_transform().bijective, bent.loc)
    rotated = pm.AutoAVFMultivariateNormal(model, 2)
    heavy = pm.AutoAVFMultivariateStudentT(model)
    best = pm.AutoOMTMultivariateNormal(model)
    baselined = pm.BaselinedTrace_ELBO(num_particles=4, vectorize_particles=True)
    marginalized = pm.MarginalizedMixture_ELBO()
    stratified = pm.SIWAE_ELBO(num_particles=2, sticking_the_landing=True)
    optimizer = PyroOptim(torch.optim.Adam, pm.avf_optim_args({"lr": 0.01}, {"lr": 0.1}))
    SVI(model, guide, optimizer, baselined).step(data)
    total: Tensor = baselined.differentiable_loss(model, guide, data)
    total = total + marginalized.differentiable_loss(model, guide, data)
    weighted = pm.ImportanceWeighted_ELBO(num_particles=3, doubly_reparameterized=True)
    with pm.Annealing(pm.annealing_weight(3, 10, start=0.1)):
        total = total + weighted.differentiable_loss(model, kin[0], data)
    free_bits = pm.FreeBits(2.0, decay=0.5)
    with free_bits:
        SVI(model, guide, optimizer, baselined).step(data)
    print(free_bits.rates["x"] + free_bits.weight("x"), free_bits.state_dict())
    loss: float = stratified.loss(model, guide, data) + stratified.loss_and_grads(model, guide)
    print(loss, total)
    posterior: MixtureDistribution = guide.get_posterior(data)
    guide.set_posterior(posterior)
    guide.hold_weights(False)
    is_done: bool = pm.EarlyStopping(window=100, patience=2)(1.0)
    print(is_done)
    guide.refit_weights(data, num_samples=50)
    guide.prune(1e-3, max_overlap=0.97)
    same: pm.AutoDiagonalNormalMixture = pm.AutoDiagonalNormalMixture.from_mixture(
        model, posterior, data
    )
    print(full.get_posterior().mean, rotated.get_posterior().mean, best.get_posterior().mean)
    print(heavy.quantiles([0.1, 0.9]), guide.sample_latent(data), posterior.log_weights)
    return {**same.median(data), **guide.quantiles([0.5], data)}


def density(data: Tensor) -> dict[str, Tensor]:
    """The log density of a model."""
    start = pm.starting_mixture(model, (data,), num_components=3, seed=1)
    print(start.log_prob(start.sample()), pm.AutoMixture(model, 3, init="modes").init)
    log_density = pm.ModelLogDensity(model, (data,), way="plate")
    z: Tensor = log_density.prior_draws(5)
    value: Tensor = log_density(z)
    places: dict[str, slice] = log_density.site_slices
    names: list[str] = log_density.coordinate_names
    size: int = log_density.dimension
    precision: torch.dtype = log_density.dtype
    way: str = log_density.way
    reasons: dict[str, str] = log_density.refused
    constraint: Any = log_density.supports(z[0])["z"]
    print(value, places, names, size, precision, way, reasons, constraint)
    print(log_density.unsampled_sites)
    return log_density.constrain(z)


def constrained(parameters: list[Tensor]) -> float:
    """Under given expectations."""

    def draw(count: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, 2)
        return cost(z), z - 1

    optimizer = torch.optim.Adam(parameters)
    own = pm.AugmentedLagrangian(penalty=2.0, growth=3.0, decrease=0.3, patience=4)
    lagrangian: pm.AugmentedLagrangian = pm.train_constrained(
        draw, optimizer, tolerance=0.1, num_steps=5, lagrangian=own
    )
    print(lagrangian.costs(torch.ones(4, 2)), lagrangian.update(torch.ones(4, 2)).multipliers)
    return lagrangian.history[-1].norm + lagrangian.penalty


def relaxed_model(data: Tensor) -> Any:
    return pyro.poutine.reparam(model, {"z": pm.GumbelSoftmaxReparam()})


def cost(z: Tensor) -> Tensor:
    return z.square().sum(-1)


def estimates(q: pm.MixtureOfDiagNormals) -> Tensor:
    """Estimators, by name and as functions."""
    total: Tensor = estimators.expectation(q, cost, estimator="graves", num_samples=3)
    total = total + pm.estimators.marginalized(q, cost, num_samples=3)
    soft = functools.partial(estimators.gumbel_soft, temperature=0.1)
    total = total + estimators.expectation(q, cost, estimator=soft, baseline=1.0)
    names: list[str] = list(estimators.ESTIMATORS)
    around: estimators.EstimatedMixture = estimators.graves(q)
    total = total + around.log_prob(estimators.gumbel_hard(q, temperature=0.5).rsample())
    print(names, estimators.blended(q, Blending()).rsample())
    z: Tensor = estimators.implicit(q).rsample((2,)) + estimators.score(q).sample()
    z = z + estimators.stratified(q, expanded=True).rsample((2,)) + component_samples(q, (2,))
    for each in (estimators.hybrid(q), estimators.pathwise(q), estimators.clustered(q)):
        same: pm.MixtureOfDiagNormals = each
        z = z + same.rsample()
    low, high = pm.kl_bounds(q, q)
    below, above = normals.mixture_entropy_bounds(q.log_weights, LOCS, SCALES)
    return total + z.sum() + low + high + below + above


def searched(data: Tensor) -> str:
    """From a model to its posterior, and from a density to a mixture."""
    result: pm.FitResult = pm.fit(
        model, data, num_starts=50, max_evaluations=20_000, seed=1, progress=False
    )
    search = pm.ModeSearch(lambda z: -cost(z), torch.randn(50, 2), num_components=2)
    search.step()
    state: dict[str, Any] = search.state_dict()
    search.load_state_dict(state)
    mixture: MixtureDistribution = search.mixture if search.done else search.run()
    told: list[str] = search.log
    elbos: list[float] = search.elbos
    why: str | None = search.stopped
    count: int = search.evaluations.count
    optima: Tensor = search.optima.points
    print(mixture, told, elbos, why, count, optima)
    return looked_at(result)


def looked_at(result: pm.FitResult) -> str:
    """What a fit gives back."""
    q: MixtureDistribution = result.posterior
    draws: dict[str, Tensor] = result.draws(10, resample=True, seed=1)
    medians: dict[str, Tensor] = result.guide.median()
    summary = result.summary(num_samples=100)
    figures: float = summary.elbo + summary.log_evidence_error + summary.khat + result.seconds
    alarms: list[str] = summary.alarms + summary.notes + result.log
    weights: list[float] = [mode.weight for mode in result.modes]
    location: Tensor = result.modes[0].location["x"] + result.modes[0].spread["x"]
    nearest = result.modes[0].nearest
    distance: float = 0.0 if nearest is None else nearest.distance
    passed: bool = summary.passed_checks
    print(q, draws, medians, figures, weights, location, distance, passed, result.to_arviz())
    return "\n".join([*alarms, str(summary)])


def diagnosed(q: pm.MixtureOfDiagNormals, data: Tensor) -> str:
    """Diagnostics, and the figures of them."""
    guide = pm.AutoDiagonalNormalMixture(model, 3)
    found: pm.diagnostics.PSIS = pm.diagnostics.psis(model, guide, data)
    khat: float = found.khat + found.elbo_error + found.log_evidence_error
    told: str = found.verdict + str(found)
    draws: dict[str, Tensor] = found.resample(10)
    parameters = {"locs": LOCS, "coord_scale": SCALES, "component_logits": LOGITS}
    by_cost = pm.diagnostics.gradient_variance(
        pm.MixtureOfDiagNormals, cost, parameters, estimator="hybrid"
    )
    by_step: dict[str, pm.diagnostics.GradientVariance] = pm.diagnostics.elbo_gradient_variance(
        Trace_ELBO(), model, guide, data, num_draws=10, vectorize=True
    )
    variance: Tensor = by_cost["locs"].variance + by_step["locs"].variance_error
    summary: pm.diagnostics.ComponentSummary = pm.diagnostics.component_summary(q, num_samples=100)
    overlaps: Tensor = summary.overlaps
    bounds: pm.diagnostics.Evaluation = pm.diagnostics.evaluate(model, guide, data, num_samples=99)
    each: pm.diagnostics.Evaluation = pm.diagnostics.evaluate_data(
        model, guide, data, plate="data", num_samples=99, checkpoint="bounds.pt"
    )
    print(each.iw_bound_data_error)
    terms: pm.diagnostics.ELBOTerms = pm.diagnostics.elbo_terms(
        model, guide, data, plate="data", minibatch=50
    )
    coordinates: Tensor | None = terms.dimension_kl
    print(terms.rate, terms.errors["rate"], terms.active_units, coordinates)
    smoothed, shape = pm.diagnostics.pareto_smoothed(torch.randn(99))
    site: str | None = pm.diagnostics.nonfinite_site(Trace_ELBO(), model, guide, data)
    print(bounds.elbo, smoothed, shape, site, pm.diagnostics.nonfinite_gradient(guide))
    pm.plotting.plot_mixture(q)
    pm.plotting.plot_pairs(q, [0, 1], names=["tau", "theta[0]"])
    pm.plotting.plot_draws(found.samples, weights=found.log_weights.exp())
    pm.plotting.plot_elbo([1.0, 2.0])
    pm.plotting.plot_gradient_variance({"hybrid": by_cost})
    return f"{khat} {told} {draws} {variance} {overlaps} {summary}"


class Autoencoder(nn.Module):
    """A module of the package in one of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = pm.nn.VectorQuantize(8, 2, ema_decay=0.99, restart_below=0.1)
        self.encoder = pm.nn.ConditionalMixture(4, event_size=2, num_components=3, family="full")
        self.prior = pm.nn.VampPrior(self.encoder, torch.rand(5, 4), lo=0.0, hi=1.0)
        top = pm.nn.MixturePrior(2, 3, init_spread=2.0).init_from(torch.randn(10, 2))
        self.levels = pm.nn.HierarchicalPrior(top, self.encoder)
        self.rates = pm.nn.ConditionalMixtureSameFamily(4, Gamma(torch.ones(3), 1.0))
        self.bent = pm.nn.ConditionalMixtureFlow(self.encoder, [ExpTransform()])

    def forward(self, x: Tensor) -> Tensor:
        quantized: pm.nn.Quantized = self.codebook(x)
        q: MixtureDistribution = self.encoder(x)
        rates: MixtureDistribution = self.rates(x)
        kl: Tensor = pm.nn.prior_kl(q, self.prior(), way="upper_bound")
        joint: pm.nn.Hierarchical = self.levels()
        bent: pm.MixtureFlow = self.bent(x)
        kl = kl + self.levels.kl_divergence(q, self.encoder, num_samples=3)
        print(bent.component_log_prob(x), self.bent.condition(x).log_weights)
        print(kl, joint.split(joint.sample()), self.prior.pseudo_inputs, self.levels.event_size)
        perplexity: Tensor = self.codebook.perplexity(quantized.indices)
        print(perplexity, self.codebook.code_counts)
        return quantized.quantized + q.rsample() + rates.rsample().unsqueeze(-1)


def checked() -> None:
    """A distribution of the user's own keeps the contract."""

    def parameters(batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"locs": LOCS, "scale": SCALES, "logits": LOGITS}

    def build(given: dict[str, Tensor]) -> pm.MixtureOfDiagNormals:
        return pm.MixtureOfDiagNormals(given["locs"], given["scale"], given["logits"])

    case = pm.testing.DistributionCase(parameters, build)
    names: list[str] = list(pm.testing.CHECKS)
    pm.testing.check(case, *names[:2])


class Waiting(Gamma):
    """A family of the user's own."""


@families.register_velocity(Waiting)
def _(distribution: Waiting, value: Tensor) -> Tensor:
    return value * distribution.rate.detach() / distribution.rate


print(pm.__version__, pm.UnusedScoreWarning, pm.detached)
