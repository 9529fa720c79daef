"""Each tutorial runs without a warning, and what its text says holds for its numbers."""

import math
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest
import torch

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("plot_*.py"))


def first_mixture_guide(names):
    elbos, sides = names["elbos"], names["sides"]
    assert elbos["mixture, K = 2"] > elbos["mean field"] + 0.3
    assert elbos["mixture, K = 10"] > elbos["mixture, K = 2"] + 0.03
    assert elbos["mixture, K = 10"] < names["log_evidence"] + 0.01
    assert sides["mixture, K = 10"] == pytest.approx(names["upper_side"], abs=0.05)
    assert min(sides["mean field"], 1 - sides["mean field"]) < 0.01


def baseball(names):
    elbos = names["elbos"]
    assert elbos["mixture, K = 5"] > elbos["mean field"] + 0.3
    assert elbos["mixture, K = 20"] > elbos["mixture, K = 5"]


def state_space(names):
    assert names["elbos"]["K = 2"] > names["elbos"]["K = 1"] + 1
    exact = names["positive"][names["sequence"], names["time"]].item()
    error = {name: abs(mass - exact) for name, mass in names["masses"].items()}
    assert error["K = 2"] < 0.2
    assert error["K = 1"] > 0.3


def choosing_an_estimator(names):
    smooth, ragged = (
        {
            separation: {name: value / row["hybrid"] for name, value in row.items()}
            for separation, row in zip(names["SEPARATIONS"], rows, strict=True)
        }
        for rows in names["by_separation"].values()
    )
    assert smooth[2]["pathwise"] < 0.3
    assert smooth[8]["pathwise"] > 2
    assert smooth[8]["clustered"] == pytest.approx(1, abs=0.2)
    assert all(row["blended"] < 1.2 for row in (*smooth.values(), *ragged.values()))
    assert ragged[1]["blended"] < 0.8 < ragged[1]["pathwise"]
    low, *_, high = [row["pathwise"] / row["hybrid"] for row in names["by_dim"]]
    assert high < low / 5
    unbiased, biased = names["unbiased"], names["relaxed"]["gumbel_soft"][-1]
    assert abs(unbiased["mean"] - names["exact"]) < 4 * unbiased["error"]
    assert abs(biased["mean"] - names["exact"]) > 10 * biased["error"]
    variance = names["logit_variance"]
    assert variance["baseline, blending"] < 0.8 * variance["baseline"]
    assert variance["baseline"] < 0.5 * variance["Trace_ELBO"]


def avf_guides(names):
    remaining = names["remaining"]
    assert min(remaining["AVF, rows"]) < 0.3 < min(remaining["AVF, axes"][:-1]) < 0.9
    climb = {name: values[:, 100:400].mean() for name, values in names["histories"].items()}
    assert climb["AVF, rows"] > climb["plain"] + 1


def any_family(names):
    assert names["error"] < 1e-12
    for fit, log_evidence in (("coin", "coin"), ("decay", "decay"), ("logistic", "decay")):
        gap = names[f"{log_evidence}_evidence"] - names[f"{fit}_elbo"]
        assert -0.01 < gap < 0.1


def diagnosing_a_fit(names):
    healthy, mended, exact = (names[name] for name in ("healthy", "mended", "log_evidence"))
    assert max(healthy.psis.khat, mended.psis.khat) < 0.7
    assert healthy.summary.distinct_components < 2
    assert healthy.psis.log_evidence < exact - 0.5
    elbos = [other.elbo for other in names["others"]]
    assert max(elbos) - min(elbos) > 0.1
    assert mended.elbo > exact - 0.1
    assert mended.psis.log_evidence == pytest.approx(exact, abs=0.03)
    found, true = (torch.stack(names["shares"](names[name])) for name in ("better", "truth"))
    assert (found - true).abs().max() < 0.06
    assert names["noise"]["pathwise"] > 1.5 * names["noise"]["clustered"]


def mixture_density_network(names):
    assert names["scores"]["K = 5"] < names["best"] + 0.1
    assert names["scores"]["K = 1"] > names["best"] + 0.5
    assert names["by_hand"].log() == -torch.inf
    (bare, _, bare_loss), (floored, _, loss) = names["courses"].values()
    assert bare.min() < 1e-4 < 1e-2 < floored.min()
    assert bare_loss[-1] > loss[-1] + 0.5
    assert loss[-1] > loss.min() + 0.3
    one_place, far_off, from_data = names["starts"].values()
    assert from_data[50] < one_place[50] - 0.3
    assert far_off[-1] > from_data[-1] + 0.5
    assert names["gaps"]["K = 5"] < 0.06 < 0.1 < names["gaps"]["K = 1"]


