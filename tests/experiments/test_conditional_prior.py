"""The experiment with conditional priors: the quick run, gradients and the likelihood."""

import json

import pyro.distributions as dist
import pytest
import torch

from experiments.conditional_prior import ConditionalPrior, fits, studies
from experiments.conditional_prior.model import Candidate, halves

SMALL = {"latent": 2, "hidden": 16, "reading": "digits"}


def test_a_quick_run_writes_everything(tmp_path, cluster):
    ConditionalPrior(quick=True, out=tmp_path, scheduler=cluster).run()
    folder = tmp_path / "conditional_prior-quick" / "priors"
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files >= {"config.json", "metrics.csv", "summary.json", "table.md", "completions.png"}
    rows = json.loads((folder / "summary.json").read_text())["table"]
    assert [row["row"] for row in rows] == list(studies.candidates())
    for row in rows:
        assert row["fits"] == 1
        assert row["milliseconds"] > 0
        assert (row["row"] == "no latent") == (row["log_likelihood"] == row["elbo"])
        assert row["log_likelihood"] >= row["elbo"]
        assert (row["row"] == studies.REFERENCE) == (row["gain"] == row["gain_se"] == 0)


@pytest.mark.parametrize("name", studies.candidates())
def test_every_model_has_gradients(name):
    candidate = Candidate(**{**vars(studies.candidates()[name]), **SMALL})
    model, guide, elbo = fits.start(candidate, 64, 0)
    batch = torch.rand(30, 64).round()
    elbo.differentiable_loss(model, guide, batch).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("bottleneck", [False, True])
def test_the_likelihood_is_that_of_draws_of_the_prior(bottleneck):
    """By importance sampling from two proposals, and by many draws of z from p(z | y)."""
    candidate = Candidate(num_components=3, bottleneck=bottleneck, **SMALL)
    model, guide, _ = fits.start(candidate, 64, 0)
    test = torch.rand(20, 64).round()

    class Proposal(torch.nn.Module):
        """Wider than the prior of all images."""

        def forward(self, images):
            return dist.Normal(torch.zeros(len(images), 2), 2.0).to_event(1)

    guide.encoder = Proposal()
    found = fits.judge(model.eval(), guide.eval(), test, 5000)
    upper, lower = halves(test)
    with torch.no_grad():
        z = model.prior(upper).sample((20_000,))
        pixels = torch.distributions.Bernoulli(logits=model.logits(upper, z))
        told = pixels.log_prob(lower).sum(-1).logsumexp(0) - torch.tensor(20_000.0).log()
    torch.testing.assert_close(found["each"], told, atol=0.1, rtol=0)


def test_completions_differ_where_there_is_a_latent():
    torch.manual_seed(0)
    upper = torch.rand(4, 32).round()
    for prior, differ in (("none", False), ("standard", True), ("conditional", True)):
        model, _, _ = fits.start(Candidate(prior, **SMALL), 64, 0)
        completed = model.completed(upper, 3)
        assert completed.shape == (3, 4, 32)
        assert bool((completed[0] != completed[1]).any()) == differ


def test_priors_that_are_none():
    with pytest.raises(ValueError, match=r"prior.*flat"):
        fits.start(Candidate("flat", **SMALL), 64, 0)
