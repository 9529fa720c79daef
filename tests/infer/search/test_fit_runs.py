"""``fit`` while it runs: seeds, interrupts, checkpoints, executors and the bar."""

import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mixtures as pm
from pyro_mixtures.infer.search import fit as fit_module
from tests.infer.search.models import Parameters

DATA = torch.tensor(3.0)


def quick(model, *args, **options):
    settings = {"max_evaluations": 5000, "num_starts": 50, "progress": False}
    return pm.fit(model, *args, **settings | options)


def two_modes(distance):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)


class Stopped(Exception):
    """Which is no error of a model's: it ends the whole search."""


class Interrupting:
    """A model of which a later run raises."""

    def __init__(self, model, error, after):
        self.model, self.error, self.left = model, error, after

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise self.error
        self.model(*args)


def numbers(result):
    posterior, search = result.posterior, result.search
    shown = [posterior.locs, posterior.scale_tril, posterior.component_logits]
    return [*(each.tolist() for each in shown), search.elbos, search.log, search.evaluations.count]


# -------------------------------------------------------------------------------- random numbers


def test_the_same_seed_gives_the_same_result_and_nothing_else_is_touched():
    pyro.clear_param_store()
    pyro.param("scale", torch.tensor(2.0))
    found = []
    for seed, other in ((0, 5), (0, 6), (1, 5)):
        pyro.set_rng_seed(other)
        expected = torch.rand(3)
        pyro.set_rng_seed(other)
        result = quick(two_modes, DATA, seed=seed)
        result.summary(100), result.draws(3, resample=True), result.modes
        assert torch.equal(torch.rand(3), expected)
        assert dict(pyro.get_param_store()) == {"scale": torch.tensor(2.0)}
        found.append((*numbers(result), str(result.summary(100)).split("seconds")[0]))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_parameters_of_the_model_stay_as_they_are():
    model = Parameters()
    before = {name: value.clone() for name, value in model.named_parameters()}
    pyro.clear_param_store()
    result = quick(model, max_evaluations=2000)
    assert float(result.posterior.mean) == pytest.approx(0.5, abs=0.1)
    assert list(pyro.get_param_store()) == []
    for name, value in model.named_parameters():
        assert isinstance(value, nn.Parameter)
        assert torch.equal(value, before[name])
        assert value.grad is None


# ------------------------------------------------------------------------------------- interrupts


def runs_of_the_starts(model, *args):
    """Runs of a model until a fit has its first mixture."""
    counting = Interrupting(model, None, -1)
    density = pm.ModelLogDensity(counting, args)
    torch.manual_seed(0)
    search = pm.ModeSearch(density, density.prior_draws(50), max_evaluations=5000)
    search.step()
    return -1 - counting.left


@pytest.mark.parametrize("later", [1, 10, 70])
def test_an_interrupt_gives_the_best_so_far(later):
    after = runs_of_the_starts(two_modes, DATA) + later
    model = Interrupting(two_modes, KeyboardInterrupt(), after)
    result = quick(model, DATA)
    assert model.left == 0
    assert result.search.stopped == "interrupted"
    assert result.search.done
    places = sorted(float(mode.location["x"]) for mode in result.modes)
    assert places == pytest.approx([-2.92, 2.92], abs=0.2)
    summary = result.summary()
    assert not summary.passed_checks
    assert any(alarm.startswith("interrupted after") for alarm in summary.alarms)
    assert result.guide.median(DATA)["x"].isfinite()


def test_an_interrupt_before_there_is_a_mixture_stays_one():
    after = runs_of_the_starts(two_modes, DATA)
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupting(two_modes, KeyboardInterrupt(), after), DATA)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_there_where_they_are_switched_off(mode):
    expected = numbers(quick(two_modes, DATA))
    with mode():
        assert numbers(quick(two_modes, DATA)) == expected


# ------------------------------------------------------------------------------------ checkpoints


