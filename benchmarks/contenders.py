"""The registry: every distribution that is measured is one entry here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro.distributions as pyro
from torch import Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from benchmarks.cases import (
    AMORTIZED,
    DIAGONAL,
    FAMILIES,
    FULL,
    QUICK,
    Case,
    Parameters,
    apart,
    overlapping,
)
from benchmarks.steps import Step, compiled_elbo_step, density_step, elbo_step, without_loops
from pyro_mixtures import distributions as ours

NOT_MEASURED = "not measured"
LARGEST_ARRAY = 4e7
"""Elements: contenders that would build larger arrays are left out."""


@dataclass(frozen=True)
class Contender:
    """A distribution whose ELBO step is timed."""

    name: str
    distribution: Callable[..., Distribution]
    arguments: Callable[[Parameters], tuple[Tensor, ...]]
    """What ``distribution`` is called with."""
    setting: Callable[[Case], Parameters] = overlapping
    array: Callable[[Case], int] = lambda case: 0
    """Elements of the largest array that it builds."""
    compiled: bool = False
    only: tuple[Case, ...] | None = None
    """The cases that it takes part in; all by default."""
    floor: Callable[..., Distribution] | None = None
    """Its own floor, of the same arguments, where it is not the group's."""
    loops: bool = True
    """Whether it may use compiled loops."""

    def absent(self, case: Case) -> str | None:
        """Why it does not take part in a case, or None."""
        if self.only is not None and case not in self.only:
            return NOT_MEASURED
        if self.array(case) > LARGEST_ARRAY:
            return "too large"
        return None

    def step(self, case: Case) -> Step:
        """The ELBO step."""
        arguments = self.arguments(self.setting(case))
        make = compiled_elbo_step if self.compiled else elbo_step
        step = make(self.distribution, arguments, case.sample_shape)
        return step if self.loops else without_loops(step)

    def floor_step(self, case: Case) -> Step | None:
        """The log density by torch's mixture of the same components, and its backward pass."""
        if self.floor is None:
            return None
        return density_step(self.floor, self.arguments(overlapping(case)), case.sample_shape)


@dataclass(frozen=True)
class Group:
    """Contenders that are measured together, against one floor."""

    name: str
    floor: Callable[..., Distribution]
    arguments: Callable[[Parameters], tuple[Tensor, ...]]
    cases: tuple[Case, ...]
    contenders: tuple[Contender, ...]
    quick_cases: tuple[Case, ...] = QUICK[:1]
    whole_floor: bool = False
    """Whether the floor draws, too."""

    def floor_step(self, case: Case) -> Step:
        """The log density by torch's own mixture, and its backward pass."""
        arguments = self.arguments(overlapping(case))
        make = elbo_step if self.whole_floor else density_step
        return make(self.floor, arguments, case.sample_shape)


def diagonal(parameters: Parameters) -> tuple[Tensor, ...]:
    """``(locs, coord_scale, component_logits)``."""
    return parameters.locs, parameters.scales, parameters.logits


def diagonal_shared(parameters: Parameters) -> tuple[Tensor, ...]:
    """``(locs, coord_scale, component_logits)``, the scales the same for all components."""
    return parameters.locs, parameters.scales[..., 0, :], parameters.logits


def scale_mixture(parameters: Parameters) -> tuple[Tensor, ...]:
    """``(coord_scale, component_logits, component_scale)``."""
    scales = parameters.scales
    return scales[..., 0, :], parameters.logits, scales[..., 0]


def full(parameters: Parameters) -> tuple[Tensor, ...]:
    """``(locs, scale_tril, component_logits)``."""
    return parameters.locs, parameters.scale_tril, parameters.logits


def full_shared(parameters: Parameters) -> tuple[Tensor, ...]:
    """``(locs, scale_tril, component_logits)``, the covariance the same for all components."""
    return parameters.locs, parameters.scale_tril[..., 0, :, :], parameters.logits


def first_normal(locs: Tensor, scales: Tensor, logits: Tensor) -> Distribution:
    """The first component alone."""
    return pyro.Normal(locs[..., 0, :], scales[..., 0, :]).to_event(1)


def diagonal_floor(locs: Tensor, scales: Tensor, logits: Tensor) -> Distribution:
    """A mixture of Normals with diagonal covariances in torch's own terms."""
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(locs, scales), 1))


def full_floor(locs: Tensor, scale_tril: Tensor, logits: Tensor) -> Distribution:
    """A mixture of Normals with full covariances in torch's own terms."""
    normals = MultivariateNormal(locs, scale_tril=scale_tril)
    return MixtureSameFamily(Categorical(logits=logits), normals)


