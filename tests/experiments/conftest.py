"""What tests of several experiments share."""

import pytest
from dask.distributed import LocalCluster


@pytest.fixture(scope="module")
def cluster():
    """The address of one in this process: its workers need no second start of the libraries.

    Its dashboard takes a free port: without an address dask takes 8787, and tests that run beside
    each other meet there.
    """
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as it:
        yield it.scheduler_address
