"""The continuity equation of every family, for all its parameters and from end to end.

Velocities come from the backward pass of ``reparameterize`` at given points, with a mixture of its
own for each point, and their divergence by central differences of sixth order.
"""

import functools

import torch
from torch import Tensor

from pyro_mixtures.components import Family, Normals
from pyro_mixtures.families.registry import coordinates, factors
from pyro_mixtures.velocity.telescoping import exchange
from tests.families.registry import each_components_and_dim, each_transport_and_dim
from tests.registry import beside_its_score, gradients, leaves

DIFFERENCES = torch.tensor([-1, 9, -45, 0, 45, -9, 1], dtype=torch.float64) / 60
TOLERANCE = 1e-8
STEP = 4e-3
SCALES = (0.2, 5.0)


def column(x: Tensor, ndim: int) -> Tensor:
    """Numbers ``(*X,)`` for arrays of more dimensions."""
    return x.reshape(x.shape + (1,) * (ndim - x.dim()))


def points_near(family, parameters, count: int) -> Tensor:
    """Samples of every component, ``(N, *E)``, without those at which differences say nothing:
    next to a kink, or so near to an end of the support that the distance has lost its digits."""
    z = family.component_samples(parameters, count).flatten(0, 1)
    keep = (room(family, parameters, z) > 1e-3 * z.abs()).reshape(len(z), -1).all(-1)
    if family.kinks is not None:
        x = z
        if "factor" in parameters:  # the kinks are in the coordinates before the map
            factor, shift = (parameters[name].detach().squeeze(0) for name in ("factor", "shift"))
            x = torch.linalg.solve(factor.tril(), (z - shift).mT).mT
        distance = (x.unsqueeze(-2) - family.kinks(parameters).detach()).abs()
        keep &= (distance > 10 * STEP * SCALES[0]).flatten(1).all(-1)
    z = z[keep]
    assert len(z) > count
    return z


def room(family, parameters, z: Tensor) -> Tensor:
    """Distances from the ends of the support, ``(N, *E)``."""
    low, high = (torch.as_tensor(end).detach() for end in family.interval(parameters))
    return torch.minimum(z - low, high - z)


def stencils(family, parameters, D: int, count: int) -> tuple[Tensor, Tensor]:
    """Points ``(D, 7, N, *E)`` about samples of every component, in each direction, and their
    distances ``(D, N)``, which keep away from the ends of the support."""
    z = points_near(family, parameters, count)
    directions = torch.eye(*z.shape[1:], dtype=z.dtype)[:D] if z.dim() > 1 else torch.ones(1)
    largest = SCALES[0] * (z.abs() / 10).clamp_min(1)  # heavy tails are wide
    reach = torch.minimum(room(family, parameters, z), largest)
    if z.shape[1:] == (D + 1,):  # on the simplex the last coordinate gives what another takes
        directions = directions - torch.eye(D + 1)[-1]
        reach = torch.minimum(reach[:, :-1], reach[:, -1:])
    step = STEP * reach.reshape(len(z), D).T  # (D, N)
    moves = column(torch.arange(-3.0, 4.0)[:, None] * step[:, None], 2 + z.dim())
    return z + moves * directions[:, None, None], step


def divergences(family, parameters, D, mixture_of, count=6):
    """Divergences of q v at points, for each parameter, with the mixtures of the points.

    Args:
        mixture_of: makes the mixture of parameters.

    Returns:
        Divergences ``(N, *parameter)`` by name, the points ``(N, *E)`` and a mixture's parameters
        for each of them.
    """
    z, step = stencils(family, parameters, D, count)
    points = z.flatten(0, 2)
    each = leaves({name: x.expand(len(points), *x.shape) for name, x in parameters.items()})
    mixture = mixture_of(each)
    moved = beside_its_score(mixture, mixture.reparameterize(points))
    density = family.reference(each).log_prob(points).exp().detach()
    total = dict.fromkeys(parameters, 0)
    for i, coordinate in enumerate(moved.reshape(len(points), -1)[:, :D].unbind(-1)):
        for name, velocity in gradients(coordinate, each).items():
            current = (column(density, velocity.dim()) * velocity).unflatten(0, z.shape[:3])[i]
            slope = torch.einsum("s,sn...->n...", DIFFERENCES, current)
            total[name] = total[name] + slope / column(step[i], slope.dim())
    centers = z[0, 3]
    each = leaves({name: x.expand(len(centers), *x.shape) for name, x in parameters.items()})
    return total, centers, each


