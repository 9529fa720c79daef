"""The experiment with few labels: the quick run, its losses and the choice of labels."""

import json
import math

import pytest
import torch

from experiments.discrete_codes.choices import ESTIMATORS
from experiments.lab.trainer_settings import Training
from experiments.semi_supervised import SemiSupervised, fits, studies
from experiments.semi_supervised.model import SUPERVISED, Candidate
from experiments.vae import images

TRAINING = Training(1, 50)


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


def small(**options):
    options = {"labels": 50, "latent": 2, "hidden": 32, "reading": "digits", **options}
    return Candidate(**options)


def test_a_quick_run_writes_everything(tmp_path, cluster):
    SemiSupervised(quick=True, out=tmp_path, scheduler=cluster).run()
    for name, study in studies.STUDIES.items():
        folder = tmp_path / "semi_supervised-quick" / name
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert files >= {"config.json", "metrics.csv", "summary.json", "table.md"}
        assert files >= {f"{figure}.png" for figure in study.figures}
        rows = json.loads((folder / "summary.json").read_text())["table"]
        assert [row["row"] for row in rows] == [job.name for job in study.jobs(1)]
        for row in rows:
            assert row["fits"] == 1
            assert row["milliseconds"] > 0
            assert 0 < row["accuracy"] < 1
            assert (SUPERVISED in row["row"]) == ("elbo" not in row)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, SUPERVISED])
@pytest.mark.parametrize("num_components", [1, 3])
def test_every_estimator_has_gradients(estimator, num_components, digits):
    candidate = small(estimator=estimator, num_components=num_components)
    decoder, encoder = fits.start(candidate, digits, TRAINING)
    encoder.loss(decoder, digits.train.images[:20].round()).backward()
    for module in (decoder, encoder):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert bool(parameter.grad.isfinite().all()), name
                assert bool(parameter.grad.any()), name
            else:
                assert estimator == SUPERVISED


def test_estimators_agree_on_the_bound(digits):
    """Those that draw labels, in the mean over draws with the sum over them."""
    decoder, encoder = fits.start(small(), digits, TRAINING)
    image = digits.train.images[:1].round().expand(4000, -1)
    found = {}
    with torch.no_grad():
        for name in ("marginalized", "score", "straight-through", "leave-one-out"):
            encoder.candidate = small(estimator=name)
            found[name] = encoder.bound(decoder, image)
    exact, *others = found.values()
    for each in others:
        error = math.hypot(each.std() / math.sqrt(len(each)), exact.std() / math.sqrt(len(exact)))
        assert abs(each.mean() - exact.mean()) < 5 * error


def test_labels_teach_the_classifier(digits):
    """More than the images without: to nearly all of the digits that have one."""
    decoder, encoder = fits.start(small(), digits, TRAINING)
    adam = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=3e-3)
    for _ in range(60):
        adam.zero_grad()
        encoder.loss(decoder, torch.bernoulli(digits.train.images[:50])).backward()
        adam.step()
    assert encoder.accuracy(encoder.images.round(), encoder.digits) > 0.9
    assert encoder.accuracy(digits.test.images, digits.test.digits) > 0.6


def test_as_many_labels_of_each_digit(digits):
    found = fits.chosen(digits.train.digits, 50, 0)
    assert len(set(found.tolist())) == 50
    assert torch.bincount(digits.train.digits[found]).tolist() == [5] * 10
    assert not torch.equal(found, fits.chosen(digits.train.digits, 50, 1))
    for count in (0, 55, 5000):
        with pytest.raises(ValueError, match=rf"labels that 10 digits.*{count}"):
            fits.chosen(digits.train.digits, count, 0)
