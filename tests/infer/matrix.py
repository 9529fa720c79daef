"""Guides crossed with objectives: what each cell's gradient is, and the table of the docs.

In one dimension the velocity field of a mixture is unique, so that a reference of a dozen lines,
written with torch's own mixture, has the right gradient under every objective. Samples are
quantiles in place of random draws: a mean over them is an integral, and bias shows in one step.

``python -m tests.infer.matrix`` prints the table of ``docs/objectives.md``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal
from torch.distributions.transforms import AffineTransform, ExpTransform

import pyro_mixtures.distributions as pm
from pyro_mixtures.distributions import strata
from pyro_mixtures.distributions.component_mixture import ComponentMixture
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.estimators import ESTIMATORS
from pyro_mixtures.estimators.stratified import StratifiedMixture
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
)

NUM_POINTS = 4000
IN_A_LOOP = 300
OBSERVED = torch.tensor([4.0, 2.0])  # of two rows; the first where there is one

# two overlapping components and one apart: "clustered" makes two groups of them
LOCS = torch.tensor([[-2.0], [-1.2], [2.2]])
SCALES = torch.tensor([[0.7], [1.0], [0.7]])
LOGITS = torch.tensor([0.4, -0.3, 0.1])


class Parameters(PyroModule):
    """What guides written by hand are made of, ``(*B, K, 1)`` and ``(*B, K)``."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__("parameters")
        values = [LOCS, SCALES, LOGITS]
        if batch is not None:
            rows = torch.linspace(0, 0.3, batch)
            values = [torch.stack([value * (1 + row) for row in rows]) for value in values]
        locs, scales, logits = (value.to(torch.get_default_dtype()) for value in values)
        self.locs, self.logits = PyroParam(locs), PyroParam(logits)
        self.scales = PyroParam(scales, dist.constraints.positive)

    def forward(self, guide: Callable[[], None]) -> None:
        guide()  # where attributes are Pyro's parameters

    def tensors(self, rows: Any = slice(None)) -> list[Tensor]:
        if self.logits.dim() == 1:
            return [self.locs, self.scales, self.logits]
        return [self.locs[rows], self.scales[rows], self.logits[rows]]


class Points:
    """Quantiles in a random order, all at once or one after the other."""

    count = NUM_POINTS

    def __init__(self, parameters: Any, kind: type = Normal) -> None:
        locs, scales, logits = (x.detach().double() for x in parameters)
        mixture = MixtureSameFamily(
            Categorical(logits=logits), kind(locs.squeeze(-1), scales.squeeze(-1))
        )
        shape = mixture.batch_shape
        u = (torch.arange(self.count, dtype=torch.float64) + 0.5) / self.count
        u = u.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
        low, high = torch.full_like(u, -60.0), torch.full_like(u, 60.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = mixture.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))
        self.values = low[order].unsqueeze(-1).to(torch.get_default_dtype())  # (N, *B, 1)
        self.position = 0

    def of_rows(self, rows: Any) -> Points:
        new = copy.copy(self)
        new.values = self.values[:, rows]
        return new

    def take(self, shape: torch.Size) -> Tensor:
        count = shape.numel() // self.values[0].numel()
        if count == len(self.values):
            return self.values.reshape(shape)
        rows = (self.position + torch.arange(count)) % len(self.values)
        self.position += count
        return self.values[rows].reshape(shape)


