"""The studies of occluded images: encoders of upper halves, by one Normal and by four."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.lab.comparison import Job
from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import Diverged, sweep
from experiments.vae import completion, fits, images, occlusion_figures, plane, plane_figures
from experiments.vae.autoencoder import Model
from experiments.vae.completion import ENCODERS, Judged, of_pairs, upper
from experiments.vae.plane import mean_and_error
from experiments.vae.studies import quick, training

LATENTS = {"occlusion": 50, "plane": 2}
"""The studies, and the size of a latent in each; in the plane the posterior is known by a grid."""
BOUNDED = {"occlusion": 500, "plane": 100}
"""Images for the importance weighted bound."""
SEEDS = 3
DECODER_EPOCHS, EPOCHS = 30, 12
"""Of the autoencoder whose decoder it is; and of one Normal, from which all encoders go on for as
many more."""
CLASSIFIER_EPOCHS = 8
UNSURE = 0.3
"""Probability of two digits, by the classifier of upper halves, from which on an image counts as
ambiguous."""
SHOWN = ("K = 1, ELBO", "K = 4, SIWAE")
"""Encoders of the figure; the first is where all start."""
IN_PLANE = ("K = 1, ELBO", "K = 4, ELBO, clustered")
"""Encoders of the figure in the plane."""
GRIDDED = 500
"""Test images, the first ones, whose posterior in the plane encoders are judged by."""
SECOND = 0.05
"""Share of the second mode in the images of that figure, at least."""

Rows = list[dict[str, Any]]


def run(
    name: str,
    out: Path,
    *,
    seeds: int | None,
    device: str,
    scheduler: str | None,
    small: bool,
    resume: bool,
) -> None:
    """Run a study, or what an unfinished run has left of it.

    Args:
        name: in :data:`LATENTS`.
        out: parent folder.
        seeds: fits of each encoder; by default :data:`SEEDS`, and one where it is small.
        device: where to train.
        scheduler: address of a dask scheduler, as for :func:`~experiments.lab.sweep.sweep`.
        small: a few steps on small images.
        resume: go on with an unfinished run of the same settings.
    """
    sizes = dataclasses.replace(fits.SMALL, latent=LATENTS[name])
    candidate = fits.Candidate(reading="dynamic", sizes=sizes)
    decoder = Job("decoder", candidate, training("small", DECODER_EPOCHS))
    encoders = [
        training("small", EPOCHS, seed) for seed in range(seeds or (1 if small else SEEDS))
    ]
    judged, num_images = Judged(num_bounded=BOUNDED[name]), None
    if small:
        decoder = quick(decoder)
        sizes = dataclasses.replace(fits.TINY, latent=min(LATENTS[name], fits.TINY.latent))
        candidate = dataclasses.replace(decoder.candidate, sizes=sizes)
        decoder = dataclasses.replace(decoder, candidate=candidate)
        encoders = [
            quick(dataclasses.replace(decoder, training=each)).training for each in encoders
        ]
        judged, num_images = Judged(60, 25, 20, 50), 100
    told = {
        "decoder": dataclasses.asdict(decoder),
        "encoders": [dataclasses.asdict(each) for each in encoders],
        "judged": dataclasses.asdict(judged),
        "device": device,
    }
    kept = Run(out, name, told, resume=resume)
    common: dict[str, Any] = {"num_images": num_images, "device": device, "resume": resume}
    whole = kept.stage(
        "decoder",
        lambda: fits.fit(
            kept.folder / "fits" / "decoder",
            decoder.candidate,
            decoder.training,
            num_samples=25,
            judged=2000,
            watched=0,
            progress=False,
            **common,
        ),
    )
    data = images.load(decoder.candidate.reading)
    classifiers = kept.stage("classifiers", lambda: _classifiers(data.train, num_images))
    common |= {
        "candidate": decoder.candidate,
        "parameters": whole["parameters"],
        "classifier": classifiers["whole"],
    }
    normals = sweep(
        kept,
        completion.fit,
        {
            f"normal-{each.seed}": {
                "folder": kept.folder / "fits" / f"normal-{each.seed}",
                "encoder": ENCODERS[SHOWN[0]],
                "normal": None,
                "training": each,
                "judged": None,
                **common,
            }
            for each in encoders
        },
        scheduler=scheduler,
    )
    jobs = {
        f"{place}-{each.seed}": {
            "folder": kept.folder / "fits" / f"{place}-{each.seed}",
            "encoder": encoder,
            "normal": normals[f"normal-{each.seed}"]["parameters"],
            "training": each,
            "judged": judged,
            **common,
        }
        for each in encoders
        for place, encoder in enumerate(ENCODERS.values())
    }
    results = sweep(kept, completion.fit, jobs, scheduler=scheduler)
    found = {
        name: [results[f"{place}-{each.seed}"] for each in encoders]
        for place, name in enumerate(ENCODERS)
    }
    test, digits = (each[: judged.num_images] for each in _known(data.test))
    guesses = completion.probabilities(classifiers["upper"], upper(test))
    rows = table_rows(found, guesses, digits)
    ceilings = [
        digits_row("classifier of upper halves", guesses, digits),
        digits_row(
            "classifier of whole images",
            completion.probabilities(classifiers["whole"], test),
            digits,
        ),
    ]
    summary: dict[str, Any] = {
        "table": rows,
        "classifiers": ceilings,
        "ambiguous_images": int(are_ambiguous(guesses).sum()),
        "decoder": {"test_elbo": whole["elbo"].mean().item()},
    }
    text = f"{bounds_table(rows)}\n\n{digits_table([*rows, *ceilings])}"
    model = completion.frozen(
        fits.trained(decoder.candidate, data, whole["parameters"])[0], data.side**2
    )
    networks: dict[str, list[Callable[[Tensor], Any]]] = {}
    for encoder, each in found.items():
        for result in each:
            if not isinstance(result, Diverged):
                network = completion.restored(
                    ENCODERS[encoder], decoder.candidate.sizes, result["parameters"]
                )
                networks.setdefault(encoder, []).append(network)
    if LATENTS[name] == 2:
        summary |= _in_plane(kept, model, networks, test, classifiers["whole"], small=small)
        text += f"\n\n{plane.table(summary['grid'])}"
    else:
        chosen = ambiguous(guesses)
        summary["shown"] = chosen.tolist()
        if networks.keys() >= set(SHOWN) and len(chosen):
            occlusion_figures.plot_ambiguous(
                kept.folder / "ambiguous.png",
                model,
                {encoder: each[0] for encoder, each in networks.items()},
                SHOWN,
                test[chosen],
                classifiers["whole"],
                num_samples=200 if small else 20_000,
            )
    print(text)
    atomic_write(kept.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
    kept.finish(summary)


def _in_plane(
    kept: Run,
    model: Model,
    networks: Mapping[str, Sequence[Callable[[Tensor], Any]]],
    test: Tensor,
    classifier: Mapping[str, Any],
    *,
    small: bool,
) -> dict[str, Any]:
    """Judge the networks of each row by the grid and draw some images, for the summary."""
    if small:
        test = test[:6]
    halves = upper(test)
    alone: dict[str, Sequence[Callable[[Tensor], Any]]] = {
        f"each image alone, K = {count}": [
            functools.partial(plane.alone, model, num_components=count)
        ]
        for count in (1, 4)
    }
    judged = {**networks, **alone}
    found = kept.stage("grid", lambda: plane.judge(model, judged, halves[:GRIDDED]))
    places, second = plane.heaviest(model, halves)
    digits = plane.digits_of_modes(model, classifier, halves, places)
    chosen = of_pairs(digits, second.where(second > SECOND, 0), count=5)
    shown = (*IN_PLANE, *alone)
    if judged.keys() >= set(shown) and len(chosen):
        plane_figures.plot_plane(
            kept.folder / "plane.png",
            model,
            {name: judged[name][0] for name in shown},
            test[chosen],
        )
    rows = plane.rows(found, list(networks)) + plane.rows(found, list(alone))
    return {"grid": rows, "shown": chosen.tolist()}


def _known(split: images.Split) -> tuple[Tensor, Tensor]:
    """Images and digits, of a reading that has these."""
    if split.digits is None:
        raise ValueError("Expected images whose digits are known, but got those without")
    return split.images, split.digits


def _classifiers(train: images.Split, num_images: int | None) -> dict[str, Any]:
    """Of whole images and of upper halves."""
    rows, digits = (each[:num_images] for each in _known(train))
    return {
        "whole": completion.classifier(rows, digits, CLASSIFIER_EPOCHS),
        "upper": completion.classifier(upper(rows), digits, CLASSIFIER_EPOCHS),
    }


def are_ambiguous(guesses: Tensor) -> Tensor:
    """Whether two digits have a probability above :data:`UNSURE`, ``(N,)``."""
    return (guesses > UNSURE).sum(-1) > 1


def ambiguous(guesses: Tensor) -> Tensor:
    """Indices of an image of each of :data:`~experiments.vae.completion.PAIRS`.

    Its second digit is as probable as any of the pair's.
    """
    best = guesses.topk(2)
    return of_pairs(best.indices, best.values[:, 1])


def table_rows(
    found: Mapping[str, Sequence[dict[str, Any] | Diverged]], guesses: Tensor, digits: Tensor
) -> Rows:
    """The figures of each encoder.

    The gain is the difference of the ELBO from that of the first encoder, of the same images, each
    averaged over the fits: its error is that over images.
    """
    unsure = are_ambiguous(guesses)
    reference: Tensor | None = None
    rows = []
    for name, each in found.items():
        good = [result for result in each if not isinstance(result, Diverged)]
        row: dict[str, Any] = {
            "encoder": name,
            "fits": len(good),
            "diverged": len(each) - len(good),
        }
        if not good:
            rows.append(row)
            continue
        mean = {
            key: torch.stack([result[key] for result in good]).double().mean(0)
            for key in good[0]
            if key not in ("rows", "parameters")
        }
        if reference is None:
            reference = mean["elbo"]
        gain = mean["elbo"] - reference
        by_fit = torch.stack([result["elbo"].double().mean() for result in good])
        row["elbo"], row["elbo_se_over_fits"] = mean_and_error(by_fit)
        row["gain"], row["gain_se"] = mean_and_error(gain)
        row["ambiguous_gain"], row["ambiguous_gain_se"] = mean_and_error(gain[unsure])
        row["sure_gain"], row["sure_gain_se"] = mean_and_error(gain[~unsure])
        bounded = len(mean["iw_bound"])
        row["iw_bound"], row["iw_bound_se"] = mean_and_error(mean["iw_bound"])
        row["bounded_elbo"] = mean["elbo"][:bounded].mean().item()
        row["effective_sample_size"] = mean["effective_sample_size"].mean().item()
        for key in ("effective_components", "distinct_components"):
            row[key] = mean[key].mean().item()
            row[f"ambiguous_{key}"] = mean[key][unsure].mean().item()
        each_digits = [digits_row(name, result["digits"], digits) for result in good]
        for key in ("accuracy", "log_prob", "log_prob_se"):
            row[key] = sum(figures[key] for figures in each_digits) / len(each_digits)
        rows.append(row)
    return rows


def digits_row(name: str, guesses: Tensor, digits: Tensor) -> dict[str, Any]:
    """Accuracy of probabilities of the digits ``(N, 10)``, and the log of the true digit's."""
    log_probs = guesses.gather(1, digits.unsqueeze(1)).log().double()
    right, error = mean_and_error(log_probs.squeeze(1))
    accuracy = (guesses.argmax(-1) == digits).double().mean().item()
    return {"encoder": name, "accuracy": accuracy, "log_prob": right, "log_prob_se": error}


