"""The script of docs/scaling.md, alone and by torchrun, on a small observation."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.observation import Observation, write_observation
from pnp_lofi.operators import NormalEquations
from pnp_lofi.radio_chunks import measurement_chunks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
SHAPE = (64, 48)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_script(tmp_path, processes):
    """It gives what one process does with the whole image."""
    script = re.search(r"```python\n(\"\"\"torchrun.*?)```", PAGE.read_text(), re.S)[1]
    assert "(8192, 8192)" in script
    (tmp_path / "image.py").write_text(
        "import torch\ntorch.set_num_threads(1)\n" + script.replace("8192, 8192", "64, 48")
        .replace("nonneg=True", "nonneg=True, sigma_n=0.1, max_iter=4, cg_tol=1e-6, cg_max_iter=60")
    )  # fmt: skip
    rng = np.random.default_rng(0)
    uvw = rng.normal(scale=500, size=(4000, 2))
    vis = 1 + 0.1 * (rng.normal(size=4000) + 1j * rng.normal(size=4000))
    obs = Observation(uvw, 1.4e9, vis, np.ones(4000), np.zeros(4000, bool), cell=4.0)
    write_observation(tmp_path / "OBS.h5", obs)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "image.py", "OBS.h5", "image.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    op, y = NormalEquations.from_chunks(SHAPE, measurement_chunks(tmp_path / "OBS.h5", SHAPE)).measurement()
    options = {"nonneg": True, "sigma_n": 0.1, "max_iter": 4, "cg_tol": 1e-6, "cg_max_iter": 60}
    expected = ADMM(op, LoFiPrior("radio"), progress=False, **options)(y)[0, 0]
    found = torch.load(tmp_path / "image.pt")
    assert float((found - expected).norm() / expected.norm()) < 1e-4