def from_model_to_report(names):
    summary, exact = names["summary"], names["log_evidence"]
    assert summary.passed_checks
    assert summary.elbo > exact - 0.1
    assert summary.log_evidence == pytest.approx(exact, abs=0.02)
    for mode in summary.modes[:6]:
        near = (names["frequencies"] - mode.location["frequency"]).abs() < 0.02
        assert mode.weight == pytest.approx(names["exact"][near].sum().item(), abs=0.02)
    assert any("lie outside of the mixture" in alarm for alarm in names["few"].summary().alarms)
    funnel, mended = names["funnel"], names["mended"]
    assert any("found no optimum" in note for note in funnel.notes)
    assert any("stopped by the budget" in each for each in [*funnel.alarms, *funnel.notes])
    assert len(mended.notes) == 2
    assert mended.log_evidence - mended.elbo < 0.02 < funnel.log_evidence - funnel.elbo
    for (width, num_starts), told in names["found"].items():
        missed = width == 0.001 or (width, num_starts) == (0.02, 300)
        assert told.log_evidence == pytest.approx(-math.log(2) if missed else 0.0, abs=0.02)
        assert told.passed_checks
    (free, _), (few, few_error) = names["gains"].values()
    assert abs(free) < 0.01
    assert few > max(0.01, 2 * few_error)


def autoencoder(names):
    gains, terms, used = names["gains"], names["terms"], names["used"]
    for name in ("Normal, VampPrior", "mixture, VampPrior"):
        assert all(gain > max(0.2, 3 * error) for gain, error in gains[name])
    bounds = [gains[name][1][0] for name in gains]
    assert abs(bounds[1] - bounds[0]) < 0.2
    assert abs(bounds[3] - bounds[2]) < 0.2
    assert all(used[name].distinct_components.mean() < 2 for name in used)
    distortion = {name: found.distortion for name, found in terms.items()}
    assert distortion["Normal, VampPrior"] < distortion["Normal, standard prior"] - 0.2
    assert all(found.marginal_kl < 0.25 * found.mutual_information for found in terms.values())
    for gain, error in (names["half_gain"], names["lower_gain"]):
        assert gain > max(0.2, 4 * error)
    assert names["half_used"]["mixture"].distinct_components.mean() > 1.4


def clusters_without_labels(names):
    found, elbos = names["found"], names["elbos"]
    assert found["weights of each image"] < 0.4 < 0.6 < found["one mixture"]
    pixels, plain, mixture = (
        found[f"scikit-learn, {place}"]
        for place in ("pixels", "latents: one Normal", "latents: one mixture")
    )
    assert mixture > max(pixels, plain, found["one mixture"])
    assert names["used"] > 14
    assert elbos["weights of each image"] < elbos["one Normal"] < elbos["one mixture"] - 0.5
    assert (names["counts"].amax(0) > 0.5 * names["counts"].sum(0)).sum() > 8


def flow_on_a_mixture(names):
    scores, bridges = names["scores"], names["bridges"]
    best = scores["flow on a mixture, K = 2"]
    assert best > scores["flow on a Normal"] + 0.1
    assert best > scores["mixture, K = 2"] + 1
    assert bridges["flow on a mixture, K = 2"] < 0.01 < 0.02 < bridges["flow on a Normal"]
    assert names["purity"] > 0.98
    assert names["weights"][names["right"]].item() == pytest.approx(0.7, abs=0.03)
    gradient, exact = names["gradient"][0].item(), names["exact"][0].item()
    assert gradient == pytest.approx(exact, rel=0.05)


def labels_for_few(names):
    alone, model = (sum(each) / 3 for each in names["accuracies"].values())
    assert alone < 0.9
    assert model > alone + 0.01


CLAIMS = {
    "plot_1_first_mixture_guide": first_mixture_guide,
    "plot_2_baseball": baseball,
    "plot_3_state_space": state_space,
    "plot_4_choosing_an_estimator": choosing_an_estimator,
    "plot_5_avf_guides": avf_guides,
    "plot_6_any_family": any_family,
    "plot_7_diagnosing_a_fit": diagnosing_a_fit,
    "plot_8_mixture_density_network": mixture_density_network,
    "plot_9_from_model_to_report": from_model_to_report,
    "plot_10_autoencoder": autoencoder,
    "plot_11_clusters_without_labels": clusters_without_labels,
    "plot_12_flow_on_a_mixture": flow_on_a_mixture,
    "plot_13_labels_for_few": labels_for_few,
}


