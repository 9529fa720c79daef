"""The experiment with autoencoders: the quick run, resuming it, its data and its tables."""

import csv
import dataclasses
import json
import math

import numpy
import pytest
import torch

from experiments.lab.comparison import by_row
from experiments.lab.sweep import Diverged
from experiments.vae import VAE, figures, fits, images, studies, tables
from experiments.vae.fits import Candidate
from pyro_mixtures import MixtureOfDiagNormals

STUDIES = tuple(studies.STUDIES)


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


def summary(folder, study):
    return json.loads((folder / "vae-quick" / study / "summary.json").read_text())


def test_a_quick_run_writes_everything(tmp_path, cluster):
    VAE(quick=True, out=tmp_path, scheduler=cluster).run()
    for name in STUDIES:
        folder = tmp_path / "vae-quick" / name
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert files >= {"config.json", "metrics.csv", "summary.json", "table.md"}
        assert (f"{name}.png" in files) == (name in figures.FIGURES)
        rows = summary(tmp_path, name)["table"]
        assert [row["row"] for row in rows] == [job.name for job in studies.STUDIES[name].jobs(1)]
        for row in rows:
            assert row["fits"] == 1
            assert row["iw_bound"] > row["elbo"]
        with (folder / "metrics.csv").open() as file:
            metrics = list(csv.DictReader(file))
        for row in rows:
            curve = [float(x["validation_elbo"]) for x in metrics if x["row"] == row["row"]]
            assert len(curve) == 3
            assert max(curve[1:]) > curve[0], row["row"]


def test_a_run_that_was_stopped_comes_to_the_same_numbers(tmp_path, cluster, monkeypatch):
    def vae(folder, **arguments):
        return VAE(("longer",), quick=True, out=folder, scheduler=cluster, **arguments)

    vae(tmp_path / "whole").run()
    evaluate, calls = fits.evaluate, []

    def stopped_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyError("stopped")  # after the fit's own checkpoints
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(fits, "evaluate", stopped_at_the_second)
    with pytest.raises(KeyError, match="stopped"):
        vae(tmp_path / "broken").run()
    with pytest.raises(ValueError, match="unfinished run"):
        vae(tmp_path / "broken").run()
    vae(tmp_path / "broken", resume=True).run()

    def figures_of(folder):
        rows = summary(folder, "longer")["table"]
        return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]

    assert figures_of(tmp_path / "broken") == figures_of(tmp_path / "whole")


@pytest.mark.parametrize("bound", [name for name in fits.BOUNDS if name != "iwae"])
@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp", "hierarchical"])
def test_every_prior_with_every_bound_has_gradients(prior, bound, digits):
    candidate = Candidate(3, "clustered", bound, prior, reading="digits", sizes=fits.TINY)
    model, guide, elbo = fits.start(candidate, digits, 0)
    batch = digits.train.images[:20].round()
    elbo.differentiable_loss(model, guide, batch).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name


def test_what_trains_is_weighed_and_what_is_judged_is_not(digits):
    candidate = Candidate(2, beta=3.0, reading="digits", sizes=fits.TINY)
    model, guide, elbo = fits.start(candidate, digits, 0)
    batch = digits.train.images.round()

    def loss():
        torch.manual_seed(0)
        return elbo.loss(model, guide, batch) / len(batch)

    weighed = loss()
    model.eval(), guide.eval()
    plain = loss()
    terms = fits.terms(model, guide, batch)
    assert plain == pytest.approx(terms["distortion"] + terms["rate"], abs=0.6)
    assert weighed - plain == pytest.approx(2 * terms["rate"], abs=0.6)


@pytest.mark.parametrize(
    ("scale", "logits", "expected"),
    [(0.1, [0.0, 0.0], 2.0), (0.1, [30.0, 0.0], 1.0), (1e4, [0.0, 0.0], 1.0)],
)
def test_components_in_use(scale, logits, expected):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            locs = torch.tensor([[-5.0], [5.0]]).expand(len(x), 2, 1)
            return MixtureOfDiagNormals(locs, torch.full((2, 1), scale), torch.tensor(logits))

    guide = fits.Guide(Fixed(), None)
    assert fits.components(guide, torch.zeros(50, 4)) == pytest.approx(expected, abs=0.01)


def test_pixels_binarized_anew():
    grey = torch.full((2000, 3), 0.25)
    data = images.BinarizedAnew(grey)
    first, second = data[[0, 1]], data[[0, 1]]
    assert first[0].shape == (2, 3)
    (rows,) = data[list(range(2000))]
    assert set(rows.unique().tolist()) == {0.0, 1.0}
    assert rows.mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / 6000))
    assert not all(bool((a == b).all()) for a, b in [(first[0], second[0]), (rows, data[:][0])])


