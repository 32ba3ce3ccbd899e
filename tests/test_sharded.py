"""Images that several processes share: every job of tests/sharded_jobs.py alone, in 2 and in 4 processes."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from sharded_jobs import JOBS, SHAPE, one_process

from pnp_lofi.strips import Strips


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a report of each job and process, empty where all is well."""
    folder = tmp_path_factory.mktemp("processes")
    with contextlib.suppress(mp.ProcessRaisedException, mp.ProcessExitedException):  # the reports tell
        mp.spawn(one_process, (request.param, str(folder)), nprocs=request.param)
    return folder, request.param


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_processes(job: Callable[[Strips], None], reports: tuple[Path, int]) -> None:
    folder, world = reports
    found = [folder / f"{job.__name__}.{rank}" for rank in range(world)]
    failed = [path.read_text() for path in found if path.is_file() and path.stat().st_size]
    assert not failed, "\n".join(failed)
    assert all(path.is_file() for path in found), "an earlier job failed"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_alone(job: Callable[[Strips], None]) -> None:
    """Without a process group the one strip is the image."""
    job(Strips(SHAPE))