SHORTER = {
    "plot_1_first_mixture_guide": {"steps=2000": "steps=600"},
    "plot_2_baseball": {
        "num_samples=800, warmup_steps=300": "num_samples=20, warmup_steps=20",
        "steps=2500": "steps=50",
        "num_particles=20_000": "num_particles=1_000",
    },
    "plot_3_state_space": {
        "steps=700": "steps=20",
        "test[:20]": "test[:5]",
        "particles=2000, draws=500": "particles=500, draws=200",
    },
    "plot_4_choosing_an_estimator": {
        "draws=2000": "draws=50",
        "num_draws=400_000": "num_draws=20_000",
        "0.02, 800)": "0.02, 50)",
        "num_draws=800": "num_draws=50",
    },
    "plot_5_avf_guides": {
        "400, 800)": "400)",
        "num_draws=3000": "num_draws=1000",
        "(1, 2, 3)": "(1,)",
        "steps=800": "steps=400",
    },
    "plot_6_any_family": {"steps=800": "steps=300"},
    "plot_7_diagnosing_a_fit": {
        "steps=600": "steps=50",
        "steps=1200": "steps=50",
        "num_samples=5000": "num_samples=1000",
        "num_draws=500": "num_draws=50",
    },
    "plot_8_mixture_density_network": {
        "x, y, steps=600)": "x, y, steps=30)",
        "steps=1000": "steps=50",
        "x, y, steps=300)": "x, y, steps=30)",
    },
    "plot_9_from_model_to_report": {
        "VELOCITIES, progress": "VELOCITIES, max_evaluations=30_000, progress",
        "max_evaluations=60_000": "max_evaluations=12_000",
        "(schools, EFFECTS, ": "(schools, EFFECTS, max_evaluations=9_000, ",
        "(open_funnel, EFFECTS, ": "(open_funnel, EFFECTS, max_evaluations=9_000, ",
        "(0.1, 0.02, 0.001)": "(0.001,)",
        "steps=300": "steps=10",
        "num_samples=20_000": "num_samples=1_000",
    },
    "plot_10_autoencoder": {
        "fit(autoencoder.model, autoencoder.guide, steps=2500)": (
            "fit(autoencoder.model, autoencoder.guide, steps=5)"
        ),
        "fit(autoencoders[name].model, autoencoders[name].guide, steps=2500)": (
            "fit(autoencoders[name].model, autoencoders[name].guide, steps=5)"
        ),
        "steps=2000": "steps=5",
        "num_samples=500": "num_samples=25",
    },
    "plot_11_clusters_without_labels": {
        "steps=1000": "steps=5",
        "steps=1500": "steps=5",
        "steps=2000": "steps=5",
    },
    "plot_12_flow_on_a_mixture": {
        "Flow(1, 6), steps=1000": "Flow(1, 6), steps=300",
        "Flow(2, 6), steps=1000": "Flow(2, 6), steps=300",
    },
    "plot_13_labels_for_few": {"steps=1000": "steps=5"},
}
LONG = ("plot_2_baseball", "plot_3_state_space", "plot_4_choosing_an_estimator")
LONG += ("plot_7_diagnosing_a_fit", "plot_8_mixture_density_network")
LONG += ("plot_9_from_model_to_report", "plot_10_autoencoder")
LONG += ("plot_11_clusters_without_labels", "plot_13_labels_for_few")
"""Those whose claims take long to hold."""


def shortened(path):
    """With parts of its text, each of which stands there once, for fewer steps and draws."""
    text = path.read_text(encoding="utf-8")
    for before, after in SHORTER[path.stem].items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def test_each_tutorial_has_its_claims():
    assert [path.stem for path in TUTORIALS] == sorted(CLAIMS) == sorted(SHORTER)


def test_the_gallery_shows_them_by_number():
    by_number = runpy.run_path(str(ROOT / "docs" / "gallery_order.py"))["by_number"]
    numbers = sorted(by_number(path.name) for path in TUTORIALS)
    assert numbers == list(range(1, len(TUTORIALS) + 1))
    with pytest.raises(ValueError, match="plot_N_NAME.py"):
        by_number("GALLERY_HEADER.rst")


def test_an_autoencoder_takes_forty_lines():
    """With imports and data, without those for the figures."""
    text = (ROOT / "tutorials" / "plot_10_autoencoder.py").read_text("utf-8")
    code = text[text.index("import pyro\n") : text.index("# What is either mixture worth?")]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 40


def test_a_flow_on_a_mixture_takes_forty_lines():
    """With imports and data, without those for the figures."""
    text = (ROOT / "tutorials" / "plot_12_flow_on_a_mixture.py").read_text("utf-8")
    code = text[text.index("import pyro.dist") : text.index("# What each has of the data")]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 40


def test_a_semi_supervised_model_takes_sixty_lines():
    """With imports and data, without those for the figures."""
    text = (ROOT / "tutorials" / "plot_13_labels_for_few.py").read_text("utf-8")
    code = text[text.index("import pyro\n") : text.index("# There are three losses")]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 60


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of the figures that were shown and drawn."""
    numbers = []

    def draw():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()  # what is wrong with a figure shows here
            numbers.append(number)
        plt.close("all")

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", draw)
    pyro.clear_param_store()
    yield numbers
    pyro.clear_param_store()
    assert numbers
    assert not plt.get_fignums()  # each is shown in its cell


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path, drawn):
    """All of its code, shortened, without a warning; where that is enough, its claims as well."""
    names = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(shortened(path), str(path), "exec"), names)
    if path.stem not in LONG:
        CLAIMS[path.stem](names)


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_whole_tutorial(path, drawn):
    CLAIMS[path.stem](runpy.run_path(str(path)))
