"""Compiled loops of mixtures of diagonal Normals.

Arguments are addresses of contiguous arrays, by the names of what they hold, then sizes, and the
rows of the batch to work on. ``R`` is the number of scales of a mixture: K, or 1 if its components
share them. Arrays of samples are ``(B, S, ...)``; densities are float64, the other arrays of the
type of ``unit``.
"""

from __future__ import annotations

import math

import numpy

from pyro_mixtures.numerics.loops import LOG_2_PI, array, exp, inside, log, log_softmax, loop, rows
from pyro_mixtures.velocity.displacement import MAX_NODES
from pyro_mixtures.velocity.displacement_loops import contribution, hub, path
from pyro_mixtures.velocity.telescoping_loops import contributions, factors

NONE, DISPLACEMENT, TELESCOPING = 0, 1, 2
"""Fields that move weight."""

FURTHEST = -1.7e308
"""In place of ``-inf``, where a group has no weight: its members count alike."""


@loop
def valid(unit, locs, scales, logits, B, R, K, D, first, last):
    """Whether all of a mixture's parameters are: 0 if they are, else 1."""
    locs, scales = array(locs, (B, K, D), unit), array(scales, (B, R, D), unit)
    logits = array(logits, (B, K), unit)
    for b in range(first, last):
        most = -math.inf
        for k in range(K):
            logit = logits[b, k]
            if not logit < math.inf:
                return 1
            most = max(most, logit)
        if most == -math.inf:
            return 1
        wrong = 0
        for k in range(K):
            for d in range(D):
                wrong += not locs[b, k, d] == locs[b, k, d]
        for r in range(R):
            for d in range(D):
                wrong += not scales[b, r, d] > 0
        if wrong:
            return 1
    return 0


@loop
def draw(unit, locs, scales, logits, uniform, noise, z, index, B, R, K, S, D, first, last):
    """Samples and their components, by uniform random numbers (float64) and normal ones."""
    locs, scales = array(locs, (B, K, D), unit), array(scales, (B, R, D), unit)
    logits = array(logits, (B, K), unit)
    uniform, noise = array(uniform, (B, S), 1.0), array(noise, (B, S, D), unit)
    z, index = array(z, (B, S, D), unit), array(index, (B, S), numpy.int64(1))
    cdf = numpy.empty(K)
    for b in range(first, last):
        log_softmax(logits[b], cdf)
        total = 0.0
        for k in range(K):
            total += exp(cdf[k])
            cdf[k] = total
        for s in range(S):
            point, k = uniform[b, s] * total, 0
            while k < K - 1 and not point < cdf[k]:
                k += 1
            index[b, s] = k
            row = min(k, R - 1)
            for d in range(D):
                z[b, s, d] = locs[b, k, d] + noise[b, s, d] * scales[b, row, d]
    return 0


@loop
def densities(unit, z, locs, scales, logits, log_joint, log_prob, B, R, K, S, D, first, last):
    r"""Logarithms of :math:`\pi_j q_j` and of q."""
    z, locs = array(z, (B, S, D), unit), array(locs, (B, K, D), unit)
    scales, logits = array(scales, (B, R, D), unit), array(logits, (B, K), unit)
    log_joint, log_prob = array(log_joint, (B, S, K), 1.0), array(log_prob, (B, S), 1.0)
    log_weights, inverse, volume = numpy.empty(K), rows(R, D), numpy.empty(R)
    for b in range(first, last):
        log_softmax(logits[b], log_weights)
        for r in range(R):
            total = D / 2 * LOG_2_PI
            for d in range(D):
                scale = numpy.float64(scales[b, r, d])
                inverse[r, d] = 1 / scale
                total += log(scale, scale - 1)
            volume[r] = total
        for s in range(S):
            most = -math.inf
            for k in range(K):
                row, square = min(k, R - 1), 0.0
                for d in range(D):
                    x = (numpy.float64(z[b, s, d]) - locs[b, k, d]) * inverse[row, d]
                    square += x * x
                log_joint[b, s, k] = log_weights[k] - volume[row] - square / 2
                most = max(most, log_joint[b, s, k])
            most = most if most > -math.inf else 0.0  # so that all of zero make zero
            total = 0.0
            for k in range(K):
                total += exp(log_joint[b, s, k] - most)
            log_prob[b, s] = most + math.log(total)
    return 0


