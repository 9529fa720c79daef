"""How noisy the gradients of the Cholesky factor are, plainly and in what Adam makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.gaussian_process.fits import Fit, Setting, load, posterior
from experiments.lab.full_batch import Schedule, train

KINDS = ("variance", "cost")


def noise(
    setting: Setting, seed: int, steps: int, months: int, draws: int
) -> list[dict[str, Any]]:
    """Rows of ratios to RT, of OMT and the setting's estimator, along a fit: a job of a sweep."""
    torch.manual_seed(seed)
    it = Fit(load(months), setting.estimator)
    schedule = Schedule(steps, setting.learning_rate, log_every=max(1, steps // 4))

    def evaluate() -> dict[str, float]:
        plain = measure(it, "RT", draws)
        ratios = {"elbo": it.elbo().item()}
        for name in ("OMT", setting.estimator):
            figures = zip(KINDS, measure(it, name, draws), plain, strict=True)
            ratios |= {f"{kind} {name}": own / other for kind, own, other in figures}
        return ratios

    return train(None, setting.name, it.groups(setting), it.loss, evaluate, schedule)


def measure(fit: Fit, estimator: str, draws: int) -> tuple[float, float]:
    """Variance of an estimator's gradient where a fit stands, and what its noise costs by Adam.

    The first is the sum over the entries of the Cholesky factor L. For the second each entry is
    divided by its root mean square, as Adam does in the long run, and the noise N that is left
    weighed by the curvature of the ELBO, ``tr(N^T H N)`` with ``H = I + C^T C / noise^2``: what
    steps of a given learning rate lose.
    """
    scale_tril = fit.scale_tril()
    gradients = torch.stack([gradient(fit, estimator, scale_tril) for _ in range(draws)])
    centred = gradients - gradients.mean(0)
    rms = gradients.square().mean(0).sqrt()
    step = fit.log_scale.exp().unsqueeze(-1) * (centred / torch.where(rms > 0, rms, 1.0))
    regression, told = fit.regression, fit.hyperparameters
    moved = torch.linalg.cholesky(regression.covariance(told)) @ step / told[-1].exp()
    cost = (step.square() + moved.square()).sum((-2, -1)).mean()
    return gradients.var(0).sum().item(), cost.item()


@torch.enable_grad()
def gradient(fit: Fit, estimator: str, scale_tril: Tensor) -> Tensor:
    """A gradient of minus the log joint by one sample, ``(N, N)``."""
    leaf = scale_tril.detach().requires_grad_()
    control_var = fit.control_var if estimator == fit.estimator else None
    u = posterior(estimator, fit.loc.detach(), leaf, control_var).rsample()
    loss = -fit.regression.log_joint(u, fit.hyperparameters.detach())
    return torch.autograd.grad(loss, leaf)[0].tril()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    kinds = [key for key in rows[0] if key.startswith(KINDS)]
    lines = [
        f"| iteration | {' | '.join(kinds)} |",
        f"| --- |{' --- |' * len(kinds)}",
    ]
    for row in rows:
        lines.append(f"| {row['step']} | {' | '.join(f'{row[kind]:.2f}' for kind in kinds)} |")
    return "\n".join(lines)
