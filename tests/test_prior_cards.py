"""benchmarks.priors in its quick mode: every part, on a tiny network and a DRU-Net, and the tables made of it."""

import json
import sys

import pytest
import torch

from benchmarks import prior_tables, priors
from benchmarks.table import refresh
from pnp_lofi.baselines import Baseline
from pnp_lofi.checkpoint import save_checkpoint
from pnp_lofi.shared import SharedLoFi

SMALL = {"window": 3, "filters": 4, "features": 2, "points": 3, "spacing": 1, "raw": 3, "hidden": (4,)}
ABOUT = {"recipe": "prior", "sigma_range": [1e-4, 0.5], "value_range": [0.0, 1.0], "trained_on": "nothing"}


def test_quick_run_makes_every_card(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pydicom")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "natural-t.safetensors", SharedLoFi(**SMALL), dtype=torch.float16, **ABOUT)
    save_checkpoint(tmp_path / "natural-rgb-t.safetensors", SharedLoFi(3, **SMALL), **ABOUT)
    save_checkpoint(tmp_path / "dru.safetensors", Baseline("DRU-Net"), **ABOUT)
    save_checkpoint(tmp_path / "other.safetensors", SharedLoFi(**SMALL), recipe="ldct")

    def run(*words):
        folders = ["--work", str(tmp_path), "--results", str(tmp_path), "--figures", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["priors", "--quick", *folders, *words])
        priors.main()

    run("--only", "denoise", "cards", "--priors", "natural-t")
    run("--only", "denoise", "cards", "--priors", "dru", "natural-rgb-t")
    run("--only", "recon", "steady", "speed", "--priors", "dru", "natural-t", "natural-rgb-t")
    found = {part: json.loads((tmp_path / f"priors_{part}.json").read_text()) for part in priors.PARTS}
    assert [row["prior"] for row in found["denoise"]["rows"]] == ["noisy", "natural-t", "dru", "natural-rgb-t"]
    sets = {row["prior"]: set(row["sets"]) for row in found["denoise"]["rows"]}
    assert sets["natural-rgb-t"] == {"natural-rgb (procedural)"} and len(sets["dru"]) == len(priors.KINDS)
    assert set(found["recon"]["rows"][1]["problems"]) == {"the same, colour"}
    assert all(1 <= at["at"] <= 10 for row in found["steady"]["rows"] for at in row["problems"].values())
    assert (tmp_path / "prior_natural-t.png").stat().st_size > 1000
    page = "".join(f"<!-- table:priors_{part} -->\n<!-- end -->\n" for part in priors.PARTS)
    text = refresh(page, tmp_path)
    assert text.count("natural-rgb-t") >= 4 and "FFDNet (quoted)" in text and "float16" in text
    with pytest.raises(SystemExit, match="no prior named other"):
        run("--priors", "other")


def test_a_table_of_reconstructions_may_have_an_empty_column():
    """Of a problem that no prior fits."""
    row = {"prior": "a", "problems": {"one": {"psnr": 1.0, "seconds": 2.0}}}
    (sheet,) = prior_tables.recon({"problems": ["one", "two"], "rows": [row], "side": 8})
    assert sheet.rows == [("a", "**1.00 (2.0 s)**", "-")]
