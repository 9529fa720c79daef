"""Networks from contexts to mixtures of any family."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalDistribution
from torch import Size, Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    biject_to,
    constraints,
)
from torch.distributions.transforms import Transform
from torch.distributions.utils import lazy_property

from pyro_mixtures.components.asking import base_of
from pyro_mixtures.distributions import MixtureSameFamily
from pyro_mixtures.nn.floors import AboveFloor, CholeskyAboveFloor
from pyro_mixtures.nn.named_outputs import NamedOutputs


@ConditionalDistribution.register  # as a base its metaclass would keep PyroModule out
class ConditionalMixtureSameFamily(nn.Module):
    r"""A network that makes a mixture of K components of any family of each context.

    .. math:: q(z \mid c) = \sum_{j=1}^K \pi_j(c) \, q(z \mid \theta_j(c))

    Calling it and Pyro's ``condition`` do the same: contexts ``(*B, context_features)`` make a
    :class:`~pyro_mixtures.distributions.MixtureSameFamily` of batch shape ``B``. Contexts should
    be of order one.

    An example of the components tells the family, the number of components, the shapes of their
    parameters and where these start: K components, best apart, of equal weights. Outputs become
    parameters by ``biject_to`` of their constraints. But what has to be positive is
    ``start * (floor + softplus(output))``, up to a constant, and so are the diagonals of Cholesky
    factors: a floor that has a gradient, in terms of the start.

    Args:
        context_features: size of a context.
        component_distribution: a distribution of batch shape ``(K,)``: a family of torch or Pyro
            that :class:`~pyro_mixtures.distributions.MixtureSameFamily` takes, or ``Independent``
            of one. Arguments of it that are no parameters stay as they are.
        hidden: sizes of hidden layers, with SiLU between them; none for a linear layer, on top of
            a network of your own.
        fixed: names of parameters that stay as they are in the example.
        floor: the lowest that a positive parameter may become, relative to its start; below 1/2.
        options: ``transport``, ``weight_gradient`` and ``validate_args`` of the mixture.

    Raises:
        ValueError: for sizes below one, components of another batch shape or without parameters,
            unknown names in ``fixed``, a ``floor`` that is not between 0 and 1/2, a parameter
            whose constraint depends on others or has no ``biject_to`` and is not ``fixed``, and
            contexts of another shape or type.
        NotImplementedError: for components that are discrete or of a family without rules.

    References:
        Bishop, *Mixture Density Networks* (1994),
        https://publications.aston.ac.uk/id/eprint/373/.

    Example:
        >>> from torch.distributions import Gamma
        >>> _ = torch.manual_seed(0)
        >>> start = Gamma(torch.tensor([2.0, 8.0]), torch.ones(2))
        >>> network = ConditionalMixtureSameFamily(3, start, hidden=(64,))
        >>> q = network(torch.randn(10, 3))
        >>> q.batch_shape, q.component_distribution.batch_shape
        (torch.Size([10]), torch.Size([10, 2]))
        >>> network(torch.zeros(3)).component_distribution.concentration.round().tolist()
        [2.0, 8.0]
    """

    def __init__(
        self,
        context_features: int,
        component_distribution: Distribution,
        *,
        hidden: Sequence[int] = (),
        fixed: Collection[str] = (),
        floor: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__()
        if not (isinstance(floor, (int, float)) and 0 < floor < 0.5):
            raise ValueError(f"Expected a floor between 0 and 1/2, but got {floor!r}")
        if isinstance(fixed, str) or not isinstance(fixed, Collection):
            raise ValueError(f"Expected fixed to be a collection of names, but got {fixed!r}")
        given, count = _parameters_of(component_distribution, fixed)
        base: Any = base_of(component_distribution)
        if unknown := set(fixed) - set(given):
            raise ValueError(
                f"Expected fixed to name parameters of {type(base).__name__},"
                f" {', '.join(given)}, but got {', '.join(sorted(unknown))}"
            )
        self.family, self.options = type(base), options
        self._settings = _settings_of(base)
        self._event_dim = len(component_distribution.event_shape) - len(base.event_shape)
        self._maps, outputs, shapes = {}, {}, {}
        for name, value in given.items():
            if name in fixed:
                self.register_buffer(name, value.clone())
                continue
            self._maps[name], unit = _map_to(name, value, base, floor)
            if unit is not None:
                self.register_buffer(f"{name}_unit", unit.clone())
                value = value / unit
            outputs[name] = self._maps[name].inv(value)
            shapes[name] = outputs[name].shape
        self._fixed = tuple(name for name in given if name in fixed)
        self.network = NamedOutputs(
            context_features, {**shapes, "component_logits": Size([count])}, hidden
        )
        self.network.start_at({**outputs, "component_logits": torch.zeros(count)})
        self(torch.zeros(context_features))  # tells of families without rules and wrong options

    def extra_repr(self) -> str:
        count = self.network.shapes["component_logits"][0]
        return f"num_components={count}, family={self.family.__name__}"

    def forward(self, context: Tensor) -> MixtureSameFamily:
        """The mixtures of contexts ``(*B, context_features)``."""
        outputs = self.network(context)
        parameters = {name: getattr(self, name) for name in self._fixed} | self._settings
        for name, constrained in self._maps.items():
            value = constrained(outputs[name])
            unit = getattr(self, f"{name}_unit", None)
            parameters[name] = value if unit is None else unit * value
        validate_args = self.options.get("validate_args")
        components = self.family(**parameters, validate_args=validate_args)
        if self._event_dim:
            components = Independent(components, self._event_dim, validate_args=validate_args)
        weights = Categorical(logits=outputs["component_logits"], validate_args=validate_args)
        return MixtureSameFamily(weights, components, **self.options)

    def condition(self, context: Tensor) -> MixtureSameFamily:
        """The mixtures of contexts ``(*B, context_features)``, by Pyro's name for that."""
        return self(context)


