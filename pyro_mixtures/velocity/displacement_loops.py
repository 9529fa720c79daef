r"""Compiled loops of the displacement of diagonal Normals.

They compute what :func:`~pyro_mixtures.velocity.displacement.displacement` does, for one mixture,
component by component: each has the nodes that its own path asks for.
"""

from __future__ import annotations

import math

import numpy

from pyro_mixtures.numerics.loops import LOG_2_PI, exp, inside, log
from pyro_mixtures.velocity.displacement import MAX_NODES, TINY

SMALL = 0.15
"""Below this nine terms of its series give exp(x) - 1 to 1e-12."""

_rules = [numpy.polynomial.legendre.leggauss(count) for count in range(1, MAX_NODES + 1)]
TIMES = numpy.concatenate([(nodes + 1) / 2 for nodes, _ in _rules])
"""Nodes in [0, 1] of the Gauss rules with 1, 2, ... nodes, one rule after another."""

LOG_WEIGHTS = numpy.concatenate([numpy.log(weights / 2) for _, weights in _rules])


MEAN, STDDEV, INVERSE = 0, 1, 2
"""Rows of a hub's place."""

RATE, DRIFT, SHIFT = 0, 1, 2
"""Rows of a flow."""


# Rows are not taken out of work arrays: a view costs as much as a hundred numbers.


@inside
def hub(within, locs, scales, place):
    """The Normal with the mean and the variance of a group.

    Args:
        within: weights of the components in the group, ``(K,)``.
        locs: ``(K, D)``.
        scales: ``(K or 1, D)``.
        place: for its means, its standard deviations and their inverses, three rows.

    Returns:
        The logarithm of its normalization.
    """
    K, D = locs.shape
    for d in range(D):
        place[MEAN, d] = place[STDDEV, d] = 0
    for k in range(K):
        weight = within[k]
        if weight > 0:
            for d in range(D):
                place[MEAN, d] += weight * locs[k, d]
    for k in range(K):
        weight, row = within[k], min(k, len(scales) - 1)
        if weight > 0:
            for d in range(D):
                offset, scale = locs[k, d] - place[MEAN, d], numpy.float64(scales[row, d])
                place[STDDEV, d] += weight * (offset * offset + scale * scale)
    volume = D / 2 * LOG_2_PI
    for d in range(D):
        stddev = math.sqrt(place[STDDEV, d])
        place[STDDEV, d], place[INVERSE, d] = stddev, 1 / stddev
        volume += log(stddev, stddev - 1)
    return volume


@inside
def path(loc, scale, place, flow, back, precision):
    r"""The flow from a hub to a component, and back along it at the nodes of the integral.

    Args:
        loc: of the component, ``(D,)``.
        scale: of the component, ``(D,)``.
        place: of the hub.
        flow: for :math:`\lambda`, :math:`\gamma` and :math:`\lambda \gamma`, three rows.
        back: for :math:`e^{- \lambda t} - 1` at the nodes, ``MAX_NODES`` rows.
        precision: how many nodes a path asks for (``displacement.NODES``).

    Returns:
        The number of nodes, more than ``MAX_NODES`` if these are not enough, and the sum of
        :math:`\lambda`.
    """
    D = len(loc)
    for d in range(D):
        size, inverse = numpy.float64(scale[d]), place[INVERSE, d]
        # never zero: where the scales agree the flow is a translation to rounding
        excess = (size - place[STDDEV, d]) * inverse + TINY
        rate = log(size * inverse, excess)
        drift = (loc[d] - place[MEAN, d]) * inverse / excess
        flow[RATE, d], flow[DRIFT, d], flow[SHIFT, d] = rate, drift, rate * drift
    square = growth = fastest = 0.0
    for d in range(D):
        rate, shift = flow[RATE, d], flow[SHIFT, d]
        square += shift * shift + 2 * rate * rate
        growth += rate
    for d in range(D):
        speed = flow[RATE, d] * flow[RATE, d]
        fastest = speed if speed > fastest else fastest
    base, slope, bend = precision
    needed = base + slope * math.sqrt(square) + bend * math.sqrt(fastest)
    if not needed <= MAX_NODES:  # nor if it is NaN
        return MAX_NODES + 1, growth
    count = math.ceil(needed)
    start = count * (count - 1) // 2
    largest, doublings = math.sqrt(fastest), 0
    while largest > SMALL:
        largest, doublings = largest / 2, doublings + 1
    for t in range(count):
        part = -TIMES[start + t] / 2**doublings
        for d in range(D):
            x = part * flow[RATE, d]
            p = 1 / 120 + x * (1 / 720 + x * (1 / 5040 + x / 40320))
            back[t, d] = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * p))))
        for _ in range(doublings):
            for d in range(D):
                back[t, d] *= back[t, d] + 2
    return count, growth


@inside
def contribution(z, grad, log_prob, place, volume, flow, back, count, growth, work, result):
    """Weight contributions of a component.

    Args:
        z: ``(S, D)``.
        grad: ``(S, D)``.
        log_prob: ``(S,)``.
        place: of the hub.
        volume: of the hub.
        flow: of the path.
        back: of the path.
        count: of the nodes.
        growth: of the path.
        work: three rows, of at least ``MAX_NODES`` numbers.
        result: for the contribution of each sample, ``(S,)``.
    """
    D = z.shape[1]
    start = count * (count - 1) // 2
    for s in range(len(z)):
        speed = 0.0
        for d in range(D):
            y = (z[s, d] - place[MEAN, d]) * place[INVERSE, d]
            work[0, d], work[1, d] = y, y + flow[DRIFT, d]
            along = flow[RATE, d] * y + flow[SHIFT, d]
            speed += along * grad[s, d] * place[STDDEV, d]
        for t in range(count):
            square = 0.0
            for d in range(D):
                y = work[0, d] + back[t, d] * work[1, d]
                square += y * y
            constant = volume + log_prob[s] + growth * TIMES[start + t]
            work[2, t] = LOG_WEIGHTS[start + t] - constant - square / 2
        integral = 0.0
        for t in range(count):
            integral += exp(work[2, t])
        result[s] = integral * speed
