"""Posteriors of latents in the plane, by a grid: nothing of them is sampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from experiments.vae.autoencoder import Model
from experiments.vae.completion import decoded, probabilities
from pyro_mixtures.distributions import MixtureOfDiagNormals

HALF_WIDTH, SIDE = 5.0, 201
"""The grid: a square of so many points along each coordinate, from the negative end to the
positive one. The prior is the standard Normal."""
FLOOR, DROP = 0.05, 0.5
"""A mode is a local maximum above the first fraction of the highest, parted from higher ones by a
drop of the density to less than the second fraction of its own."""
CHUNK = 50
"""Images at once."""
START, STEPS, DRAWS, RATE = 0.1, 300, 16, 0.03
"""Of a mixture that is fitted to one image: its first scales, steps, draws a step of all
components together and Adam's rate."""

Rows = list[dict[str, Any]]


def axis() -> Tensor:
    """The grid's coordinates, ``(SIDE,)``."""
    return torch.linspace(-HALF_WIDTH, HALF_WIDTH, SIDE)


def points() -> Tensor:
    """The grid, ``(SIDE * SIDE, 2)``; the first coordinate changes fastest."""
    return torch.cartesian_prod(axis(), axis()).flip(-1)


def normalized(log_density: Tensor) -> tuple[Tensor, Tensor]:
    """Log integrals ``(N,)`` of densities on the grid ``(N, P)``, and their logs over them."""
    cell = 2 * math.log(2 * HALF_WIDTH / (SIDE - 1))
    total = log_density.logsumexp(-1) + cell
    return total, log_density - total.unsqueeze(-1)


