"""The Gaussian process: data, model, estimators, the choice of settings and the quick run."""

import json
import math
import os
from pathlib import Path

import numpy
import pyro
import pytest
import torch
from pyro.contrib.gp import kernels
from torch.distributions import MultivariateNormal

from experiments.gaussian_process import GaussianProcess, choice, data, experiment, fits, noise
from experiments.gaussian_process.model import HYPERPARAMETERS, Regression, kernel
from experiments.lab.sweep import Diverged

FILES = {"config.json", "metrics.csv", "summary.json", "table.md", "elbo.png", "sweep.png"}


@pytest.fixture
def regression():
    """Of two years."""
    return fits.load(24)


def test_series_of_statsmodels(monkeypatch):
    monkeypatch.delenv(data.VARIABLE, raising=False)
    values = data.monthly_co2()
    assert data.source() == "statsmodels"
    assert values.shape == (468,)
    assert numpy.isfinite(values).all()
    assert values.min() == pytest.approx(313.35, abs=0.1)
    assert values.max() == pytest.approx(366.7, abs=0.1)


def test_series_of_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    rows = [f"{1959 + month / 12:.3f},{month / 2}" for month in range(468)]
    (tmp_path / "co2.csv").write_text("\n".join(["time,value", *rows]))
    assert data.monthly_co2().tolist() == [month / 2 for month in range(468)]
    assert data.source() == "co2.csv"


@pytest.mark.skipif("PYRO_MIXTURES_DATA" not in os.environ, reason="no data folder")
def test_both_sources_tell_the_same(monkeypatch):
    """They are of different calibration scales: 0.1 ppm on average, 0.6 at most."""
    if not (Path(os.environ[data.VARIABLE]) / data.FILE).exists():
        pytest.skip("no such file")
    given = data.monthly_co2()
    monkeypatch.delenv(data.VARIABLE)
    assert abs(given - data.monthly_co2()).max() < 0.7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("time,ppm\n1959,315\n", "columns time,value"),
        ("time,value\n1959,315\n", "468 finite values"),
        ("time,value\n" + "1959,\n" * 468, "0 finite ones in 468 rows"),
        ("time,value\n1959,315,7\n", "columns time,value"),
        ("", "columns time,value"),
    ],
)
@pytest.mark.filterwarnings("ignore:genfromtxt")
def test_bad_file_is_told_with_its_variable(monkeypatch, tmp_path, text, told):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    if text is not None:
        (tmp_path / "co2.csv").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        data.monthly_co2()
    assert "co2.csv" in str(caught.value)
    assert data.VARIABLE in str(caught.value)


def test_kernel_is_the_one_that_pyros_kernels_make():
    pyro.clear_param_store()
    values = torch.tensor(list(HYPERPARAMETERS.values()), dtype=torch.float64)
    a, b, c, d, e, f, g, h, i, j, _ = values
    one = torch.ones_like(a)
    season = kernels.Product(kernels.Periodic(1, c**2, e, one), kernels.RBF(1, one, d))
    medium = kernels.RationalQuadratic(1, f**2, g, h)
    smooth = kernels.Sum(kernels.RBF(1, a**2, b), season)
    reference = kernels.Sum(smooth, kernels.Sum(medium, kernels.RBF(1, i**2, j)))
    x = torch.linspace(0, 39, 60, dtype=torch.float64)
    found = kernel(values.log(), x - x.unsqueeze(-1))
    assert torch.allclose(found, reference(x), rtol=1e-10)


def test_elbo_of_the_exact_posterior_is_the_log_evidence(regression):
    told = regression.log_hyperparameters()
    told[-1] = -1.0
    root = torch.linalg.cholesky(regression.covariance(told))
    precision = torch.eye(24) + root.mT @ root * math.exp(2)
    loc = torch.linalg.solve(precision, root.mT @ regression.y) * math.exp(2)
    q = MultivariateNormal(loc, precision_matrix=precision)
    elbo = regression.expected_log_joint(loc, q.scale_tril, told) + q.entropy()
    assert elbo.item() == pytest.approx(regression.log_evidence(told).item(), rel=1e-9)


def test_exact_elbo_is_the_mean_of_samples(regression):
    fit = fits.Fit(regression, "RT")
    with torch.no_grad():
        fit.lower.normal_()
        q = fit.posterior()
        u = q.sample((20_000,))
        joint = regression.log_joint(u, fit.hyperparameters)
    assert joint.shape == (20_000,)
    error = joint.std().item() / len(u) ** 0.5
    mean = joint.mean().item() + q.entropy().item()
    assert fit.elbo().item() == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize("estimator", fits.NUM_ROTATIONS)
def test_gradients_average_to_those_of_the_exact_elbo(estimator):
    fit = fits.Fit(fits.load(5), estimator)
    leaves = fit.groups(fits.Setting(estimator, 0.1))[0]["params"]
    with torch.no_grad():
        fit.lower.normal_()
        fit.log_scale.fill_(-1.0)
        if fit.control_var is not None:
            fit.control_var.normal_()

    def gradient(loss):
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss, leaves)])

    exact = gradient(-fit.elbo())
    samples = torch.stack([gradient(fit.loss()) for _ in range(400)])
    error = samples.std(0) / len(samples) ** 0.5
    scores = (samples.mean(0) - exact)[error > 0] / error[error > 0]
    assert scores.abs().max() < 5  # 31 entries: false alarm about 31 * 6e-7
    assert torch.allclose(samples.mean(0)[error == 0], exact[error == 0])


