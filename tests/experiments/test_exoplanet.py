"""The end of the demo: a planet's frequencies by `fit`, beside the exact posterior."""

import re

import torch

from experiments.modes.exoplanet import Exoplanet, frequency_density
from experiments.modes.targets import TARGETS
from experiments.modes.targets.truth import axis, radial_velocity_log_density
from pyro_mixtures import fit


def test_report_and_figure(tmp_path, capsys):
    Exoplanet(out=tmp_path).run()
    printed = capsys.readouterr().out
    folder = tmp_path / "exoplanet"
    report = (folder / "report.txt").read_text()
    assert report in printed
    assert re.search(r"frequency 0\.75\d", report)
    assert (folder / "exoplanet.png").stat().st_size > 10_000
    *_, found, following = printed.splitlines()
    near, exact = re.findall(r"-21\.\d+", found)
    assert abs(float(near) - float(exact)) < 0.02
    assert str(folder / "exoplanet.png") in following
    assert torch.get_default_dtype() == torch.float32


def test_the_density_of_the_frequency_is_the_exact_one():
    frequencies, log_size = axis(0.02, 0.98, 4000)
    values = radial_velocity_log_density(frequencies) + log_size
    exact = (values - values.logsumexp(0)).exp()
    result = fit(TARGETS["radial_velocity"]().model, progress=False)
    found = frequency_density(result, frequencies) * torch.tensor(log_size).exp()
    assert abs(found.sum() - 1) < 1e-3
    assert (found - exact).abs().sum() / 2 < 0.05  # total variation