def worst(residuals, family, each, centers) -> float:
    """Relative to the largest density of a component at each point."""
    largest = family.component_log_prob(each, centers).amax(-1).exp()
    errors = [(x / column(largest, x.dim())).detach().abs().amax() for x in residuals]
    return float(torch.stack(errors).amax()) if errors else 0.0


@each_transport_and_dim
def test_all_parameters(family, transport, D):
    """``div(q v) + dq/dtheta = 0``."""
    parameters = family.parameters(K=3, D=D, scales=SCALES, seed=D)
    mixture_of = functools.partial(family.mixture, transport=transport, weight_gradient="pathwise")
    total, centers, each = divergences(family, parameters, D, mixture_of)
    change = gradients(family.reference(each).log_prob(centers).exp(), each)
    residuals = [total[name] + change[name] for name in parameters]
    assert worst(residuals, family, each, centers) < TOLERANCE


@each_components_and_dim
def test_components_alone(family, D):
    """Without a transport of the weights, which shares work with the components' velocities."""
    parameters = family.parameters(K=3, D=D, scales=SCALES, seed=30 + D)
    mixture_of = functools.partial(family.mixture, weight_gradient="hybrid")
    total, centers, each = divergences(family, parameters, D, mixture_of)
    change = gradients(family.reference(each).log_prob(centers).exp(), each)
    residuals = [total[name] + change[name] for name in parameters if name != "logits"]
    assert total["logits"].abs().max() < 1e-200  # of a cost next to zero
    assert worst(residuals, family, each, centers) < TOLERANCE


@each_transport_and_dim
def test_weights_within_groups(family, transport, D):
    r"""``div(q v)`` of a logit is :math:`\pi_j (q_C - q_j)`, with its group's mean density."""
    labels = torch.tensor([0, 1, 0, 1])
    same = labels == labels.unsqueeze(-1)

    def clustered(each):
        mixture = family.mixture(each, transport=transport, weight_gradient="clustered")
        mixture.grouping.found = labels.expand(len(each["logits"]), 4)
        return mixture

    parameters = family.parameters(K=4, D=D, seed=10 + D)
    total, centers, each = divergences(family, parameters, D, clustered, count=4)
    densities = family.component_log_prob(each, centers).exp()
    weights = each["logits"].softmax(-1)
    group = (weights * densities) @ same.double() / (weights @ same.double())
    residual = total["logits"] - weights * (group - densities)
    assert worst([residual], family, each, centers) < TOLERANCE


def slopes(values: Tensor, u: Tensor) -> list[Tensor]:
    """Of each column of ``(N, K)`` by the points, row by row."""
    return [torch.autograd.grad(x.sum(), u, retain_graph=True)[0] for x in values.unbind(-1)]


@each_components_and_dim
def test_weights_currents(family, D):
    """``div w^j + q_j`` is the same for all components, by autograd in the shared coordinates."""
    parameters = family.parameters(K=4, D=D, scales=SCALES, seed=20 + D)
    parameters = {name: value.detach() for name, value in parameters.items()}
    mixture = family.mixture(parameters)
    components = mixture.components
    if isinstance(components, Normals):  # as any other family
        components = Family(mixture.component_distribution)
    shared = coordinates(*components.distributions)
    z = points_near(family, parameters, count=5)
    u = z if shared is None else shared.inv(components._padded(z))
    u = u.detach().requires_grad_()
    at = u if shared is None else shared(u).reshape(z.shape)
    own, marginals = components._each(lambda component, z: factors(component, z, shared), at)
    density = (own.log_pdf.sum(-1) + mixture.log_weights).logsumexp(-1, keepdim=True)
    hub = marginals.mix(parameters["logits"].softmax(-1).unsqueeze(-2))
    current = density.exp().unsqueeze(-1) * exchange(density, own, hub)  # (N, K, D)
    divergence = sum(
        torch.stack([slope.reshape(len(z), D)[:, i] for slope in slopes(current[..., i], u)], -1)
        for i in range(D)
    )
    densities = own.log_pdf.sum(-1).exp()  # (N, K)
    lowest, highest = (divergence + densities).aminmax(dim=-1)
    assert ((highest - lowest) / densities.amax(-1)).max() < TOLERANCE