@torch.no_grad()
def posterior(model: Model, halves: Tensor) -> tuple[Tensor, Tensor]:
    """The evidence log p(x) ``(N,)`` of binary rows x, and log p(z | x) on the grid ``(N, P)``."""
    z = points()
    logits = model.decoder(z).double()
    none = model.prior().log_prob(z) - nn.functional.softplus(logits).sum(-1)
    return normalized(halves.double() @ logits.T + none)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) ``(N,)`` of densities on the grid."""
    cell = (2 * HALF_WIDTH / (SIDE - 1)) ** 2
    return cell * (log_q.exp() * (log_q - log_p)).sum(-1)


def modes(log_density: Tensor) -> dict[int, float]:
    """Modes by their places on the grid ``(P,)``, the heaviest first, and their shares.

    A share is that of the points above the floor from which one climbs to the mode.
    """
    heights = log_density.tolist()
    floor = max(heights) + math.log(FLOOR)
    above = (log_density > floor).nonzero().squeeze(-1)
    order = above[log_density[above].argsort(descending=True)].tolist()
    peak_of: dict[int, int] = {}
    higher: dict[int, int] = {}  # of a peak that is no mode, a peak beside it

    def top(peak: int) -> int:
        while peak in higher:
            peak = higher[peak]
        return peak

    for place in order:
        row, column = divmod(place, SIDE)
        beside = [
            near_row * SIDE + near_column
            for near_row in range(max(row - 1, 0), min(row + 2, SIDE))
            for near_column in range(max(column - 1, 0), min(column + 2, SIDE))
        ]
        seen = sorted((each for each in beside if each in peak_of), key=lambda k: -heights[k])
        if not seen:
            peak_of[place] = place
            continue
        peak_of[place] = peak_of[seen[0]]
        first, *others = sorted({top(peak_of[each]) for each in seen}, key=lambda k: -heights[k])
        for other in others:
            if heights[other] - heights[place] < -math.log(DROP):
                higher[other] = first
    shares: dict[int, float] = {}
    for place in order:
        peak = top(peak_of[place])
        shares[peak] = shares.get(peak, 0.0) + math.exp(heights[place] - heights[order[0]])
    total = sum(shares.values())
    heaviest = sorted(shares, key=lambda peak: -shares[peak])
    return {peak: shares[peak] / total for peak in heaviest}


@torch.enable_grad()
def alone(model: Model, halves: Tensor, num_components: int) -> MixtureOfDiagNormals:
    """A mixture fitted to the posterior of each image by itself, without an encoder, ``(N,)``.

    Components start at the posterior's modes and the others at draws, and climb the ELBO, of
    which each is drawn: weights of components that are far apart have noisy pathwise gradients.
    """
    log_p = posterior(model, halves)[1]
    torch.manual_seed(0)
    drawn = log_p.exp().multinomial(num_components).tolist()
    starts = [
        [*modes(each), *others][:num_components] for each, others in zip(log_p, drawn, strict=True)
    ]
    locs = points()[torch.tensor(starts)].requires_grad_()
    log_scales = torch.full(locs.shape, math.log(START), requires_grad=True)
    logits = torch.zeros(locs.shape[:-1], requires_grad=True)
    adam = torch.optim.Adam([locs, log_scales, logits], lr=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)

    for _ in range(STEPS):
        q = MixtureOfDiagNormals(locs, log_scales.exp(), logits, validate_args=False)
        noise = torch.randn(DRAWS // num_components, *locs.shape)
        z = (locs + log_scales.exp() * noise).transpose(1, 2)  # (S, K, N, 2)
        pixels = Bernoulli(logits=model.decoder(z), validate_args=False).log_prob(halves)
        ratios = q.log_prob(z) - model.prior().log_prob(z) - pixels.sum(-1)
        loss = (logits.softmax(-1).T * ratios.mean(0)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return MixtureOfDiagNormals(
        locs.detach(), log_scales.exp().detach(), logits.detach(), validate_args=False
    )


@torch.no_grad()
def judge(
    model: Model, encoders: Mapping[str, Sequence[Callable[[Tensor], Any]]], halves: Tensor
) -> dict[str, Any]:
    """Encoders of upper halves against the posterior.

    Args:
        model: of upper halves, with latents in the plane.
        encoders: to mixtures, the fits by the names of their rows.
        halves: binary rows ``(N, pixels / 2)``.

    Returns:
        ``evidence``, log p(x) of each; ``modes``, their number; and by the names of the rows, in
        ``encoders``, the means over fits of ``kl``, KL(q || posterior), ``reverse_kl``,
        KL(posterior || q), and ``modes_of_q``.
    """
    z = points()
    found: dict[str, list[Tensor]] = {"evidence": [], "modes": []}
    keys = ("kl", "reverse_kl", "modes_of_q")
    by_row: dict[str, dict[str, list[Tensor]]] = {
        name: {key: [] for key in keys} for name in encoders
    }
    for batch in halves.split(CHUNK):
        evidence, log_p = posterior(model, batch)
        found["evidence"].append(evidence)
        found["modes"].append(torch.tensor([len(modes(each)) for each in log_p]))
        for name, fits in encoders.items():
            figures: dict[str, list[Tensor]] = {key: [] for key in keys}
            for encoder in fits:
                log_q = encoder(batch).log_prob(z.unsqueeze(1)).T.double()
                log_q = normalized(log_q)[1]
                figures["kl"].append(divergence(log_q, log_p))
                figures["reverse_kl"].append(divergence(log_p, log_q))
                counts = torch.tensor([len(modes(each)) for each in log_q])
                figures["modes_of_q"].append(counts.double())
            for key in keys:
                by_row[name][key].append(torch.stack(figures[key]).mean(0))
    return {
        **{key: torch.cat(each) for key, each in found.items()},
        "encoders": {
            name: {key: torch.cat(each) for key, each in figures.items()}
            for name, figures in by_row.items()
        },
    }


def heaviest(model: Model, halves: Tensor) -> tuple[Tensor, Tensor]:
    """Places of two modes of each posterior on the grid ``(N, 2)``, and the second's share.

    Where there is one mode it is there twice, with a share of 0.
    """
    of_each = [modes(each) for batch in halves.split(CHUNK) for each in posterior(model, batch)[1]]
    places = torch.tensor([[*each, *each][:2] for each in of_each])
    return places, torch.tensor([[*each.values(), 0.0][1] for each in of_each])


@torch.no_grad()
def digits_of_modes(
    model: Model, classifier: Mapping[str, Any], halves: Tensor, places: Tensor
) -> Tensor:
    """Digits of the completions at places on the grid ``(N, M)``."""
    logits = decoded(model, points()[places])
    seen = halves.unsqueeze(1).expand(*places.shape, -1)
    completions = torch.cat([seen, logits[..., seen.shape[-1] :].sigmoid()], -1)
    return probabilities(classifier, completions).argmax(-1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error, NaN for fewer than two values."""
    if len(values) < 2:
        return values.mean().item(), math.nan
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def rows(found: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """The figures of some rows, of images whose posterior has one mode and of the others.

    The gain is the difference of the divergence KL(q || posterior) from that of the first row,
    of the same images.
    """
    several = found["modes"] > 1
    reference = found["encoders"][names[0]]["kl"]
    result = []
    for name in names:
        figures = found["encoders"][name]
        row: dict[str, Any] = {"encoder": name}
        for group, chosen in {"one": ~several, "several": several}.items():
            gain = reference - figures["kl"]
            row[f"{group}_images"] = int(chosen.sum())
            for key, values in {"gain": gain, **figures}.items():
                mean, error = mean_and_error(values[chosen])
                row[f"{group}_{key}"], row[f"{group}_{key}_se"] = mean, error
        row["kl"], row["kl_se"] = mean_and_error(figures["kl"])
        row["evidence"], row["evidence_se"] = mean_and_error(found["evidence"])
        result.append(row)
    return result


def table(rows: Rows) -> str:
    """Divergences by the number of the posterior's modes, as a Markdown table."""
    one, several = rows[0]["one_images"], rows[0]["several_images"]
    lines = [
        f"Exact log p(upper half) of {one + several} images: {rows[0]['evidence']:.3f} ±"
        f" {rows[0]['evidence_se']:.3f}; the posterior has one mode in {one} of them, several in"
        f" {several}.",
        "",
        "| encoder of upper halves | KL(q \\|\\| posterior) | one mode: that | its gain"
        " | KL(posterior \\|\\| q) | modes of q | several modes: KL(q \\|\\| posterior) | its gain"
        " | KL(posterior \\|\\| q) | modes of q |",
        "|" + " --- |" * 10,
    ]
    for row in rows:
        cells = [f"{row['kl']:.3f} ± {row['kl_se']:.3f}"]
        for group in ("one", "several"):
            cells += [
                f"{row[f'{group}_{key}']:.3f} ± {row[f'{group}_{key}_se']:.3f}"
                for key in ("kl", "gain", "reverse_kl")
            ]
            cells.append(f"{row[f'{group}_modes_of_q']:.2f}")
        lines.append(f"| {row['encoder']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
