r"""Compiled loops of the telescoping of diagonal Normals.

They compute what :func:`~pyro_mixtures.velocity.telescoping.diag_normal_telescoping` does, for one
group of components of one mixture.
"""

from __future__ import annotations

import math

from pyro_mixtures.numerics.loops import LOG_2_PI, exp, inside, log, normal_tail

LARGEST = math.log(1.7e308) - 3
"""Of a logarithm: a bound for points where no sample gets."""


@inside
def factors(z, locs, inverse, log_scales, group, labels, within, own, hub):
    r"""Univariate distributions of the coordinates at a sample.

    Args:
        z: ``(D,)``.
        locs: ``(K, D)``.
        inverse: of the scales, K rows or 1.
        log_scales: their logarithms, K rows or 1.
        group: the label of a group.
        labels: of the components, ``(K,)``.
        within: weights in the group, ``(K,)``.
        own: for log densities, distribution functions and one minus these, K rows each.
        hub: for those of the group's mixture, three rows.
    """
    K = len(labels)
    for d in range(len(z)):
        hub[0, d], hub[1, d], hub[2, d] = -math.inf, 0, 0
    for k in range(K):
        if labels[k] != group:
            continue
        row, weight = min(k, len(inverse) - 1), within[k]
        for d in range(len(z)):
            x = (z[d] - locs[k, d]) * inverse[row, d]
            tail = normal_tail(abs(x))
            own[k, d] = -(x * x + LOG_2_PI) / 2 - log_scales[row, d]
            own[K + k, d] = tail if x < 0 else 1 - tail
            own[2 * K + k, d] = 1 - tail if x < 0 else tail
        for d in range(len(z)):
            hub[1, d] += weight * own[K + k, d]
            hub[2, d] += weight * own[2 * K + k, d]
            hub[0, d] = own[k, d] if own[k, d] > hub[0, d] else hub[0, d]
    for d in range(len(z)):
        density = 0.0
        for k in range(K):
            if labels[k] == group:
                density += within[k] * exp(own[k, d] - hub[0, d])
        hub[0, d] += log(density, density - 1) if density > 0 else -math.inf


@inside
def contributions(grad, log_prob, group, labels, own, hub, work, result):
    """Weight contributions at a sample, averaged over both orders of the coordinates.

    Args:
        grad: ``(D,)``.
        log_prob: of the mixture, a number.
        group: the label of a group.
        labels: of the components, ``(K,)``.
        own: of the components, as ``factors`` left them.
        hub: of the hub.
        work: two rows.
        result: for those of the group's components, ``(K,)``.
    """
    K, D = len(labels), len(grad)
    for k in range(K):
        if labels[k] != group:
            continue
        before = after = -log_prob
        for d in range(D):  # of its own factors before d, and of the hub's, and so from behind
            work[0, d], work[1, D - 1 - d] = before, after
            before += own[k, d]
            after += own[k, D - 1 - d]
        before = after = 0.0
        for d in range(D):
            work[1, d] += before
            work[0, D - 1 - d] += after
            before += hub[0, d]
            after += hub[0, D - 1 - d]
        total = 0.0
        for d in range(D):
            first = work[0, d] if work[0, d] < LARGEST else LARGEST
            second = work[1, d] if work[1, d] < LARGEST else LARGEST
            others = (exp(first) + exp(second)) / 2
            exchanged = own[2 * K + k, d] * hub[1, d] - own[K + k, d] * hub[2, d]
            total += grad[d] * exchanged * others
        result[k] = total