@loop
def density_gradients(
    unit, z, locs, scales, logits, log_joint, log_prob, grad_joint, grad_prob,
    grad_z, grad_locs, grad_scales, grad_logits, B, R, K, S, D, first, last,
):  # fmt: skip
    """Of ``densities``, by the gradients of both; an address of zero is a gradient of zero."""
    has_joint, has_prob = grad_joint != 0, grad_prob != 0
    z, locs = array(z, (B, S, D), unit), array(locs, (B, K, D), unit)
    scales, logits = array(scales, (B, R, D), unit), array(logits, (B, K), unit)
    log_joint, log_prob = array(log_joint, (B, S, K), 1.0), array(log_prob, (B, S), 1.0)
    grad_joint, grad_prob = array(grad_joint, (B, S, K), 1.0), array(grad_prob, (B, S), 1.0)
    grad_z, grad_locs = array(grad_z, (B, S, D), unit), array(grad_locs, (B, K, D), unit)
    grad_scales = array(grad_scales, (B, R, D), unit)
    grad_logits = array(grad_logits, (B, K), unit)
    log_weights, by_weights = numpy.empty(K), numpy.empty(K)
    inverse, by_locs, by_scales, by_z = rows(R, D), rows(K, D), rows(R, D), rows(1, D)[0]
    for b in range(first, last):
        log_softmax(logits[b], log_weights)
        for r in range(R):
            for d in range(D):
                inverse[r, d] = 1 / numpy.float64(scales[b, r, d])
        by_locs[:] = 0
        by_scales[:] = 0
        by_weights[:] = 0
        total = 0.0
        for s in range(S):
            by_z[:] = 0
            for k in range(K):
                part, row = 0.0, min(k, R - 1)
                if has_prob:
                    part += grad_prob[b, s] * exp(log_joint[b, s, k] - log_prob[b, s])
                if has_joint:
                    part += grad_joint[b, s, k]
                if part == 0:
                    continue
                by_weights[k] += part
                total += part
                for d in range(D):
                    x = (numpy.float64(z[b, s, d]) - locs[b, k, d]) * inverse[row, d]
                    slope = part * inverse[row, d]
                    by_locs[k, d] += slope * x
                    by_scales[row, d] += slope * (x * x - 1)
                    by_z[d] -= slope * x
            grad_z[b, s] = by_z[:D]
        for k in range(K):
            grad_logits[b, k] = by_weights[k] - exp(log_weights[k]) * total
        grad_locs[b] = by_locs[:, :D]
        grad_scales[b] = by_scales[:, :D]
    return 0


@loop
def sample_gradients(
    unit, z, grad, locs, scales, logits, log_joint, log_prob, labels, field, base, slope, bend,
    moved, grad_locs, grad_scales, grad_logits, B, R, K, S, D, first, last,
):  # fmt: skip
    """Gradients of the parameters by those at samples, the logits' by a field within groups.

    The field is ``DISPLACEMENT``, with its rule for the number of nodes, ``TELESCOPING``, or
    ``NONE`` if the logits get no gradient. Labels at an address of zero are of one group. The
    contributions that were ``moved`` at each sample are float64. The result is 1 if a path is too
    long for the nodes that there are, else 0.
    """
    z, grad = array(z, (B, S, D), unit), array(grad, (B, S, D), unit)
    locs, scales = array(locs, (B, K, D), unit), array(scales, (B, R, D), unit)
    logits = array(logits, (B, K), unit)
    log_joint, log_prob = array(log_joint, (B, S, K), 1.0), array(log_prob, (B, S), 1.0)
    grouped, labels = labels != 0, array(labels, (B, K), numpy.int64(1))
    grad_locs, grad_scales = array(grad_locs, (B, K, D), unit), array(grad_scales, (B, R, D), unit)
    grad_logits, moved = array(grad_logits, (B, K), unit), array(moved, (B, S, K), 1.0)
    log_weights, within, totals = numpy.empty(K), numpy.empty(K), numpy.empty(K)
    by_locs, by_scales, inverse, log_scales = rows(K, D), rows(R, D), rows(R, D), rows(R, D)
    place, flow, back, work = rows(3, D), rows(3, D), rows(MAX_NODES, D), rows(3, MAX_NODES + D)
    own = rows(3 * K if field == TELESCOPING else 0, D)
    label = numpy.zeros(K, numpy.int64)
    for b in range(first, last):
        by_locs[:] = 0
        by_scales[:] = 0
        for r in range(R):
            for d in range(D):
                inverse[r, d] = 1 / numpy.float64(scales[b, r, d])
        for s in range(S):
            for k in range(K):
                share, row = exp(log_joint[b, s, k] - log_prob[b, s]), min(k, R - 1)
                if share == 0:
                    continue
                for d in range(D):
                    x = share * grad[b, s, d]
                    by_locs[k, d] += x
                    offset = numpy.float64(z[b, s, d]) - locs[b, k, d]
                    by_scales[row, d] += x * offset * inverse[row, d]
        grad_locs[b] = by_locs[:, :D]
        grad_scales[b] = by_scales[:, :D]
        grad_logits[b] = 0
        moved[b] = 0
        if field == NONE:
            continue
        log_softmax(logits[b], log_weights)
        if field == TELESCOPING:
            for r in range(R):
                for d in range(D):
                    scale = numpy.float64(scales[b, r, d])
                    log_scales[r, d] = log(scale, scale - 1)
        if grouped:
            label[:] = labels[b]
        for group in range(K):
            if label[group] != group or not _shares(log_weights, label, group, within):
                continue
            if field == TELESCOPING:
                for s in range(S):
                    factors(
                        z[b, s], locs[b], inverse, log_scales, group, label, within, own, place
                    )
                    contributions(
                        grad[b, s], log_prob[b, s], group, label, own, place, flow, moved[b, s]
                    )
            else:
                volume = hub(within, locs[b], scales[b], place)
                for j in range(K):
                    if label[j] != group or log_weights[j] == -math.inf:
                        continue
                    scale = scales[b, min(j, R - 1)]
                    count, growth = path(locs[b, j], scale, place, flow, back, (base, slope, bend))
                    if count > MAX_NODES:
                        return 1
                    contribution(
                        z[b], grad[b], log_prob[b], place, volume, flow, back, count, growth, work,
                        moved[b, :, j],
                    )  # fmt: skip
            average = 0.0
            for j in range(K):
                totals[j] = 0
                if log_weights[j] > -math.inf:  # else, far away, it may have overflown
                    for s in range(S):
                        totals[j] += moved[b, s, j]
                average += within[j] * totals[j]
            for j in range(K):
                if label[j] == group:
                    grad_logits[b, j] = exp(log_weights[j]) * (totals[j] - average)
    return 0


