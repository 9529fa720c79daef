"""``python -m experiments NAME [options]``; ``--help`` after a name lists its options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from experiments.baseball import Baseball
from experiments.conditional_prior import ConditionalPrior
from experiments.discrete_codes import DiscreteCodes
from experiments.dlgmm import DLGMM
from experiments.dmm import DMM
from experiments.estimator_map import EstimatorMap
from experiments.flows import Flows
from experiments.gaussian_process import GaussianProcess
from experiments.gradient_variance_avf import GradientVarianceAVF
from experiments.gradient_variance_mixture import GradientVarianceMixture
from experiments.modes import Modes
from experiments.modes.exoplanet import Exoplanet
from experiments.modes.polish import Polish
from experiments.semi_supervised import SemiSupervised
from experiments.state_space import StateSpace
from experiments.vae import VAE
from experiments.weight_gradient_bias import WeightGradientBias

EXPERIMENTS: dict[str, Callable[..., Any]] = {
    "baseball": Baseball,
    "conditional-prior": ConditionalPrior,
    "discrete-codes": DiscreteCodes,
    "dlgmm": DLGMM,
    "dmm": DMM,
    "estimator-map": EstimatorMap,
    "exoplanet": Exoplanet,
    "flows": Flows,
    "gaussian-process": GaussianProcess,
    "gradient-variance-avf": GradientVarianceAVF,
    "gradient-variance-mixture": GradientVarianceMixture,
    "modes": Modes,
    "polish": Polish,
    "semi-supervised": SemiSupervised,
    "state-space": StateSpace,
    "vae": VAE,
    "weight-gradient-bias": WeightGradientBias,
}


def main() -> None:
    """Run the experiment named on the command line."""
    try:
        prog = "python -m experiments"
        tyro.extras.subcommand_cli_from_dict(EXPERIMENTS, prog=prog).run()
    except KeyboardInterrupt:
        sys.exit("\nstopped; what has checkpoints goes on with the same command and --resume")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