def test_readings_of_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_MIXTURES_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="mnist"):
        images.load("grey")
    rng = numpy.random.default_rng(0)

    def some(count):
        return rng.integers(0, 256, (count, 28, 28), dtype=numpy.uint8)

    labels = rng.integers(0, 10, 70_000).astype(numpy.uint8)
    grey = some(7).repeat(10_000, 0)
    numpy.savez(
        tmp_path / "mnist.npz",
        x_train=grey[:60_000],
        y_train=labels[:60_000],
        x_test=grey[60_000:],
        y_test=labels[60_000:],
    )
    found = images.load("grey")
    sizes = [len(each.images) for each in (found.train, found.validation, found.test)]
    assert sizes == [50_000, 10_000, 10_000]
    assert not found.binarized_anew
    torch.testing.assert_close(
        found.test.images[0], torch.tensor(grey[-1].reshape(-1) / 255.0).float()
    )
    dynamic = images.load("dynamic")
    assert dynamic.binarized_anew
    assert set(dynamic.test.images[:100].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(dynamic.train.images, found.train.images)
    assert bool((dynamic.test.digits == torch.tensor(labels[60_000:].astype(int))).all())
    with pytest.raises(ValueError, match=r"mnist_binarized.*no\s+such file"):
        images.load("fixed")
    binary = {name: some(3) // 128 for name in ("train", "valid", "test")}
    numpy.savez(tmp_path / "mnist_binarized.npz", **binary)
    fixed = images.load("fixed")
    assert fixed.train.digits is None
    assert fixed.test.digits.tolist() == sorted(labels[60_000:].tolist())


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (torch.full((2, 4), 1.5), r"\[0, 1\].*1\.5"),
        (torch.full((2, 4), -0.5), r"\[0, 1\].*-0\.5"),
        (torch.full((2, 4), math.nan), r"\[0, 1\].*nan"),
        (torch.zeros(2, 3), r"\(N, 4\).*\(2, 3\)"),
        (torch.zeros(4), r"\(N, 4\).*\(4,\)"),
    ],
)
def test_images_that_are_none(rows, told):
    with pytest.raises(ValueError, match=told):
        images.check_images(rows, 4)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_fit_that_meets_nan_keeps_its_checkpoint(tmp_path, digits, monkeypatch):
    """Within an epoch: the error tells where, and the fit can go on from the epoch before."""
    candidate = Candidate(2, "clustered", reading="digits", sizes=fits.TINY)
    training = studies.quick(studies.estimators(1)[0]).training
    start = fits.start

    def spoiled(*args):
        model, guide, elbo = start(*args)
        calls = []

        def spoil(module, inputs):
            calls.extend([1] * module.training)
            if len(calls) == 6:
                with torch.no_grad():
                    module.head.network.output.bias[0] = math.nan

        guide.encoder.register_forward_pre_hook(spoil)
        return model, guide, elbo

    monkeypatch.setattr(fits, "start", spoiled)
    arguments = (candidate, training, 200, 30, 200, 0, "cpu")
    with pytest.raises(FloatingPointError, match=r"stopped at step \d.*checkpoint, of step"):
        fits.fit(tmp_path, *arguments, False, False)
    monkeypatch.setattr(fits, "start", start)
    found = fits.fit(tmp_path, *arguments, True, False)
    assert found["rows"][-1]["epoch"] == training.epochs


def test_options_that_are_none():
    with pytest.raises(ValueError, match="seeds >= 1"):
        VAE(seeds=0)
    with pytest.raises(ValueError, match="studies"):
        VAE(studies=("none",))


def result(elbo, **figures):
    terms = dict.fromkeys((*tables.MEANS, "distortion", "marginal_kl", "mutual_information"), 1.0)
    elbo = torch.tensor(elbo)
    return {"rows": [{"epoch": 2}], "elbo": elbo, "iw_bound": elbo + 1, **terms, **figures}


def test_the_table_tells_gains_and_fits_that_diverged():
    job = studies.estimators(1)[0]
    other = dataclasses.replace(job, name="other")
    results = by_row(
        [
            (job, result([-1.0, -3.0])),
            (other, result([0.0, -1.0])),
            (job, result([-2.0, -4.0])),
            (other, Diverged("NaN")),
        ]
    )
    first, second = tables.rows(results, {job.name: 0.001, "other": 0.002})
    assert (first["fits"], first["elbo"], first["elbo_se"]) == (2, -2.5, 0.5)
    assert first["gain"] == 0
    assert (second["fits"], second["diverged"], second["elbo"]) == (1, 1, -0.5)
    assert second["gain"] == pytest.approx(2.0)
    assert second["gain_se"] == pytest.approx(0.5)
    lines = tables.table("Title", [first, second]).splitlines()
    assert lines[-1].startswith("| other | 1, 1 | 2 | -0.50 |")
    assert "2.00 ± 0.50" in lines[-1]