def test_noise_of_plain_gradients_is_that_of_a_formula():
    """For a quadratic log joint, g = b + M eps: moments of g_a eps_b are known."""
    fit = fits.Fit(fits.load(5), "RT")
    with torch.no_grad():
        fit.lower.normal_()
        fit.log_scale.uniform_(-1, 0)
        scale_tril, told = fit.scale_tril(), fit.hyperparameters
        root = torch.linalg.cholesky(fit.regression.covariance(told)) / told[-1].exp()
        curvature = torch.eye(5) + root.mT @ root
        m = curvature @ scale_tril
        variance, cost = noise.measure(fit, "RT", draws=4000)
    b = torch.autograd.grad(-fit.elbo(), fit.loc)[0]
    shared = torch.outer(b, b) + m @ m.mT  # (a, a')
    covariance = shared.unsqueeze(-1) + m.unsqueeze(0) * m.unsqueeze(1)  # (a, a', b)
    below = torch.ones(5, 5).tril()
    variances = covariance.diagonal().mT * below
    assert variance == pytest.approx(variances.sum().item(), rel=0.1)
    weight = fit.log_scale.exp().unsqueeze(-1) * below / (variances + m.square()).sqrt()
    weighted = covariance * weight.unsqueeze(0) * weight.unsqueeze(1)
    assert cost == pytest.approx((curvature.unsqueeze(-1) * weighted).sum().item(), rel=0.1)


def test_evidence_grows_with_the_hyperparameters(regression):
    start = regression.log_evidence(regression.log_hyperparameters()).item()
    assert regression.largest_log_evidence() > start


def test_hyperparameters_are_in_units_of_the_series():
    told = Regression(torch.tensor([0.0, 2.0])).log_hyperparameters().exp()  # std: sqrt(2)
    assert told[0].item() == pytest.approx(66 / 2**0.5)
    assert told[1].item() == pytest.approx(67)


def test_control_variate_has_adam_settings_of_its_own(regression):
    setting = fits.Setting("AVF, M = 5", 0.01, 0.8, 0.3, 0.5)
    fit = fits.Fit(regression, "AVF, M = 5")
    own, control = fit.groups(setting)
    assert control == {"params": [fit.control_var], "lr": 0.3, "betas": (0.5, 0.999)}
    assert own["betas"] == (0.8, 0.999)
    assert setting.name == "AVF, M = 5, lr 0.01, beta 0.8, control lr 0.3, beta 0.5"
    first, again, other = (fits.fit(setting, seed, 4, 12, 2) for seed in (0, 0, 1))
    assert first == again
    assert first[-1]["elbo"] != other[-1]["elbo"]
    assert [row["step"] for row in first] == [0, 2, 4]


def test_best_setting_is_that_of_the_highest_mean():
    settings = [fits.Setting(name, rate) for name in fits.NUM_ROTATIONS for rate in (1, 2, 3)]
    results = {
        choice.job_name(setting, seed): [{"elbo": -abs(setting.learning_rate - 2) - seed}]
        for setting in settings
        for seed in (0, 1)
    }
    ranking = choice.rank(settings, (0, 1), results)
    assert ranking[0]["elbos"] == [0, -1]
    chosen = choice.best(settings, ranking)
    assert {name: setting.learning_rate for name, setting in chosen.items()} == dict.fromkeys(
        fits.NUM_ROTATIONS, 2
    )
    results["OMT, lr 2, beta 0.9, seed 1"] = Diverged("a NaN")
    ranking = choice.rank(settings, (0, 1), results)
    assert ranking[-1]["diverged"] == 1
    assert choice.best(settings, ranking)["OMT"].learning_rate != 2
    for rate in (1, 3):
        results[f"OMT, lr {rate}, beta 0.9, seed 0"] = [{"elbo": float("nan")}]
    with pytest.raises(FloatingPointError, match="each setting of OMT"):
        choice.best(settings, choice.rank(settings, (0, 1), results))


def test_quick_run_writes_everything_and_resumes(tmp_path, monkeypatch, capsys, cluster):
    """A run broken after the sweep or at the end gets the numbers of an unbroken one."""

    def run(name, **settings):
        GaussianProcess(quick=True, out=tmp_path / name, scheduler=cluster, **settings).run()

    run("whole")
    assert "| AVF, M = 5 |" in capsys.readouterr().out
    folder = tmp_path / "whole" / "gaussian_process-quick"
    assert FILES <= {path.name for path in folder.iterdir()}
    expected = json.loads((folder / "summary.json").read_text())
    for module, function in ((experiment.choice, "best"), (experiment.figures, "plot_elbo")):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, _stop)
            with pytest.raises(KeyboardInterrupt):
                run(function)
        run(function, resume=True)
        found = tmp_path / function / "gaussian_process-quick"
        metrics = [(path / "metrics.csv").read_text() for path in (folder, found)]
        assert metrics[0] == metrics[1]
        summary = json.loads((found / "summary.json").read_text())
        assert summary["sweep"] == expected["sweep"]
        assert summary["noise"] == expected["noise"]
        assert [row["elbo"] for row in summary["table"]] == [
            row["elbo"] for row in expected["table"]
        ]


def _stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_missing_file_is_told_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        GaussianProcess(quick=True, out=tmp_path / "results").run()
    assert not (tmp_path / "results").exists()


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="steps >= 1"):
        GaussianProcess(steps=0)
    with pytest.raises(ValueError, match="no seeds of your own"):
        GaussianProcess(quick=True, seeds=3)