def bounds_table(rows: Rows) -> str:
    """Bounds on log p(upper half), as a Markdown table."""
    # no bound of a few samples is log p(x): the highest is nearest
    evidence = max(row["iw_bound"] for row in rows if "iw_bound" in row)
    lines = [
        "| encoder of upper halves | fits, diverged | test ELBO | gain over the first"
        " | gain, ambiguous images | gain, others | importance weighted bound"
        " | KL(q \\|\\| posterior), at least | effective sample size"
        " | components: effective, distinct |",
        "|" + " --- |" * 10,
    ]
    for row in rows:
        if "elbo" not in row:
            lines.append(f"| {row['encoder']} | 0, {row['diverged']} |" + " |" * 8)
            continue
        gains = " | ".join(
            f"{row[key]:.3f} ± {row[f'{key}_se']:.3f}"
            for key in ("gain", "ambiguous_gain", "sure_gain")
        )
        lines.append(
            f"| {row['encoder']} | {row['fits']}, {row['diverged']}"
            f" | {row['elbo']:.3f} ± {row['elbo_se_over_fits']:.3f} | {gains}"
            f" | {row['iw_bound']:.3f} | {evidence - row['bounded_elbo']:.3f}"
            f" | {row['effective_sample_size']:.0f}"
            f" | {row['effective_components']:.2f}, {row['distinct_components']:.2f} |"
        )
    return "\n".join(lines)


def digits_table(rows: Rows) -> str:
    """Digits of the completions, as a Markdown table."""
    lines = [
        "| digits by completions of | accuracy | mean log probability of the true digit |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {row['encoder']} | {100 * row['accuracy']:.2f} %"
        f" | {row['log_prob']:.3f} ± {row['log_prob_se']:.3f} |"
        for row in rows
        if "accuracy" in row
    ]
    return "\n".join(lines)
