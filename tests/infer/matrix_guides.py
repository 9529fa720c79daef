"""The guides of the matrix, each with its model and the reference in place of its mixture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import Categorical, Independent, Laplace, Normal
from torch.distributions.transforms import AffineTransform, ExpTransform

import pyro_mixtures.distributions as pm
from pyro_mixtures.estimators import ESTIMATORS
from pyro_mixtures.infer import (
    AutoAVFDiagonalNormalMixture,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
)
from tests.infer.mixture_guides import AutoBentMixture, AutoLaplaceMixture
from tests.infer.quantiles import (
    Points,
    Reference,
    quantiles_for_samples,
)

OBSERVED = torch.tensor([4.0, 2.0])  # of two rows; the first where there is one

# two overlapping components and one apart: "clustered" makes two groups of them
LOCS = torch.tensor([[-2.0], [-1.2], [2.2]])
SCALES = torch.tensor([[0.7], [1.0], [0.7]])
LOGITS = torch.tensor([0.4, -0.3, 0.1])
SIZES = torch.tensor([0.1, 0.12, 0.8])  # of one location: two groups as well


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


def automatic(guide_class: Any, kind: type = Normal, **options: Any) -> Callable[[bool], Case]:
    """A guide of the package; its reference has the same parameters."""

    def case(reference: bool) -> Case:
        guide, points = prepared(guide_class(model, 3, **options), kind)
        if reference:
            refer(guide, points, kind)
        # the hub's gradient is none of the objective
        leaves = [value for name, value in guide.named_parameters() if name != "control_var"]
        return Case(model, guide, leaves, points)

    return case


def bent(reference: bool) -> Case:
    """A guide with a flow, whose parameters are leaves as well."""
    guide, points = prepared(AutoBentMixture(model, 3))
    with torch.no_grad():
        guide.transforms[0].shift += 10
        guide.transforms[0].log_tail -= 5
    if reference:
        refer(guide, points)
        below, (flow,) = guide.get_posterior, guide.transforms
        guide.get_posterior = lambda *args, **kwargs: pm.TransformedDistribution(below(), [flow])
    return Case(model, guide, list(guide.parameters()), points)


def prepared(guide: Any, kind: type = Normal) -> tuple[Any, Points]:
    """A guide with parameters that are told, and the points."""
    dtype = torch.get_default_dtype()
    guide()
    with torch.no_grad():
        guide.locs.copy_(LOCS[: len(guide.locs)])
        guide.component_logits.copy_(LOGITS)
    one_scale = guide.coord_scale.dim() == 1
    guide.coord_scale = (SCALES.mean(0) if one_scale else SCALES).to(dtype)
    if hasattr(guide, "component_scale"):
        guide.component_scale = SIZES.to(dtype)
    return guide, Points(tensors_of(guide), kind)


def tensors_of(guide: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Locations and scales of the components, each ``(3, 1)``, and logits."""
    scales = guide.coord_scale.expand(3, 1)
    if hasattr(guide, "component_scale"):
        scales = scales * guide.component_scale.unsqueeze(-1)
    return guide.locs.expand(3, 1), scales, guide.component_logits


def refer(guide: Any, points: Points, kind: type = Normal) -> None:
    """Have a guide draw from the reference."""

    def get_posterior(*args, **kwargs):
        return Reference(*tensors_of(guide), kind, points=points)

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
    "AutoSharedDiagonalNormalMixture": automatic(AutoSharedDiagonalNormalMixture),
    "AutoSharedMultivariateNormalMixture": automatic(AutoSharedMultivariateNormalMixture),
    "AutoGaussianScaleMixture": automatic(AutoGaussianScaleMixture),
    "AutoAVFDiagonalNormalMixture": automatic(AutoAVFDiagonalNormalMixture),
    "AutoMixture of another family": automatic(AutoLaplaceMixture, Laplace),
    "AutoMixtureFlow": bent,
    **{
        f'`estimator="{name}"`': automatic(AutoDiagonalNormalMixture, estimator=name)
        for name in ESTIMATORS
        if name not in ("gumbel_soft", "gumbel_hard")
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