class Reference(dist.TorchDistribution):
    """A one-dimensional mixture that moves with the quantiles of torch's own."""

    arg_constraints = {}
    has_rsample = True
    support = dist.constraints.real_vector

    def __init__(self, locs, scales, logits, kind=Normal, batch_shape=None, points=None):
        self.parts, self.points = (locs, scales, logits, kind), points
        self.mixture = MixtureSameFamily(
            Categorical(logits=logits), kind(locs.squeeze(-1), scales.squeeze(-1))
        )
        if batch_shape is None:
            batch_shape = self.mixture.batch_shape
        super().__init__(batch_shape, torch.Size([1]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Reference(*self.parts, batch_shape=torch.Size(batch_shape), points=self.points)

    def rsample(self, sample_shape=torch.Size()):
        z = self.points.take(self._extended_shape(sample_shape)).squeeze(-1)
        cdf, density = self.mixture.cdf(z), self.mixture.log_prob(z).exp().detach()
        return (z - (cdf - cdf.detach()) / density).unsqueeze(-1)

    def log_prob(self, value):
        return self.mixture.log_prob(value.squeeze(-1))


@contextlib.contextmanager
def quantiles_for_samples(points: Points) -> Iterator[None]:
    """Have all mixtures of the package take the points in place of random draws."""

    def rsample(self, sample_shape=torch.Size()):
        return self.reparameterize(sample(self, sample_shape))

    def sample(self, sample_shape=torch.Size()):
        return points.take(self._extended_shape(sample_shape))

    def sample_of_estimator(self, sample_shape=torch.Size()):
        return sample(self.mixture, sample_shape)

    with contextlib.ExitStack() as stack:
        for cls in (ParametricMixture, ComponentMixture, pm.MixtureSameFamily):
            stack.enter_context(mock.patch.object(cls, "rsample", rsample))
            stack.enter_context(mock.patch.object(cls, "sample", sample))
        stack.enter_context(mock.patch.object(StratifiedMixture, "sample", sample_of_estimator))
        yield


@contextlib.contextmanager
def quantiles_for_components(wanted: bool) -> Iterator[None]:
    """Have the draws of each component be quantiles, too."""

    def uniform(count: int, dim: int) -> Tensor:
        u = (torch.arange(count) + 0.5) / count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return u[order].reshape(-1, *(1,) * (dim - 1))

    def randn(*size, **options):
        shape = torch.Size(size[0] if isinstance(size[0], tuple) else size)
        noise = Normal(0.0, 1.0).icdf(uniform(shape[0], len(shape)))
        return noise.expand(shape).to(**options)

    def rsample(component, sample_shape):
        shape = component._extended_shape(sample_shape)
        return component.base_dist.icdf(uniform(shape[0], len(shape)).expand(shape))

    if wanted:
        with (
            mock.patch.object(torch, "randn", randn),
            mock.patch.object(strata, "_rsample", rsample),
        ):
            yield
    else:
        yield


# ---------------------------------------------------------------------------------------- models


def likelihood(x: Tensor, observed: Tensor) -> None:
    """Of two modes, unlike each other."""
    center = x.square().sum(-1) / 2 + x.sum(-1) / 4
    pyro.sample("y", dist.Normal(center, 1.0), obs=observed.to(center))


def prior() -> Any:
    return dist.Normal(torch.zeros(1), 3.0).to_event(1)


def model() -> None:
    likelihood(pyro.sample("x", prior()), OBSERVED[:1].sum())


def model_with_a_second_site() -> None:
    x = pyro.sample("x", prior())
    w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    likelihood(x + w.sum((-1, -2)).unsqueeze(-1) / 9, OBSERVED[0])


def positive_model() -> None:
    x = pyro.sample("x", dist.LogNormal(torch.zeros(1), 2.0).to_event(1))
    likelihood(x.log(), OBSERVED[0])


def plated(sites: Callable[[Any], None], subsampled: bool = False) -> None:
    size = {"size": 4, "subsample": torch.tensor([1, 2])} if subsampled else {"size": 2}
    with pyro.plate("rows", **size, dim=-1) as index:
        sites(index)


def plated_model(subsampled: bool = False) -> None:
    def sites(index):
        likelihood(pyro.sample("x", prior()), OBSERVED[index % 2])

    plated(sites, subsampled)


# ---------------------------------------------------------------------------------------- guides

Build = Callable[[list[Tensor], Any], Any]
"""From locs, scales and logits to a distribution; with the reference in place of the mixture."""


@dataclass
class Case:
    """A model, a guide of it and the leaves that get gradients."""

    model: Callable[[], None]
    guide: Callable[[], Any]
    leaves: list[Tensor]
    points: Points


def by_hand(
    build: Build,
    *,
    site: Callable[[Callable[..., Any]], None] | None = None,
    of: Callable[[], None] = model,
    kind: type = Normal,
    batch: int | None = None,
) -> Callable[[bool], Case]:
    """A guide whose site "x", or what ``site`` makes of it, has a distribution of the package."""

    def case(reference: bool) -> Case:
        parameters = Parameters(batch)
        points = Points(parameters.tensors(), kind)

        def sampled(name: str, rows: Any = slice(None), **options: Any) -> Tensor:
            tensors = parameters.tensors(rows)
            chosen = points if batch is None else points.of_rows(rows)
            made = Reference(*tensors, kind, points=chosen) if reference else None
            with quantiles_for_samples(chosen):
                value = pyro.sample(name, build(tensors, made), **options)
            points.position = chosen.position
            return value

        def guide() -> None:
            parameters(functools.partial(site or plain, sampled))

        return Case(of, guide, list(parameters.parameters()), points)

    return case


def automatic(guide_class: Any, **options: Any) -> Callable[[bool], Case]:
    """A guide of the package; its reference has the same parameters."""

    def case(reference: bool) -> Case:
        guide, points = prepared(guide_class(model, 3, **options))
        if reference:
            refer(guide, points)
        return Case(model, guide, list(guide.parameters()), points)

    return case


def prepared(guide: Any) -> tuple[Any, Points]:
    """A guide with parameters that are told, and the points."""
    dtype = torch.get_default_dtype()
    guide()
    with torch.no_grad():
        guide.locs.copy_(LOCS)
        guide.component_logits.copy_(LOGITS)
    guide.coord_scale = SCALES.to(dtype)
    return guide, Points((guide.locs, SCALES.to(dtype), guide.component_logits))


def refer(guide: Any, points: Points) -> None:
    """Have a guide draw from the reference."""

    def get_posterior(*args, **kwargs):
        return Reference(guide.locs, guide.coord_scale, guide.component_logits, points=points)

    guide.estimator = None
    guide.get_posterior = get_posterior


def in_a_list(reference: bool) -> Case:
    """Beside a point estimate of another site."""
    guide = AutoGuideList(model_with_a_second_site)
    start = pyro.infer.autoguide.init_to_value(values={"w": torch.full((2, 3), 0.2)})
    mixture = AutoDiagonalNormalMixture(poutine.block(model_with_a_second_site, hide=["w"]), 3)
    guide.append(mixture)
    guide.append(AutoDelta(poutine.block(model_with_a_second_site, hide=["x"]), start))
    guide()
    _, points = prepared(mixture)
    if reference:
        refer(mixture, points)
    return Case(model_with_a_second_site, guide, list(guide.parameters()), points)


def easy(reference: bool) -> Case:
    """A group of an ``EasyGuide``."""
    parameters = Parameters()
    points = Points(parameters.tensors())

    class Guide(EasyGuide):
        def guide(self):
            parameters(self.sample_group)

        def sample_group(self):
            tensors = parameters.tensors()
            fn = Reference(*tensors, points=points) if reference else diagonal(tensors, None)
            self.group(match="x").sample("auxiliary", fn)

    guide = Guide(model)
    return Case(model, guide, list(parameters.parameters()), points)


def diagonal(tensors: list[Tensor], reference: Any, **options: Any) -> Any:
    return reference or pm.MixtureOfDiagNormals(*tensors, **options)


def any_family(tensors: list[Tensor], reference: Any, kind=Normal, **options: Any) -> Any:
    locs, scales, logits = tensors
    components = Independent(kind(locs, scales), 1)
    return reference or pm.MixtureSameFamily(Categorical(logits=logits), components, **options)


def flow(tensors: list[Tensor], reference: Any, cls: Any, transforms: Any = None) -> Any:
    transforms = transforms or [AffineTransform(0.2, 0.9), ExpTransform()]
    return cls(diagonal(tensors, reference), transforms)


def plain(sampled: Callable[..., Tensor]) -> None:
    sampled("x")


def auxiliary(sampled: Callable[..., Tensor]) -> None:
    """What a guide written by hand does with a packed latent vector."""
    z = sampled("z", infer={"is_auxiliary": True})
    pyro.sample("x", dist.Delta(z, event_dim=1))


def in_plate(sampled: Callable[..., Tensor], subsampled: bool) -> None:
    plated(lambda index: sampled("x", index), subsampled)


def auxiliary_in_plate(sampled: Callable[..., Tensor]) -> None:
    def sites(index) -> None:
        z = sampled("z", index, infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(z, event_dim=1))

    plated(sites)


def masked(sampled: Callable[..., Tensor]) -> None:
    with poutine.mask(mask=torch.tensor([True, False])):
        plated(lambda index: sampled("x", index))


def masked_model() -> None:
    with poutine.mask(mask=torch.tensor([True, False])):
        plated_model()


def scaled(sampled: Callable[..., Tensor], site: Callable[..., None]) -> None:
    with poutine.scale(scale=2.0):
        site(sampled)


def scaled_model() -> None:
    with poutine.scale(scale=2.0):
        model()


def flagged_model() -> None:
    """Has the site that the guide flags as auxiliary."""
    likelihood(pyro.sample("z", prior()), OBSERVED[:1].sum())


def flagged(sampled: Callable[..., Tensor]) -> None:
    sampled("z", infer={"is_auxiliary": True})


def unflagged(sampled: Callable[..., Tensor]) -> None:
    """Pyro warns that the model has no such site."""
    pyro.sample("x", dist.Delta(sampled("z"), event_dim=1))


def outer_model() -> None:
    """A likelihood outside of the plate of what it depends on."""
    with pyro.plate("rows", 2, dim=-1):
        x = pyro.sample("x", prior())
    likelihood(x.sum(-2, keepdim=True) / 2, OBSERVED[:1].sum())


GUIDES: dict[str, Callable[[bool], Case]] = {
    "AutoDiagonalNormalMixture": automatic(AutoDiagonalNormalMixture),
    '`weight_gradient="pathwise"`': automatic(
        AutoDiagonalNormalMixture, weight_gradient="pathwise"
    ),
    '`weight_gradient="hybrid"`': automatic(AutoDiagonalNormalMixture, weight_gradient="hybrid"),
    "AutoMultivariateNormalMixture": automatic(AutoMultivariateNormalMixture),
    **{
        f'`estimator="{name}"`': automatic(AutoDiagonalNormalMixture, estimator=name)
        for name in ESTIMATORS
        if name not in ("marginalized", "gumbel_soft", "gumbel_hard")
    },
    "in an AutoGuideList": in_a_list,
    "in an EasyGuide": easy,
    "by hand": by_hand(diagonal),
    "by hand, MixtureSameFamily of Normals": by_hand(any_family),
    "by hand, MixtureSameFamily of others": by_hand(
        functools.partial(any_family, kind=Laplace), kind=Laplace
    ),
    "the same, hybrid": by_hand(
        functools.partial(any_family, kind=Laplace, weight_gradient="hybrid"), kind=Laplace
    ),
    "by hand, auxiliary site": by_hand(diagonal, site=auxiliary),
    "by hand, in a plate": by_hand(
        diagonal, site=functools.partial(in_plate, subsampled=False), of=plated_model, batch=2
    ),
    "by hand, in a subsampled plate": by_hand(
        diagonal,
        site=functools.partial(in_plate, subsampled=True),
        of=functools.partial(plated_model, subsampled=True),
        batch=4,
    ),
    "by hand, auxiliary site in a plate": by_hand(
        diagonal, site=auxiliary_in_plate, of=plated_model, batch=2
    ),
    "by hand, masked in a plate": by_hand(diagonal, site=masked, of=masked_model, batch=2),
    "by hand, scaled": by_hand(
        diagonal, site=functools.partial(scaled, site=plain), of=scaled_model
    ),
    "by hand, auxiliary site, scaled": by_hand(
        diagonal, site=functools.partial(scaled, site=auxiliary), of=scaled_model
    ),
    "flow on a mixture": by_hand(
        functools.partial(flow, cls=pm.TransformedDistribution), of=positive_model
    ),
    "flow, by Pyro's class": by_hand(
        functools.partial(flow, cls=dist.TransformedDistribution), of=positive_model
    ),
    "flow, auxiliary site": by_hand(
        functools.partial(
            flow, cls=pm.TransformedDistribution, transforms=[AffineTransform(0.2, 0.9)]
        ),
        site=auxiliary,
    ),
}

UNUSUAL: dict[str, Callable[[bool], Case]] = {
    "auxiliary by name alone": by_hand(diagonal, site=unflagged),
    "auxiliary by flag alone": by_hand(diagonal, site=flagged, of=flagged_model),
    "a cost outside of the plate": by_hand(
        diagonal,
        site=functools.partial(in_plate, subsampled=False),
        of=outer_model,
        batch=2,
    ),
}
"""Guides that Pyro warns about, or that some objectives cannot serve."""


# ------------------------------------------------------------------------------------ objectives


@dataclass
class Column:
    """How an objective is made and run.

    Args:
        make: the objective, of its options.
        reference: what the reference is run with, where that is another objective of the same
            expectation.
        count: particles, None for all points.
        loop: run the particles one by one.
        surrogate_only: whether the objective has no ``loss_and_grads``.
        shared_noise: whether components are drawn by Normal noise that they share.
    """

    make: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    count: int | None = None
    loop: bool = False
    surrogate_only: bool = False
    shared_noise: bool = False

    def gradients(self, case: Case, make: Callable[..., Any], nesting: int) -> list[Tensor]:
        pyro.set_rng_seed(1)
        case.points.position = 0
        for leaf in case.leaves:
            leaf.grad = None
        objective = make(
            num_particles=self.count or len(case.points.values),
            vectorize_particles=not self.loop,
            max_plate_nesting=nesting - self.loop,
        )
        with quantiles_for_samples(case.points), quantiles_for_components(self.shared_noise):
            if self.surrogate_only:
                objective(case.model, case.guide).backward()
            else:
                objective.loss_and_grads(case.model, case.guide)
        return [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
            for leaf in case.leaves
        ]


def tmc(num_particles: int, **options: Any) -> Any:
    return TraceTMC_ELBO(num_particles=num_particles, strict_enumeration_warning=False, **options)


def mmd(**options: Any) -> Any:
    return Trace_MMD(kernel=RBF(input_dim=1), **options)


def energy_distance(vectorize_particles: bool, **options: Any) -> Any:
    return EnergyDistance(**options)


quiet = {"ignore_jit_warnings": True}
OBJECTIVES: dict[str, Column] = {
    "Trace_ELBO": Column(Trace_ELBO),
    "BaselinedTrace_ELBO": Column(BaselinedTrace_ELBO, Trace_ELBO),
    "BaselinedTrace_ELBO, sticking the landing": Column(
        functools.partial(BaselinedTrace_ELBO, sticking_the_landing=True), Trace_ELBO
    ),
    "MarginalizedMixture_ELBO": Column(MarginalizedMixture_ELBO, Trace_ELBO, shared_noise=True),
    "TraceEnum_ELBO": Column(
        functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False), Trace_ELBO
    ),
    "TraceTMC_ELBO": Column(tmc),
    "TraceGraph_ELBO": Column(TraceGraph_ELBO),
    "TraceMeanField_ELBO": Column(TraceMeanField_ELBO),
    "TraceTailAdaptive_ELBO": Column(
        functools.partial(TraceTailAdaptive_ELBO, tail_adaptive_beta=-0.5), count=300
    ),
    "RenyiELBO": Column(functools.partial(RenyiELBO, alpha=0.3)),
    "ReweightedWakeSleep": Column(ReweightedWakeSleep),
    "Trace_MMD": Column(mmd, count=300),
    "EnergyDistance": Column(energy_distance, count=300, surrogate_only=True),
    "JitTrace_ELBO": Column(functools.partial(JitTrace_ELBO, **quiet), Trace_ELBO),
    "JitTraceEnum_ELBO": Column(
        functools.partial(JitTraceEnum_ELBO, strict_enumeration_warning=False, **quiet),
        Trace_ELBO,
    ),
    "JitTraceGraph_ELBO": Column(functools.partial(JitTraceGraph_ELBO, **quiet), Trace_ELBO),
    "JitTraceMeanField_ELBO": Column(
        functools.partial(JitTraceMeanField_ELBO, **quiet), Trace_ELBO
    ),
}

LOOPS: dict[str, Column] = {
    "Trace_ELBO": Column(Trace_ELBO, loop=True),
    "BaselinedTrace_ELBO": Column(BaselinedTrace_ELBO, Trace_ELBO, loop=True),
    "TraceEnum_ELBO": Column(
        functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
        Trace_ELBO,
        loop=True,
    ),
    "TraceGraph_ELBO": Column(TraceGraph_ELBO, loop=True),
    "TraceMeanField_ELBO": Column(TraceMeanField_ELBO, loop=True),
    "RenyiELBO": Column(functools.partial(RenyiELBO, alpha=0.3), loop=True),
    "ReweightedWakeSleep": Column(ReweightedWakeSleep, loop=True),
}
"""Some of the objectives with particles one by one."""


# ------------------------------------------------------------------------------------- outcomes


@dataclass
class Outcome:
    """What was found in a cell.

    Args:
        state: ``"score"`` (a score term is used, or none is needed), ``"samples"`` (all by the
            samples, which may be noisy between far groups) or ``"refused"``.
        error: the largest deviation of a gradient, relative to the largest gradient.
        message: of the refusal.
    """

    state: str
    error: float = 0.0
    message: str = ""


def nesting(guide: str) -> int:
    """Plates of the case, and one of particles."""
    return 2 if any(word in guide for word in ("plate", "masked")) else 1


@functools.cache
def reference_gradients(
    guide: str, objective: str, dtype: torch.dtype, loop: bool
) -> tuple[Tensor, ...]:
    columns = LOOPS if loop else OBJECTIVES
    column = columns[objective]
    if column.reference is not None:
        same = next(name for name, c in columns.items() if c.make is column.reference)
        return reference_gradients(guide, same, dtype, loop)
    with fresh(dtype, loop):
        case = {**GUIDES, **UNUSUAL}[guide](reference=True)
        return tuple(column.gradients(case, column.make, nesting(guide)))


def outcome(
    guide: str, objective: str, dtype: torch.dtype = torch.float64, loop: bool = False
) -> Outcome:
    """Run a cell."""
    column = (LOOPS if loop else OBJECTIVES)[objective]
    with fresh(dtype, loop):
        case = {**GUIDES, **UNUSUAL}[guide](reference=False)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = column.gradients(case, column.make, nesting(guide))
        except (NotImplementedError, ValueError) as error:
            return Outcome("refused", message=str(error))
    expected = reference_gradients(guide, objective, dtype, loop)
    error = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )
    warned = any(issubclass(each.category, pm.UnusedScoreWarning) for each in caught)
    return Outcome("samples" if warned else "score", error)


@contextlib.contextmanager
def fresh(dtype: torch.dtype, loop: bool = False) -> Iterator[None]:
    """No parameters of other cells, a dtype of one's own, and fewer points for a loop."""
    before = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(Points, "count", IN_A_LOOP if loop else NUM_POINTS):
            yield
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------- the docs' table

SYMBOLS = {"score": "●", "samples": "○", "refused": "–"}


def shown() -> list[str]:
    """The objectives of the table; the compiled ones are as those they compile."""
    return [name for name in OBJECTIVES if not name.startswith("Jit")]


def table() -> Iterator[str]:
    """Lines of the docs' table, from a run of all its cells."""
    yield "| guide | " + " | ".join(f"`{name}`" for name in shown()) + " |"
    yield "| --- |" + " :-: |" * len(shown())
    for guide in GUIDES:
        states = (outcome(guide, objective).state for objective in shown())
        yield f"| {guide} | " + " | ".join(SYMBOLS[state] for state in states) + " |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