def _parameters_of(distribution: Any, fixed: Collection[str]) -> tuple[dict[str, Tensor], int]:
    """Those that a distribution was made of, by name, and its number of components."""
    shape = distribution.batch_shape if isinstance(distribution, Distribution) else None
    if shape is None or len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            "Expected component_distribution to be a distribution of batch shape (K,), but got"
            f" {distribution}" + ("" if shape is None else f" of batch shape {tuple(shape)}")
        )
    base: Any = base_of(distribution)
    given = {
        name: getattr(base, name).detach().to(torch.empty(()))  # the default dtype and device
        for name in _given_names(base, fixed)
    }
    if not given:
        raise ValueError(
            "Expected component_distribution of a family whose parameters are tensors with names,"
            f" but got {distribution}; write a network that makes it, and MixtureSameFamily"
        )
    return given, shape[0]


def _given_names(base: Any, fixed: Collection[str]) -> list[str]:
    """Names of parameters without those that are another form of one, as odds are of logits.

    Such a form is kept once it was looked at, and then nothing tells which one was given: that in
    ``fixed`` counts, or the first to which a transformation leads.
    """
    arguments = inspect.signature(type(base)).parameters
    names = [name for name in base.arg_constraints if name in arguments]
    forms = [
        name
        for name in names
        if arguments[name].default is not inspect.Parameter.empty
        and isinstance(getattr(type(base), name, None), lazy_property)
    ]
    kept = [name for name in forms if name in vars(base)]
    kept.sort(key=lambda name: (name not in fixed, not _has_map(name, base)))
    return [name for name in names if name not in forms or name in kept[:1]]


def _settings_of(base: Any) -> dict[str, Any]:
    """Arguments that are no parameters, as the example keeps them under their names."""
    arguments = inspect.signature(type(base)).parameters.values()
    settings = {}
    for argument in arguments:
        if argument.name in base.arg_constraints or argument.name == "validate_args":
            continue
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        value = getattr(base, argument.name, argument.default)
        if value is argument.empty or isinstance(value, Tensor):
            raise ValueError(
                "Expected component_distribution of a family whose parameters are in its"
                f" arg_constraints, but {argument.name} of {type(base).__name__} is not"
            )
        settings[argument.name] = value
    return settings


def _has_map(name: str, base: Any) -> bool:
    try:
        _map_to(name, getattr(base, name), base, floor=0.1)
    except ValueError:
        return False
    return True


def _map_to(name: str, value: Tensor, base: Any, floor: float) -> tuple[Transform, Tensor | None]:
    """From outputs to a parameter, in terms of a unit if there is one."""
    rules = type(base).arg_constraints
    # of families whose constraints depend on parameters this is a property
    constraint = rules[name] if isinstance(rules, dict) else constraints.dependent
    inner = constraint
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    if inner is constraints.positive:
        return AboveFloor(floor), value
    if inner is constraints.lower_cholesky:
        return CholeskyAboveFloor(floor), value.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    try:
        return biject_to(constraint), None
    except NotImplementedError:
        raise ValueError(
            f"Expected {name} of {type(base).__name__} in fixed, or components that are given in"
            f" another form (by scale_tril, say), for no transformation leads to {name} alone"
        ) from None
