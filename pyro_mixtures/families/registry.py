"""What a mixture asks its components, answered by rules for their families.

Rules are found by the most specific class that has one, as in ``torch.distributions.kl``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_mixtures.velocity.telescoping import Factors

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Rules:
    """A function of a distribution with rules by its class.

    As ``functools.singledispatch``, whose look into its cache ``torch.compile`` cannot follow.

    Args:
        default: the function where no class has a rule.
    """

    def __init__(self, default: Callable[..., Any]) -> None:
        self._rules: dict[type, Callable[..., Any]] = {object: default}
        self.__doc__ = default.__doc__

    def __call__(self, distribution: Distribution, *args: Any) -> Any:
        return self.of(type(distribution))(distribution, *args)

    def owner(self, family: type) -> type:
        """The most specific class that has a rule, or ``object``."""
        return next(base for base in family.__mro__ if base in self._rules)

    def of(self, family: type) -> Callable[..., Any]:
        """The rule of the most specific class that has one."""
        return self._rules[self.owner(family)]

    @property
    def default(self) -> Callable[..., Any]:
        """The function where no class has a rule."""
        return self._rules[object]

    def register(self, family: type) -> Decorator:
        """Decorate the rule of a class and of those derived from it."""

        def decorate(rule: Callable[..., Any]) -> Callable[..., Any]:
            self._rules[family] = rule
            return rule

        return decorate


class Tails(NamedTuple):
    """The distribution function, one minus it, and the log density if it is at hand."""

    cdf: Tensor
    sf: Tensor
    log_pdf: Tensor | None = None


class Affine(NamedTuple):
    """A point that moves as ``origin + slope * (value - center)``.

    Of many components these cost matrix products only.
    """

    origin: Tensor
    slope: Tensor
    center: Tensor


@Rules
def velocity(distribution: Distribution, value: Tensor) -> Tensor | Affine:
    r"""A given point, moving with the parameters of a distribution.

    Eq. 12 asks each component about every sample, so the point need not have been drawn from this
    distribution.

    Args:
        distribution: of batch shape ``(*B, K)`` and event shape ``E``.
        value: points of its support, without gradient, that broadcast to ``(*X, *B, K, *E)``.

    Returns:
        A tensor equal to the points up to rounding, whose derivative by each parameter
        :math:`\theta` is a velocity, :math:`\nabla \cdot (q v^\theta) = -\partial q / \partial
        \theta`, that does not cross the boundary of the support; or what makes one of them.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions*, Eq. 12.
    """
    raise NotImplementedError(
        "Expected components of a family that can move given points, but"
        f" {type(distribution).__name__} has no rule for that: give it one by register_velocity,"
        " or put what wraps or masks a distribution around the mixture instead"
    )


def moved(distribution: Distribution, value: Tensor) -> Tensor:
    """The points of :func:`velocity`."""
    motion = velocity(distribution, value)
    if isinstance(motion, Affine):
        return torch.addcmul(motion.origin, motion.slope, value - motion.center)
    return motion


@Rules
def log_density(distribution: Distribution, value: Tensor) -> Tensor:
    """``distribution.log_prob(value)``, where that has digits and finite derivatives.

    A rule of the family is for what is not so next to the ends of the support or far out.
    """
    return distribution.log_prob(value)


@Rules
def tails(distribution: Distribution, value: Tensor) -> Tails:
    """Both tails of a univariate distribution at given points.

    By default those of its ``cdf``, whose upper tail has no digits beyond the rounding unit.

    Args:
        distribution: of event shape ``()``.
        value: points that broadcast with its batch shape.
    """
    cdf = distribution.cdf(value)
    return Tails(cdf, 1 - cdf)


@Rules
def moving_tails(distribution: Distribution, value: Tensor) -> tuple[Tensor, Tails] | None:
    """The points of :func:`velocity` and the values of :func:`tails`, where one yields the other.

    Only families whose velocity is that of their distribution function have a rule, so as to
    compute that once.
    """
    return None


@Rules
def factors(
    distribution: Distribution, value: Tensor, shared: Transform | None
) -> tuple[Factors, Factors]:
    r"""The univariate conditionals and marginals of a distribution's coordinates.

    Args:
        distribution: of batch shape ``(*B, K)``.
        value: points that broadcast to ``(*X, *B, K, *E)``.
        shared: the map of :func:`coordinates`.

    Returns:
        :math:`q_i(u_i \mid u_{<i})` and :math:`q_i(u_i)` of each of the D coordinates u, both
        ``(*X, *B, K, D)``: twice the same for independent ones.
    """
    if distribution.event_shape:
        raise NotImplementedError(
            f"Expected components with conditional distribution functions of their coordinates,"
            f" but {type(distribution).__name__} has no rule for them:"
            " weight_gradient='hybrid' asks for none"
        )
    univariate = factor(distribution, value, tails(distribution, value))
    own = Factors(*(x.unsqueeze(-1) for x in univariate))
    return own, own


@Rules
def coordinates(distribution: Distribution, *others: Distribution) -> Transform | None:
    """The map from coordinates with known conditionals to samples, or None for the identity.

    All components share it: those of one ``distribution`` of batch shape ``(*B, K)``, then it
    maps ``(*X, *B, 1, *E)``, or several distributions of batch shape ``B``.
    """
    return None


def common_coordinates(*components: Distribution) -> Transform | None:
    """The map that all components share.

    Raises:
        NotImplementedError: for components whose coordinates are of different kinds.
    """
    if len(components) == 1:
        return coordinates(*components)
    has_own = [coordinates(component, component) is not None for component in components]
    if not any(has_own):
        return None
    if len({coordinates.of(type(component)) for component in components}) > 1:
        raise NotImplementedError(
            "Expected components that exchange weight in the same coordinates, but got"
            f" {', '.join(type(component).__name__ for component in components)}: take"
            " families of one kind (MultivariateNormal beside MultivariateStudentT, say), or"
            " weight_gradient='hybrid'"
        )
    return coordinates(*components)


def factor(distribution: Distribution, value: Tensor, both: Tails) -> Factors:
    """The univariate factor of these tails."""
    cdf, sf, log_pdf = both
    return Factors(log_density(distribution, value) if log_pdf is None else log_pdf, cdf, sf)


def carried(velocities: tuple[Tensor, ...], *parameters: Tensor) -> Tensor | float:
    """Zero, with these derivatives by the parameters; there are none if nothing asks for them."""
    pairs = zip(velocities, parameters, strict=False)
    return sum((v.detach() * (theta - theta.detach()) for v, theta in pairs), start=0.0)


def register_velocity(family: type[Distribution]) -> Decorator:
    r"""Give a family of distributions the rule by which it moves a given point.

    Args:
        family: a class; classes derived from it have the rule, too, unless they have their own.

    Returns:
        A decorator of ``rule(distribution, value)``, which returns ``value`` as a differentiable
        function of the parameters: see ``pyro_mixtures.families.registry.velocity``.

    Example:
        >>> from torch.distributions import Exponential
        >>> class Waiting(Exponential):
        ...     pass
        >>> @register_velocity(Waiting)
        ... def _(distribution, value):
        ...     return value * distribution.rate.detach() / distribution.rate
        >>> rate = torch.tensor([2.0, 4.0], requires_grad=True)
        >>> velocity(Waiting(rate), torch.tensor(1.0)).sum().backward()
        >>> rate.grad  # - value / rate
        tensor([-0.5000, -0.2500])
    """
    return velocity.register(family)


def register_tails(family: type[Distribution]) -> Decorator:
    """Give a univariate family a rule for its distribution function.

    Args:
        family: a class; classes derived from it have the rule, too, unless they have their own.

    Returns:
        A decorator of ``rule(distribution, value)``, which returns :class:`Tails`: see
        ``pyro_mixtures.families.registry.tails``.
    """
    return tails.register(family)


def register_log_density(family: type[Distribution]) -> Decorator:
    """Give a family the rule of its log density, but not classes that have one of their own."""

    def decorate(rule: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(distribution: Distribution, value: Tensor) -> Tensor:
            own = type(distribution).log_prob is not family.log_prob
            return (log_density.default if own else rule)(distribution, value)

        return log_density.register(family)(chosen)

    return decorate


def register_moving_tails(family: type[Distribution]) -> Decorator:
    """Give a family the rule that yields points and tails at once, and so that of its velocity."""

    def decorate(rule: Callable[..., Any]) -> Callable[..., Any]:
        velocity.register(family)(lambda distribution, value: rule(distribution, value)[0])
        return moving_tails.register(family)(rule)

    return decorate


register_factors = factors.register
register_coordinates = coordinates.register
