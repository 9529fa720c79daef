"""A small amortized problem, also run as a script by several processes.

``python -m tests.experiments.lab.amortized FOLDER GUIDE [KILL | resume | leave]`` fits, and prints
the last row. KILL is the number of the checkpoint in whose middle a process kills itself;
``leave`` ends while the processes still exchange tensors.
"""

import os
import signal
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch.utils.data import TensorDataset

from experiments.lab.processes import launch
from experiments.lab.trainer import Trainer
from experiments.lab.trainer_settings import Training
from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.infer import BaselinedTrace_ELBO

TRAINING = Training(
    epochs=6, batch_size=20, learning_rate=0.02, final_fraction=0.5, clip_norm=10.0
)


def data(size, seed):
    x = torch.randn(size, 1, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(2**0.5 * x)


DATA, VALIDATION = data(100, 0), data(30, 1)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Guide(torch.nn.Module):
    """Components of a mixture, or a point, by a linear network."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.net = kind, torch.nn.Linear(1, 6)

    def forward(self, x):
        locs, raw_scale, logits = self.net(x).unflatten(-1, (3, 2)).unbind(-2)
        with pyro.plate("data", len(x)):
            if self.kind == "point":
                return pyro.sample("z", dist.Delta(locs[..., :1]).to_event(1))
            scale = raw_scale.exp().unsqueeze(-1)
            estimator = {} if self.kind == "pathwise" else {"weight_gradient": self.kind}
            q = MixtureOfDiagNormals(locs.unsqueeze(-1), scale, logits, **estimator)
            return pyro.sample("z", q)


def trainer(folder, kind="pathwise", training=TRAINING, model=model, **kwargs):
    pyro.set_rng_seed(0)
    learning = kind in ("clustered", "hybrid")
    elbo = BaselinedTrace_ELBO() if learning else Trace_ELBO()
    kwargs = {"progress": False, **kwargs}
    fabric = launch("cpu")
    return Trainer(
        fabric, Path(folder), elbo, model, Guide(kind), training, {"kind": kind}, **kwargs
    )


def kill_in_checkpoint(number):
    """Write half of a checkpoint, and end as by ``kill -9``."""
    save, calls = torch.save, 0

    def partial_save(state, file):
        nonlocal calls
        calls += 1
        if calls < number:
            return save(state, file)
        file.write(b"half of a checkpoint")
        file.flush()
        return os.kill(os.getpid(), signal.SIGKILL)

    torch.save = partial_save


if __name__ == "__main__":
    folder, kind, *more = sys.argv[1:]
    if more and more[0] not in ("resume", "leave"):
        kill_in_checkpoint(int(more[0]))
    fitted = trainer(folder, kind, resume=more == ["resume"])
    print(fitted.fit(DATA, VALIDATION)[-1])
    if more == ["leave"]:
        for _ in range(2000):
            torch.distributed.all_reduce(torch.ones(1), async_op=True)
