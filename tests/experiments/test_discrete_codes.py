"""The experiment with discrete codes: the quick run, resuming it, and its estimators."""

import json
import math

import pytest
import torch

from experiments.discrete_codes import DiscreteCodes, autoencoder, gradients, studies
from experiments.discrete_codes.autoencoder import Candidate
from experiments.discrete_codes.choices import ESTIMATORS, KINDS, UNBIASED
from experiments.lab import comparison
from experiments.lab.comparison import Column, Job
from experiments.lab.sweep import Diverged
from experiments.lab.trainer_settings import Training

STUDIES = tuple(studies.STUDIES)


def summary(folder, study):
    path = folder / "discrete_codes-quick" / study / "summary.json"
    return json.loads(path.read_text())["table"]


def test_a_quick_run_writes_everything(tmp_path, cluster):
    DiscreteCodes(quick=True, out=tmp_path, scheduler=cluster).run()
    for name, study in studies.STUDIES.items():
        folder = tmp_path / "discrete_codes-quick" / name
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert files >= {"config.json", "metrics.csv", "summary.json", "table.md"}
        assert files >= {f"{figure}.png" for figure in study.figures}
    measured = summary(tmp_path, "gradients")
    assert len(measured) == 6 * len(gradients.NAMES)
    for row in measured:
        if row["unbiased"]:
            assert row["z"] < row["allowed"]
    for name in ("few", "many"):
        rows = summary(tmp_path, name)
        assert [row["row"] for row in rows] == [job.name for job in studies.STUDIES[name].jobs(1)]
        for row in rows:
            assert row["fits"] == 1
            assert row["milliseconds"] > 0
            assert row.get("iw_bound", 0) > row["elbo"]


def test_a_run_that_was_stopped_comes_to_the_same_numbers(tmp_path, cluster, monkeypatch):
    def run(folder, **arguments):
        DiscreteCodes(("few",), quick=True, out=folder, scheduler=cluster, **arguments).run()
        rows = summary(folder, "few")
        return [{k: v for k, v in row.items() if k != "milliseconds"} for row in rows]

    monkeypatch.setitem(studies.FEW, "binary", (2, 2))
    whole = run(tmp_path / "whole")
    judge, calls = autoencoder.judge, []

    def stopped_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyError("stopped")  # after the fit's own checkpoints
        return judge(*args)

    with monkeypatch.context() as patched:
        patched.setattr(autoencoder, "judge", stopped_at_the_second)
        with pytest.raises(KeyError, match="stopped"):
            run(tmp_path / "broken")
    with pytest.raises(ValueError, match="unfinished run"):
        run(tmp_path / "broken")
    assert run(tmp_path / "broken", resume=True) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_each_estimator_against_the_exact_gradient(kind):
    """The value of all that draw discrete values, and the gradient of those without bias."""
    torch.manual_seed(0)
    shape = (2, 3) if kind == "categorical" else (3,)
    weights = torch.randn(shape).double()

    def cost(z):
        return (z * weights).flatten(-len(shape)).sum(-1).exp()

    logits = torch.randn(shape).double()
    draws, far = 20_000, 5  # standard errors: a false alarm in 2 million, for each number
    exact_logits = logits.clone().requires_grad_()
    exact = ESTIMATORS["marginalized"](KINDS[kind], exact_logits, cost)
    (gradient,) = torch.autograd.grad(exact, exact_logits)
    for name, estimator in ESTIMATORS.items():
        if name == "marginalized":
            continue
        many = logits.expand(draws, *shape).clone().requires_grad_()
        values = estimator(KINDS[kind], many, cost)
        (found,) = torch.autograd.grad(values.sum(), many)
        assert values.shape == (draws,)
        if not name.startswith("Gumbel ") or "straight" in name:
            error = values.std().item() / math.sqrt(draws)
            assert abs(values.mean().item() - exact.item()) < far * error, name
        error = found.std(0) / math.sqrt(draws)
        off = ((found.mean(0) - gradient).abs() / error.clamp_min(1e-12)).max()
        assert (off < far) == (name in UNBIASED), name


def test_divergence_and_values():
    logits = torch.randn(4, 2, 3).double()
    kind = KINDS["categorical"]
    values = kind.values(logits)
    assert values.shape == (9, 1, 2, 3)
    assert len({tuple(each.flatten().tolist()) for each in values}) == 9
    p = kind.log_prob(logits, values).exp()  # (9, 4)
    torch.testing.assert_close(p.sum(0), torch.ones(4).double())
    torch.testing.assert_close((p * (9 * p).log()).sum(0), kind.divergence(logits))
    assert KINDS["binary"].values(logits[..., 0]).shape == (4, 1, 2)


def test_bias_and_deviation_of_known_numbers():
    """Of Normals whose mean is off in one of two coordinates."""
    torch.manual_seed(0)
    exact = torch.tensor([3.0, 4.0]).double()
    shift = torch.tensor([1.0, 0.0]).double()
    estimates = exact + shift + 2 * torch.randn(20_000, 2).double()
    often = torch.tensor([True, True])
    found = gradients.compare(estimates, exact, often)
    assert abs(found.bias - 1 / 5) < 4 * found.bias_se
    assert abs(found.deviation - math.sqrt(8) / 5) < 4 * found.deviation_se
    assert found.z == pytest.approx(math.sqrt(20_000) / 2, rel=0.1)
    assert gradients.compare(estimates, exact, torch.tensor([False, True])).z < 5
    assert gradients.threshold(1) == pytest.approx(3.29, abs=0.01)


def test_quantized_codes_are_judged_by_all_of_them():
    candidate = Candidate("vector quantization", "categorical", 2, 4, 16, "digits")
    decoder, encoder = autoencoder.start(candidate, 64, 0)
    rows = torch.rand(50, 64).round()
    for _ in range(20):
        encoder.loss(decoder, rows)
    found = autoencoder.judge(decoder.eval(), encoder.eval(), candidate, rows)
    torch.testing.assert_close(-found["elbo"], encoder.loss(decoder, rows).mean().item())
    assert found["elbo"] < found["iw_bound"]
    assert 1 < found["perplexity"] <= 4


def test_the_table_tells_errors_and_fits_that_diverged():
    def job(seed):
        return Job("row", None, Training(1, 1, seed=seed))

    results = comparison.by_row(
        [
            (job(0), {"elbo": 1.0, "rows": []}),
            (job(1), {"elbo": 3.0, "rows": []}),
            (job(2), Diverged("NaN")),
        ]
    )
    rows = comparison.means(results)
    assert rows == [{"row": "row", "fits": 2, "diverged": 1, "elbo": 2.0, "elbo_se": 1.0}]
    columns = (Column("elbo", "ELBO"), Column("other", "other"), Column("fits", "fits", "d"))
    assert comparison.table("Title", columns, rows).splitlines() == [
        "| Title | ELBO | other | fits |",
        "| --- | --- | --- | --- |",
        "| row | 2.00 ± 1.00 | - | 2 |",
    ]


def test_options_that_are_none():
    with pytest.raises(ValueError, match="seeds >= 1"):
        DiscreteCodes(seeds=0)
    with pytest.raises(ValueError, match="studies"):
        DiscreteCodes(studies=("none",))
