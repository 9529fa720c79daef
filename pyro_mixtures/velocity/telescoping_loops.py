r"""Compiled loops of the telescoping of diagonal Normals.

They compute what :func:`~pyro_mixtures.velocity.telescoping.diag_normal_telescoping` does, for one
group of components of one mixture.
"""

from __future__ import annotations

import math

from pyro_mixtures.numerics.loops import LOG_2_PI, exp, log, loop, normal_tail

LARGEST = math.log(1.7e308) - 3
"""Of a logarithm: a bound for points where no sample gets."""


@loop
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
    log_pdf, cdf, sf = own[:K], own[K : 2 * K], own[2 * K :]
    most, below, above = hub[0], hub[1], hub[2]
    for d in range(len(z)):
        most[d], below[d], above[d] = -math.inf, 0, 0
    for k in range(len(labels)):
        if labels[k] != group:
            continue
        row, weight = min(k, len(inverse) - 1), within[k]
        for d in range(len(z)):
            x = (z[d] - locs[k, d]) * inverse[row, d]
            log_pdf[k, d] = -(x * x + LOG_2_PI) / 2 - log_scales[row, d]
            tail = normal_tail(abs(x))
            cdf[k, d] = tail if x < 0 else 1 - tail
            sf[k, d] = 1 - tail if x < 0 else tail
        for d in range(len(z)):
            below[d] += weight * cdf[k, d]
            above[d] += weight * sf[k, d]
            most[d] = log_pdf[k, d] if log_pdf[k, d] > most[d] else most[d]
    for d in range(len(z)):
        density = 0.0
        for k in range(len(labels)):
            if labels[k] == group:
                density += within[k] * exp(log_pdf[k, d] - most[d])
        most[d] += log(density, density - 1) if density > 0 else -math.inf


@loop
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
    forward, reverse = work[0], work[1]
    K = len(labels)
    log_pdf, cdf, sf = own[:K], own[K : 2 * K], own[2 * K :]
    size = len(grad)
    for k in range(len(labels)):
        if labels[k] != group:
            continue
        before = after = -log_prob
        for d in range(size):  # of its own factors before d, and of the hub's, and so from behind
            forward[d], reverse[size - 1 - d] = before, after
            before += log_pdf[k, d]
            after += log_pdf[k, size - 1 - d]
        before = after = 0.0
        for d in range(size):
            reverse[d] += before
            forward[size - 1 - d] += after
            before += hub[0, d]
            after += hub[0, size - 1 - d]
        total = 0.0
        for d in range(size):
            first = forward[d] if forward[d] < LARGEST else LARGEST
            second = reverse[d] if reverse[d] < LARGEST else LARGEST
            others = (exp(first) + exp(second)) / 2
            total += grad[d] * (sf[k, d] * hub[1, d] - cdf[k, d] * hub[2, d]) * others
        result[k] = total