def positive(parameters: Parameters) -> tuple[Tensor, ...]:
    """Two positive shape parameters and the logits."""
    return 2 * parameters.locs.exp(), 2 * parameters.scales, parameters.logits


def student_t(locs: Tensor, scales: Tensor) -> Distribution:
    """With degrees of freedom to be learned, too: tails as heavy as the scales are small."""
    return StudentT(4 * scales, locs, scales)


def same_family(
    mixture: Callable[..., Distribution], family: Callable[..., Distribution]
) -> Callable[..., Distribution]:
    """A mixture by its component parameters and logits."""

    def build(first: Tensor, second: Tensor, logits: Tensor) -> Distribution:
        return mixture(Categorical(logits=logits), Independent(family(first, second), 1))

    return build


def pathwise(mixture: Callable[..., Distribution], **options: str) -> Callable[..., Distribution]:
    """A mixture whose weights get their gradient by the transport alone."""
    return functools.partial(mixture, weight_gradient="pathwise", **options)


def family_contender(name: str, family: Callable[..., Distribution], arguments) -> Contender:
    """Components of a family, beside torch's mixture of them."""
    mixture = same_family(pathwise(ours.MixtureSameFamily), family)
    floor = same_family(MixtureSameFamily, family)
    return Contender(name, mixture, arguments, floor=floor)


def pairs(case: Case) -> int:
    """Elements of an array over samples, pairs of components and dimensions."""
    return case.mixtures * case.S * case.K**2 * case.D


DISPLACEMENT = Contender("displacement", pathwise(ours.MixtureOfDiagNormals), diagonal)
TORCH_ALONE = replace(DISPLACEMENT, name="displacement, torch alone", loops=False)
CLUSTERED = Contender("clustered, the default", ours.MixtureOfDiagNormals, diagonal)
TELESCOPING = Contender(
    "telescoping",
    pathwise(ours.MixtureOfDiagNormals, transport="telescoping"),
    diagonal,
)
PYRO = Contender("Pyro's", pyro.MixtureOfDiagNormals, diagonal, array=pairs)

GROUPS = (
    Group(
        "MixtureOfDiagNormals",
        diagonal_floor,
        diagonal,
        DIAGONAL,
        (
            DISPLACEMENT,
            replace(DISPLACEMENT, name="displacement, apart", setting=apart),
            TORCH_ALONE,
            replace(DISPLACEMENT, name="displacement, compiled", compiled=True),
            TELESCOPING,
            CLUSTERED,
            replace(CLUSTERED, name="clustered, apart", setting=apart),
            PYRO,
            replace(PYRO, name="Pyro's, compiled", compiled=True, only=(DIAGONAL[3],)),
        ),
        quick_cases=QUICK,
    ),
    Group(
        "Other diagonal covariances",
        diagonal_floor,
        diagonal,
        tuple(replace(case, target=None) for case in DIAGONAL),
        (
            Contender(
                "shared covariance",
                pathwise(ours.MixtureOfDiagNormalsSharedCovariance),
                diagonal_shared,
            ),
            Contender(
                "shared covariance, Pyro's",
                pyro.MixtureOfDiagNormalsSharedCovariance,
                diagonal_shared,
                array=pairs,
            ),
            Contender("scale mixture", pathwise(ours.GaussianScaleMixture), scale_mixture),
        ),
    ),
    Group(
        "Full covariances",
        full_floor,
        full,
        FULL,
        (
            Contender("own covariances", pathwise(ours.MixtureOfNormals), full),
            Contender(
                "shared covariance", pathwise(ours.MixtureOfNormalsSharedCovariance), full_shared
            ),
        ),
    ),
    Group(
        "MixtureSameFamily",
        diagonal_floor,
        diagonal,
        FAMILIES,
        (
            family_contender("Normal", Normal, diagonal),
            family_contender("Laplace", Laplace, diagonal),
            family_contender("Gumbel", Gumbel, diagonal),
            family_contender("Gamma", Gamma, positive),
            family_contender("Beta", Beta, positive),
            family_contender("StudentT", student_t, diagonal),
        ),
    ),
    Group(
        "Amortized: many small mixtures",
        first_normal,
        diagonal,
        AMORTIZED,
        (
            DISPLACEMENT,
            replace(DISPLACEMENT, name="displacement, apart", setting=apart),
            TELESCOPING,
            Contender(
                "hybrid",
                functools.partial(ours.MixtureOfDiagNormals, weight_gradient="hybrid"),
                diagonal,
            ),
            CLUSTERED,
            TORCH_ALONE,
            replace(CLUSTERED, name="clustered, torch alone", loops=False),
            PYRO,
        ),
        quick_cases=QUICK[1:],
        whole_floor=True,
    ),
)
