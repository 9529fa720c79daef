"""Evaluations count, and isolate bad points."""

import pytest
import torch

from pyro_mixtures.infer.search.evaluations import Evaluations


def log_density(z):
    """Quadratic; raises, or is not finite, where the first coordinate says so."""
    if bool((z[:, 0] == 7).any()):
        raise torch.linalg.LinAlgError("no factor")
    values = -(z**2).sum(-1) / 2
    for at, value in ((1, torch.nan), (2, torch.inf), (3, -torch.inf)):
        values = torch.where(z[:, 0] == at, value, values)
    return values


def test_bad_points_are_counted_and_harm_no_others():
    z = torch.randn(20, 3, dtype=torch.float64)
    z[torch.tensor([2, 3, 5, 11, 19]), 0] = torch.tensor([1.0, 2.0, 3.0, 7.0, 7.0]).double()
    evaluations = Evaluations(log_density)
    values, gradients = evaluations.values_and_gradients(z)
    bad = torch.zeros(20, dtype=torch.bool)
    bad[[2, 3, 5, 11, 19]] = True
    assert bool((values[bad] == -torch.inf).all())
    assert bool((gradients[bad] == 0).all())
    torch.testing.assert_close(values[~bad], -(z[~bad] ** 2).sum(-1) / 2)
    torch.testing.assert_close(gradients[~bad], -z[~bad])
    assert (evaluations.count, evaluations.without_mass, evaluations.failed) == (20, 1, 4)
    assert "nan, at z = (1, " in evaluations.first_failure
    torch.testing.assert_close(evaluations.values(z), values)
    hessians = evaluations.hessians(z)
    assert evaluations.count == 40 + 60
    torch.testing.assert_close(hessians[~bad], -torch.eye(3, dtype=torch.float64).expand(15, 3, 3))
    assert bool(hessians[[11, 19]].isnan().all())


def test_a_log_density_of_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="one value for each of 4 points"):
        Evaluations(lambda z: z).values(torch.zeros(4, 2))