def broken_off(path, monkeypatch, saves, *args, **options):
    """A fit that dies after so many checkpoints."""
    left = [saves]
    save = fit_module.save

    def dying(search, to):
        save(search, to)
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "save", dying)
        with pytest.raises(Stopped):
            quick(*args, checkpoint=path, **options)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_fit_that_was_killed_goes_on_to_the_same_numbers(saves, tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    broken_off(path, monkeypatch, saves, two_modes, DATA)
    again = quick(two_modes, DATA, checkpoint=str(path))
    whole = quick(two_modes, DATA)
    assert numbers(again) == numbers(whole)
    ended = quick(two_modes, DATA, checkpoint=path)  # at once, from its end
    assert numbers(ended) == numbers(whole)
    assert len(again.search.elbos) > 20 * saves
    assert str(again.summary()).split("seconds")[0] == str(whole.summary()).split("seconds")[0]
    assert [each.name for each in tmp_path.iterdir()] == ["fit.pt"]


def test_an_interrupted_fit_goes_on_from_its_last_checkpoint(tmp_path):
    path = tmp_path / "fit.pt"
    after = runs_of_the_starts(two_modes, DATA) + 70
    first = quick(Interrupting(two_modes, KeyboardInterrupt(), after), DATA, checkpoint=path)
    assert first.search.stopped == "interrupted"
    again = quick(two_modes, DATA, checkpoint=path)
    assert again.search.stopped != "interrupted"
    assert numbers(again) == numbers(quick(two_modes, DATA))


def same_prior(distance):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.StudentT(4.0, x.abs(), 0.5), obs=distance)


def other_prior(distance):
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)


@pytest.mark.parametrize(
    ("model", "data", "options", "match"),
    [
        (two_modes, torch.tensor(3.001), {}, "same log density"),
        (same_prior, DATA, {}, "same log density"),
        (other_prior, DATA, {}, "same starts"),
        (two_modes, DATA, {"seed": 1}, "same starts"),
        (two_modes, DATA, {"num_starts": 40}, "same starts"),
        (two_modes, DATA, {"num_components": 3}, "same num_components"),
        (two_modes, DATA, {"max_evaluations": 6000}, "same max_evaluations"),
        (two_modes, DATA, {"covariance": "diagonal"}, "same covariance"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(model, data, options, match, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "of_two_modes.pt"
    if not path.exists():
        quick(two_modes, DATA, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=match):
        quick(model, data, checkpoint=path, **options)
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------- executors


@pytest.fixture(scope="module")
def alone():
    """What one worker finds."""
    with ThreadPoolExecutor(1) as pool:
        return numbers(quick(two_modes, DATA, max_evaluations=2000, executor=pool))


def test_threads_find_the_same(alone):
    with ThreadPoolExecutor(4) as pool:
        assert numbers(quick(two_modes, DATA, max_evaluations=2000, executor=pool)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_find_the_same(alone, workers):
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        assert numbers(quick(two_modes, DATA, max_evaluations=2000, executor=pool)) == alone


def test_dask_finds_the_same(alone):
    import distributed

    with (
        distributed.LocalCluster(2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as pool,
    ):
        assert numbers(quick(two_modes, DATA, max_evaluations=2000, executor=pool)) == alone


def test_a_worker_that_dies_is_told():
    class Dying(ThreadPoolExecutor):
        tasks = 0

        def submit(self, function, *args):
            Dying.tasks += 1
            return super().submit(function if Dying.tasks < 20 else self.die, *args)

        def die(self, *args):
            raise OSError("out of memory")

    with Dying(2) as pool:
        with pytest.raises(RuntimeError, match=r"OSError for chunk \d+, points .*out of memory"):
            quick(two_modes, DATA, executor=pool)


def test_a_model_that_raises_in_a_worker_harms_no_other_point():
    def picky(distance):
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        if bool((torch.as_tensor(x) > 5.0).any()):
            raise RuntimeError("x is too large for the solver")
        pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)

    with ThreadPoolExecutor(2) as pool:
        result = quick(picky, DATA, executor=pool)
        summary = result.summary()
    assert [mode.weight for mode in result.modes] == pytest.approx([0.5, 0.5], abs=0.02)
    assert summary.failed > 0
    assert "RuntimeError: x is too large for the solver" in " ".join(str(summary).split())


def test_an_executor_that_was_closed_is_told_and_the_summary_there_none_the_less():
    with ThreadPoolExecutor(1) as pool:
        result = quick(two_modes, DATA, executor=pool)
    with pytest.warns(UserWarning, match="evaluated in this process from now on"):
        summary = result.summary()
    assert summary.passed_checks
    assert result.summary(100).num_samples == 100


# ------------------------------------------------------------------------------------- the bar


def test_the_bar_shows_components_the_bound_and_evaluations(capsys):
    result = quick(two_modes, DATA, progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.split("\r")[-1]
    assert re.search(r"K=\d+", last)
    assert re.search(r"ELBO=-\d+\.\d\d", last)
    assert f"{result.search.evaluations.count}/5000" in last.replace("evaluations", "")


def test_without_the_bar_it_is_silent(capsys):
    quick(two_modes, DATA, progress=False).summary()
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")