@inside
def _shares(log_weights, labels, group, within):
    """Weights within a group, zero outside it; whether it has several members."""
    most, members = FURTHEST, 0
    for k in range(len(labels)):
        if labels[k] == group:
            most, members = max(most, log_weights[k]), members + 1
    total = 0.0
    for k in range(len(labels)):
        within[k] = 0.0
        if labels[k] == group:
            within[k] = exp(max(log_weights[k], FURTHEST) - most)
            total += within[k]
    for k in range(len(labels)):
        within[k] /= total
    return members > 1


@loop
def linkage(unit, locs, scales, labels, cut, chained, B, R, K, D, first, last):
    """Labels of the groups of overlapping components; 0 if each mixture is one group, else 1.

    They are those of :mod:`~pyro_mixtures.numerics.linkage` by Bhattacharyya distances: by single
    linkage if ``chained``, else by complete linkage.
    """
    locs, scales = array(locs, (B, K, D), unit), array(scales, (B, R, D), unit)
    labels = array(labels, (B, K), numpy.int64(1))
    distance, inverse = numpy.empty((K, K)), rows(R, D)
    gone = numpy.empty(K, numpy.bool_)
    several = 0
    for b in range(first, last):
        for r in range(R):
            for d in range(D):
                inverse[r, d] = 1 / numpy.float64(scales[b, r, d])
        for j in range(K):
            labels[b, j], gone[j] = j, False
            mine = min(j, R - 1)
            for k in range(j):
                other = min(k, R - 1)
                separation, spread = 0.0, 1.0
                for d in range(D):
                    scale, second = numpy.float64(scales[b, mine, d]), scales[b, other, d]
                    variance = scale * scale + numpy.float64(second) * second
                    offset = numpy.float64(locs[b, j, d]) - locs[b, k, d]
                    separation += offset * offset / variance
                    spread *= variance * inverse[mine, d] * inverse[other, d] / 2
                distance[j, k] = distance[k, j] = separation / 4 + math.log(spread) / 2
        while True:
            least, kept, left = cut, -1, -1
            for j in range(K):
                for k in range(j):
                    if not gone[j] and not gone[k] and distance[j, k] < least:
                        least, kept, left = distance[j, k], k, j
            if kept < 0:
                break
            gone[left] = True
            for k in range(K):
                if labels[b, k] == left:
                    labels[b, k] = kept
                nearest, furthest = distance[kept, k], distance[left, k]
                if nearest > furthest:
                    nearest, furthest = furthest, nearest
                distance[kept, k] = distance[k, kept] = nearest if chained else furthest
        for k in range(K):
            several |= labels[b, k] != 0
    return several
