"""Encoders of upper halves: the frozen decoder, what is judged, and the quick run."""

import json
import math

import pytest
import torch
from sklearn.neural_network import MLPClassifier

from experiments.lab.sweep import Diverged
from experiments.vae import VAE, completion, fits, images, occlusion
from experiments.vae.occlusion_figures import posterior_draws
from pyro_mixtures.distributions import MixtureOfDiagNormals

CANDIDATE = fits.Candidate(reading="digits", sizes=fits.TINY)


@pytest.fixture(scope="module")
def data():
    return images.load("digits")


@pytest.fixture
def model(data):
    whole, _, _ = fits.start(CANDIDATE, data, 0)
    return completion.frozen(whole, data.side**2)


def encoder(data, num_components=1):
    kind = completion.HalfEncoder(num_components, "elbo")
    return completion.start(kind, fits.TINY, data.side**2, 0).eval()


def test_a_quick_run_writes_everything(tmp_path, cluster):
    VAE(quick=True, studies=("occlusion", "plane"), out=tmp_path, scheduler=cluster).run()
    summaries = {}
    for name in ("occlusion", "plane"):
        folder = tmp_path / "vae-quick" / name
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert files >= {"config.json", "summary.json", "table.md"}
        summaries[name] = json.loads((folder / "summary.json").read_text())
        drawn = {"occlusion": "ambiguous.png", "plane": "plane.png"}[name]
        assert (drawn in files) == (len(summaries[name]["shown"]) > 0)
        rows = summaries[name]["table"]
        assert [row["encoder"] for row in rows] == list(completion.ENCODERS)
        assert all(row["fits"] == 1 and row["iw_bound"] > row["bounded_elbo"] for row in rows)
    assert len(summaries["occlusion"]["shown"]) > 0
    grid = {row["encoder"]: row for row in summaries["plane"]["grid"]}
    assert grid.keys() > completion.ENCODERS.keys()
    for row in summaries["plane"]["table"]:  # of other numbers of images and draws
        exact = grid[row["encoder"]]
        assert exact["evidence"] - exact["kl"] == pytest.approx(row["elbo"], abs=0.5)


def test_the_model_is_of_the_upper_half_and_frozen(data, model):
    z = torch.randn(3, fits.TINY.latent)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    whole = model.decoder.decoder(z)
    assert torch.equal(model.decoder(z), whole[:, :32])
    assert torch.equal(completion.upper(data.test.images)[5], data.test.images[5, :32])


def test_components_start_at_the_normal_but_for_a_shift(data):
    normal, guide = encoder(data), encoder(data, 4)
    completion.start_at(guide, normal.state_dict())
    halves = completion.upper(data.test.images[:9])
    expected, found = normal.encoder(halves), guide.encoder(halves)
    shifts = found.locs - expected.locs  # (9, 4, 4)
    assert torch.allclose(found.coord_scale, expected.coord_scale.expand_as(found.coord_scale))
    assert torch.allclose(found.log_weights.exp(), torch.full((9, 4), 0.25))
    assert torch.allclose(shifts, shifts[:1].expand_as(shifts), atol=1e-5)
    assert 0.1 < shifts.std() < 0.6
    one = encoder(data)
    completion.start_at(one, normal.state_dict())
    assert torch.equal(one.encoder(halves).locs, expected.locs)


def test_the_true_half_stays_in_completions_and_the_other_is_drawn(data, model):
    halves = completion.upper(data.test.images[:6])
    torch.manual_seed(0)
    found = completion.completed(model, encoder(data).encoder, halves, 500)
    assert torch.equal(found[..., :32], halves.expand(500, 6, 32))
    z = encoder(data).encoder(halves).sample((20_000,))
    expected = model.decoder.decoder(z)[..., 32:].sigmoid().mean(0)
    assert (found[..., 32:].mean(0) - expected).abs().max() < 0.12  # five standard errors


