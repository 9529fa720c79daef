"""The experiment with random weights: the quick run, its models, and what is told of latents."""

import dataclasses
import json
import math

import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.distributions import kl_divergence

from experiments.dlgmm import DLGMM, fits, judgement, studies, tables
from experiments.dlgmm.autoencoder import StickPrior
from experiments.dlgmm.fits import APART, TINY, Candidate
from experiments.lab.sweep import Diverged
from experiments.vae import images
from pyro_mixtures import StickBreaking

CANDIDATES = {
    "gauss": Candidate("gauss"),
    "sticks": Candidate("sticks", 6, prior="gem", concentration=5.0),
    **{way: Candidate(num_components=3, way=way) for way in fits.WAYS},
    "apart": Candidate(means=APART, way="each"),
    "process": Candidate(num_components=6, prior="gem"),
    "two layers": Candidate("two_layers", 3),
}
CANDIDATES = {
    name: dataclasses.replace(each, reading="digits", sizes=TINY)
    for name, each in CANDIDATES.items()
}


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


@pytest.mark.parametrize("study", ["omniglot", pytest.param("mnist", marks=pytest.mark.slow)])
def test_a_quick_run_writes_everything(study, tmp_path, cluster):
    DLGMM((study,), quick=True, out=tmp_path, scheduler=cluster).run()
    folder = tmp_path / "dlgmm-quick" / study
    files = {path.name for path in folder.iterdir() if path.is_file()}
    pictures = {f"{name}.png" for name in studies.STUDIES[study].figures}
    assert files >= {"config.json", "metrics.csv", "summary.json", "table.md"} | pictures
    rows = json.loads((folder / "summary.json").read_text())["table"]
    assert {row["row"] for row in rows} == {x.name for x in studies.STUDIES[study].jobs(1)}
    for row in rows:
        assert row["fits"] == 1
        assert row["iw_bound"] > row["elbo"] > -64  # of pixels like coins: -44
        assert 0 < row["neighbours_3"] < 1


@pytest.mark.parametrize("name", CANDIDATES)
def test_all_parameters_have_gradients(name, digits):
    model, guide, elbo = fits.start(CANDIDATES[name], digits, 0)
    elbo.differentiable_loss(model, guide, digits.train.images[:20].round()).backward()
    for module in (model, guide):
        for place, parameter in module.named_parameters():
            assert parameter.grad is not None, place
            assert bool(parameter.grad.isfinite().all()), place
            assert bool(parameter.grad.any()), place


@pytest.mark.parametrize("candidate", [CANDIDATES["each"], CANDIDATES["apart"]])
def test_each_component_and_one_draw_have_the_same_bound(candidate, digits):
    model, guide, each = fits.start(candidate, digits, 0)
    *_, one = fits.start(dataclasses.replace(candidate, way="clustered"), digits, 0)
    model.eval(), guide.eval()
    batch = digits.test.images[:50].repeat(20, 1)
    torch.manual_seed(1)
    with torch.no_grad():
        first, second = (
            torch.tensor([elbo.loss(model, guide, batch) / len(batch) for _ in range(5)])
            for elbo in (each, one)
        )
    error = math.hypot(first.std().item(), second.std().item()) / math.sqrt(5)
    assert abs((first.mean() - second.mean()).item()) < 6 * error + 1e-3


@pytest.mark.parametrize(
    ("prior", "concentration"), [("gem", 1.0), ("gem", 5.0), ("dirichlet", 1.0)]
)
def test_posterior_weights_start_at_the_prior(prior, concentration, digits):
    candidate = dataclasses.replace(
        CANDIDATES["clustered"], prior=prior, concentration=concentration
    )
    model, guide, _ = fits.start(candidate, digits, 0)
    with torch.no_grad():
        guide.encoder.sticks.outputs.output.weight.zero_()
    divergence = kl_divergence(guide.encoder(digits.test.images[:3]).weights, model.weights())
    # Beta(1, c) is Kumaraswamy(1, c); of the Dirichlet's with c = 1 all are such
    torch.testing.assert_close(divergence, torch.zeros(3), atol=1e-4, rtol=0)


def test_a_prior_of_sticks_is_moved_with_its_model():
    prior = StickPrior(StickBreaking.gem(2.0, 4)).double()
    assert prior().mean.dtype == torch.float64
    assert prior.num_weights == 4


def test_gradient_norms(digits):
    model, guide, elbo = fits.start(CANDIDATES["two layers"], digits, 0)
    model.eval(), guide.eval()
    with torch.no_grad():
        found = fits.gradient_norm(model, guide, elbo, digits.test.images[:20])
    assert 0 < found["gradient_norm"] < math.inf
    assert not model.training
    assert not guide.training
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_votes_are_those_of_scikit_learn():
    rng = numpy.random.default_rng(0)
    digits = rng.integers(0, 4, 400)
    halves = (slice(0, 200), slice(200, 400))
    z = (digits[:, None] + rng.normal(size=(400, 3))).astype(numpy.float32)
    learned, tested = ((torch.from_numpy(z[x]), torch.from_numpy(digits[x])) for x in halves)
    errors = judgement.neighbour_errors(learned, tested)
    for k, error in errors.items():
        classifier = KNeighborsClassifier(k).fit(*(x.numpy() for x in learned))
        assert error == pytest.approx(1 - classifier.score(*(x.numpy() for x in tested)))
    assert set(errors) == {3, 5, 10}


