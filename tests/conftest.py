"""Shared data of the tests: a tiny network, and the folder of real measurements where there is one."""

from pathlib import Path

import pytest
import torch

from pnp_lofi import LoFi

torch.set_num_threads(1)  # the tests are many and small: threads would wait for each other, and for other workers

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Real measurements that are not part of the project: a folder, which holds all of them."""
    if not SHARED.is_dir():
        pytest.skip(f"real data are not here ({SHARED})")
    return SHARED


@pytest.fixture
def tiny() -> LoFi:
    """A LoFi of a few hundred parameters with random weights and irregular offsets."""
    torch.manual_seed(1)
    model = LoFi(rays=3, rings=4, radius=2.7, hidden=(8,), features=5, mixer=(7,))
    with torch.no_grad():
        model.geometry.offsets.add_(0.1 * torch.randn(model.geometry.offsets.shape))
    return model.eval()