def test_a_classifier_is_that_of_scikit_learn(data, monkeypatch):
    made = []

    def kept(*args, **kwargs):
        made.append(MLPClassifier(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(completion, "MLPClassifier", kept)
    layers = completion.classifier(data.train.images, data.train.digits, 10)
    guesses = completion.probabilities(layers, data.test.images)
    expected = torch.from_numpy(made[0].predict_proba(data.test.images.numpy()))
    assert torch.allclose(guesses, expected.to(guesses), atol=1e-5)
    assert (guesses.argmax(-1) == data.test.digits).float().mean() > 0.5


def test_draws_by_importance_weights_are_of_the_posterior(data):
    """A decoder that sees one coordinate through one pixel: the posterior is that of a grid."""
    sizes = fits.Sizes(latent=1, encoder=(4,), decoder=(4,))
    whole, _, _ = fits.start(fits.Candidate(reading="digits", sizes=sizes), data, 0)

    output = torch.nn.Linear(1, 64)
    torch.nn.init.zeros_(output.bias)
    torch.nn.init.eye_(output.weight).data.mul_(4)
    whole.decoder.body, whole.decoder.output = torch.nn.Identity(), output
    model = completion.frozen(whole, 64)
    half = torch.ones(32)
    proposals = [
        MixtureOfDiagNormals(torch.tensor([[loc], [2.0]]), torch.ones(2, 1), torch.zeros(2))
        for loc in (-1.0, 0.5)
    ]
    torch.manual_seed(0)
    z = posterior_draws(model, half, proposals, 20_000)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (torch.nn.functional.logsigmoid(4 * grid) - grid.square() / 2).softmax(0)
    mean = (density * grid).sum()
    deviation = (density * (grid - mean).square()).sum().sqrt()
    error = deviation / math.sqrt(len(z))
    assert (z.mean() - mean).abs() < 5 * error
    assert z.std().item() == pytest.approx(deviation.item(), rel=0.06)


def test_gains_are_paired_and_those_of_ambiguous_images_apart():
    guesses = torch.tensor([[0.5, 0.4, 0.1], [0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.34, 0.3, 0.36]])
    digits = torch.tensor([0, 0, 0, 0])

    def result(elbo):
        return {
            "rows": [],
            "parameters": {},
            "elbo": torch.tensor(elbo),
            "iw_bound": torch.tensor(elbo[:2]) + 1,
            "effective_sample_size": torch.full((2,), 7.0),
            "effective_components": torch.full((4,), 2.0),
            "distinct_components": torch.full((4,), 1.5),
            "digits": guesses,
        }

    first, *others = occlusion.table_rows(
        {
            "K = 1": [result([-9.0, -100.0, -9.0, -9.0]), result([-11.0, -100.0, -9.0, -9.0])],
            "K = 4": [result([-7.0, -99.0, -9.0, -9.0]), Diverged("NaN")],
            "none": [Diverged("NaN")],
        },
        guesses,
        digits,
    )
    assert (first["gain"], first["fits"], first["diverged"]) == (0, 2, 0)
    assert first["elbo"] == pytest.approx(-32.0)
    assert first["elbo_se_over_fits"] == pytest.approx(0.25)
    four, none = others
    gain = torch.tensor([3.0, 1.0, 0.0, 0.0])
    assert four["gain"] == pytest.approx(1.0)
    assert four["gain_se"] == pytest.approx(gain.std().item() / 2)
    assert four["ambiguous_gain"] == pytest.approx(1.5)
    assert four["sure_gain"] == pytest.approx(0.5)
    assert (four["fits"], four["diverged"], none["diverged"]) == (1, 1, 1)
    assert four["accuracy"] == pytest.approx(0.75)
    text = occlusion.bounds_table([first, *others])
    lines = text.splitlines()
    assert len({line.count(" |") for line in lines[2:]}) == 1
    assert "| -54.000 | 3.000 |" in lines[2]  # the other's bound is the higher one, -52
    assert "| none | 0, 1 |" in lines[4]
    assert "none" not in occlusion.digits_table([first, *others])


def test_ambiguous_images_are_the_least_sure_of_each_pair_of_digits():
    guesses = torch.zeros(7, 10)
    for place, (first, second, least) in enumerate(
        [(4, 9, 0.40), (9, 4, 0.45), (3, 5, 0.20), (0, 1, 0.50), (8, 5, 0.30), (5, 8, 0.25)]
    ):
        guesses[place, first], guesses[place, second] = 1 - least, least
    guesses[6, 3] = 1.0
    assert occlusion.ambiguous(guesses).tolist() == [1, 2, 4]  # none of 3 and 8
    best = guesses.topk(2)
    found = completion.of_pairs(best.indices, best.values[:, 1], count=4)
    assert found.tolist() == [1, 2, 4, 3]
    unsure = [True, True, False, True, False, False, False]
    assert occlusion.are_ambiguous(guesses).tolist() == unsure