def test_clusters_that_are_the_digits():
    torch.manual_seed(0)
    digits = torch.arange(600) % 3
    z = 20.0 * digits.unsqueeze(-1) + torch.randn(600, 2)
    found = judgement.mixture_informations(z, (z, digits), (1, 3))
    assert found == {1: pytest.approx(0.0), 3: pytest.approx(1.0)}
    assert judgement.information((digits + 1) % 3, digits) == pytest.approx(1.0)


def test_perplexity():
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(judgement.perplexity(weights), torch.tensor([2.0, 1.0]))


def test_distinct_components(digits):
    _, guide, _ = fits.start(CANDIDATES["clustered"], digits, 0)
    normals, seen = guide.encoder.normals.outputs, digits.test.images[:50]
    with torch.no_grad():
        guide.encoder.sticks.outputs.output.weight.zero_()
        for spread, expected in ((50.0, 3.0), (0.0, 1.0)):
            locs = spread * torch.arange(3.0).unsqueeze(-1).expand(3, 4)
            normals.output.weight.zero_()
            normals.start_at({"locs": locs, "scales": torch.zeros(())})
            found = judgement.distinct(guide.encoder, seen)
            assert found == pytest.approx(expected, rel=1e-3)


def test_digits_of_the_fixed_binarization_are_those_of_mnist(monkeypatch):
    grey = images.Split(torch.full((30, 4), 0.5), torch.arange(30))
    other = images.Images(grey, grey, grey, 2, True)
    monkeypatch.setattr(images, "load", lambda reading: {"dynamic": other}[reading])
    unknown = images.Split(grey.images.ceil(), None)
    fixed = images.Images(unknown, unknown, grey, 2, False)
    learned, tested = judgement.labelled(fixed)
    assert learned.digits.tolist() == list(range(30))
    assert set(learned.images.unique().tolist()) == {0.0, 1.0}
    assert tested is grey
    without = images.Images(unknown, unknown, unknown, 2, True)
    assert judgement.labelled(without) is None


def test_omniglot_by_its_drawers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_MIXTURES_DATA", str(tmp_path))
    drawer = numpy.tile(numpy.arange(1, 21, dtype=numpy.uint8), 3)
    pictures = (12 * drawer[:, None, None]).repeat(28, 1).repeat(28, 2)
    numpy.savez(tmp_path / "omniglot28.npz", images=pictures, drawer=drawer)
    found = images.load("omniglot")
    sizes = [len(each.images) for each in (found.train, found.validation, found.test)]
    assert sizes == [42, 3, 15]
    assert found.binarized_anew
    assert found.train.images.amax().item() == pytest.approx(12 * 14 / 255)
    assert set(found.test.images.unique().tolist()) == {0.0, 1.0}
    assert found.test.digits is None


def test_draws_of_the_outermost_components(digits):
    model, *_ = fits.start(CANDIDATES["apart"], digits, 0)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    drawn = fits.draws(model)
    assert drawn.shape == (2, fits.DRAWN, 64)
    assert bool(((drawn > 0) & (drawn < 1)).all())
    torch.testing.assert_close(seen[0].mean((1, 2)), torch.tensor([-1.5, 1.5]), atol=0.5, rtol=0)


def test_options_that_are_none(digits):
    with pytest.raises(ValueError, match="seeds >= 1"):
        DLGMM(seeds=0)
    with pytest.raises(ValueError, match="studies"):
        DLGMM(studies=("none",))
    for wrong in ({"way": "none"}, {"kind": "none"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fits.start(dataclasses.replace(CANDIDATES["gauss"], **wrong), digits, 0)


def result(elbo, epochs=2):
    bounds = {name: torch.tensor(elbo) + place for place, name in enumerate(tables.BOUNDS)}
    rows = [{"epoch": epoch, "validation_elbo": float(epoch)} for epoch in range(epochs + 1)]
    return {
        **bounds,
        **dict.fromkeys(tables.MEANS, 0.5),
        "rows": rows,
        "neighbours": dict.fromkeys(judgement.NEIGHBOURS, 0.25),
        "clusters": dict.fromkeys(judgement.CLUSTERS, 0.5),
    }


def test_the_table_compares_at_equal_epochs():
    job = studies.mnist(1)[0]
    results = {
        "first": [(job, result([-1.0, -3.0], 5)), (job, result([-2.0, -4.0], 3))],
        "other": [(job, result([0.0, -1.0])), (job, Diverged("NaN"))],
    }
    first, second = rows = tables.rows(results, {"first": 0.001, "other": 0.002})
    assert (first["fits"], first["elbo"], first["elbo_se"]) == (2, -2.5, 0.5)
    assert (second["fits"], second["diverged"], second["long_bound"]) == (1, 1, 1.5)
    assert [row["validation_elbo"] for row in rows] == [2.0, 2.0]
    assert [row["epochs"] for row in rows] == [5, 2]
    told = tables.table("Title", rows)
    assert "| first | 2, 0 | 5 | 2.00 ± 0.00 | -2.50 ± 0.50 |" in told
    assert "25.00 ± 0.00" in told
    for fits_of_row in results.values():
        for _, each in fits_of_row:
            if not isinstance(each, Diverged):
                each |= {"neighbours": {}, "clusters": {}}
    assert "kNN" not in tables.table("Title", tables.rows(results, {"first": 1, "other": 1}))
