"""Reverse KL and the inverse problem of the experiment with flows."""

import math

import pytest
import torch

from experiments.flows import arm, inverse, reverse
from experiments.flows.part import table
from experiments.lab.sweep import Diverged
from experiments.modes.targets import TARGETS


@pytest.mark.parametrize("target", reverse.SETTINGS)
@pytest.mark.parametrize("contender", reverse.CONTENDERS)
def test_all_parameters_of_all_copies_have_gradients(target, contender):
    truth = TARGETS[target]()
    flow = reverse.start(truth, contender, 2)
    with torch.no_grad():
        for parameter in flow.couplings.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    torch.manual_seed(0)
    total = reverse.loss(flow, truth, contender, 0.1)
    total.backward()
    for place, parameter in flow.named_parameters():
        if "logits" in place and parameter.shape[-1] == 1:
            continue
        assert bool(parameter.grad.isfinite().all()), place
        assert bool(parameter.grad[0].any()), place
        assert bool(parameter.grad[1].any()), place
    assert flow.base.locs.shape[0] == 2
    if "alone" in contender:
        assert not list(flow.couplings)


def test_first_components_cover_the_box():
    flow = reverse.start(TARGETS["forty_normals"](), "mixture alone, clustered", 2)
    locs = 20 * flow.base.locs.detach()  # (2, 80, 2)
    cells = ((locs + 44) / 22).floor().long()  # a square of 16
    for copy in cells:
        assert len({tuple(cell) for cell in copy.tolist()}) == 16
    assert not torch.equal(locs[0], locs[1])


def test_the_judgement_is_in_the_units_of_the_target():
    """Of the forty Normals themselves: no gap, all modes, all weights one."""
    truth = TARGETS["forty_normals"]()
    flow = reverse.start(truth, "mixture alone, clustered", 1)
    generator = torch.Generator().manual_seed(0)
    locs = 80 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 40
    scale = torch.nn.functional.softplus(torch.tensor(1.0))
    with torch.no_grad():
        flow.base.locs = torch.nn.Parameter((locs.float() / 20).unsqueeze(0))
        flow.base.log_scale = torch.nn.Parameter((scale / 20).log().expand(1, 40, 2).clone())
        flow.base.logits = torch.nn.Parameter(torch.zeros(1, 40))
    torch.manual_seed(0)
    (row,) = reverse.judged(flow, truth, 4000)["rows"]
    assert row["gap"] == pytest.approx(0, abs=1e-3)
    assert row["evidence"] == pytest.approx(0, abs=1e-3)
    assert (row["modes"], row["of"]) == (40, 40)
    z = flow.sample(5)
    values = reverse.log_density(truth, z) - flow.log_prob(z)
    torch.testing.assert_close(values.float(), torch.zeros(5, 1), atol=1e-3, rtol=0)


def test_rows_of_reverse_kl():
    jobs = {
        name: {"target": "forty_normals", "contender": name, "seeds": 2, "draws": 100}
        for name in ("a", "b")
    }
    each = {"evidence": -0.1, "gap": 0.2, "effective_sample_size": 50.0, "modes": 39, "of": 40}
    other = {**each, "evidence": 0.3, "modes": 40}
    results = {
        "a": {
            "rows": [{**each, "khat": 0.1}, {**other, "khat": 0.3}],
            "seconds": 8.0,
            "evidence": 0.0,
        },
        "b": Diverged("NaN"),
    }
    lines = table(reverse.COLUMNS, reverse.rows(jobs, results)).splitlines()
    assert lines[2] == (
        "| forty_normals | a | 0.2000 ± 0.1000 | 0.200 ± 0.000 | 0.500 ± 0.000 | 39.5 of 40"
        " | 0.30 | 4.0 |"
    )
    assert lines[3] == "| forty_normals | b | - | - | - | - | - | - |"


def test_the_arm_has_two_answers_and_a_posterior():
    shoulder, elbow = torch.tensor([0.3, -0.4]), torch.tensor([0.9, 1.4])
    angles = torch.stack([shoulder, elbow], -1)
    mirrored = torch.stack([shoulder + elbow, -elbow], -1)
    torch.testing.assert_close(arm.hand(mirrored), arm.hand(angles))
    place = arm.hand(angles[:1])
    line = torch.linspace(-4, 4, 401)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log_posterior = arm.log_posterior(angles[:1], place)
    log_evidence = arm.log_joint(angles[:1], place) - log_posterior
    total = (arm.log_joint(grid, place) - log_evidence).exp().sum() * 0.02**2
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("contender", inverse.CONTENDERS)
def test_networks_of_the_arm_are_trained_whole(contender):
    torch.manual_seed(0)
    angles, places = arm.draw(500, torch.Generator().manual_seed(0))
    model = inverse.network(contender, angles)
    (-model(places).log_prob(angles).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert model(places).sample((3,)).shape == (3, 500, 2)


def test_errors_of_the_coverage():
    assert inverse.calibration_error((torch.arange(1000) + 0.5) / 1000) < 0.01
    assert inverse.calibration_error(torch.full((100,), 0.5)) == pytest.approx(0.5, abs=0.02)


def test_rows_of_the_arm_end_with_the_truth():
    jobs = {f"K = 2-{seed}": {"contender": "K = 2", "seed": seed} for seed in range(3)}
    result = {
        "nll": torch.tensor([1.0, 2.0]),
        "true_nll": torch.tensor([0.0, 1.0]),
        "coverage": torch.linspace(0, 1, 500),
        "miss": torch.tensor(2.0),
        "parameters": 7,
        "seconds": 1.0,
    }
    results = dict.fromkeys(jobs, result) | {"K = 2-1": Diverged("NaN")}
    rows = inverse.rows(jobs, results)
    assert rows[0]["diverged"] == 1
    assert rows[0]["nll"] == 1.5
    lines = table(inverse.COLUMNS, rows).splitlines()
    assert lines[2].startswith("| K = 2 | 1.500 ± 0.000 | 0.00")
    assert lines[3] == "| truth | 0.500 | - | - | - | - |"
    assert math.isnan(rows[-1]["nll_error"])
