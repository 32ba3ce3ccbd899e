"""The documents do what they say: their Python blocks run, their links lead somewhere, their commands exist."""

import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pnp_lofi.priors.lofi as prior_module
from pnp_lofi import LoFi
from pnp_lofi.__main__ import app
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.observation import read_observation
from pnp_lofi.radio import measurement

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "docs/ct.md",
    "docs/data.md",
    "docs/guide.md",
    "docs/lensing.md",
    "docs/network.md",
    "docs/obs_h5.md",
    "docs/operators.md",
    "docs/radio.md",
    "docs/scaling.md",
    "docs/solvers.md",
    "docs/uncertainty.md",
    "README.md",
]
DOCUMENTS = sorted({*PAGES, "docs/conventions.md", "CONTRIBUTING.md", "CHANGELOG.md"})
BLOCK = re.compile(r"(?P<skip><!-- not run -->\s*)?^```python\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(text: str) -> list[tuple[int, str]]:
    """The line and code of each Python block that is not marked <!-- not run -->."""
    found = [(text[: m.start("code")].count("\n"), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]
    assert found
    return found


def run(text: str, name: str) -> dict[str, object]:
    """Run the blocks of a page one after the other in one namespace, with the page's own line numbers."""
    space: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(text):
        exec(compile("\n" * line + code, name, "exec"), space)
    return space


@pytest.fixture
def small_priors(monkeypatch, tiny):
    """The shipped names mean a tiny network here: what they are worth is measured elsewhere."""
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.mul_(0.5)
    shipped: dict[str, LoFi] = {"natural": tiny, "radio": tiny}

    def load(name):
        return (shipped[name], {}) if name in shipped else load_checkpoint(name)

    monkeypatch.setattr(prior_module, "load_checkpoint", load)


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch, small_priors):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = run((ROOT / page).read_text(), page)
    if page == "README.md":
        assert bool(torch.isfinite(space["x"]).all())
    if page == "docs/guide.md":
        assert (tmp_path / "OUT.fits").exists() and (tmp_path / "mine.safetensors").exists()
        assert bool(torch.isfinite(space["x"]).all())


class FakeTable:
    """casacore.tables.table with one field, one window of 3 channels, 4 correlations and a source off the centre."""

    l, m, cell = 3, 2, 2.0 / 3600 * np.pi / 180  # pixels to the East and to the North; pixel [rad]

    def __init__(self, name: str) -> None:
        self.name = name

    def query(self, text: str) -> "FakeTable":
        return self

    def getcell(self, column: str, row: int) -> np.ndarray:
        return {"CHAN_FREQ": np.array([1.0e9, 1.1e9, 1.2e9]), "PHASE_DIR": np.radians([[-10.0, 30.0]])}[column]

    def getcol(self, column: str) -> np.ndarray:
        uvw = np.random.default_rng(0).normal(scale=3000, size=(200, 3))
        wavelength = 299792458.0 / self.getcell("CHAN_FREQ", 0)
        along = (uvw[:, :2] @ [self.l * self.cell, self.m * self.cell])[:, None] / wavelength
        vis = np.exp(2j * np.pi * along)[..., None] * np.array([1.5, 0.2, 0.3, 0.5])  # I = (XX + YY) / 2 = 1 Jy
        flag = np.zeros(vis.shape, bool)
        flag[7, 1, 3], vis[7, 1, 3] = True, np.nan
        return {"UVW": uvw, "CORRECTED_DATA": vis, "FLAG": flag, "FLAG_ROW": np.arange(200) == 5,
                "WEIGHT": np.full((200, 4), 2.0)}[column]  # fmt: skip


def test_measurement_set_snippet(tmp_path, monkeypatch):
    """It puts a source where it is, 3 pixels East and 2 North of the phase centre, with its flux."""
    monkeypatch.chdir(tmp_path)
    fake = types.ModuleType("casacore.tables")
    fake.table = FakeTable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "casacore", types.ModuleType("casacore"))
    monkeypatch.setitem(sys.modules, "casacore.tables", fake)
    text = (ROOT / "docs/guide.md").read_text()
    (snippet,) = (m["code"] for m in BLOCK.finditer(text) if m["skip"])
    exec(compile(snippet, "snippet", "exec"), {})
    obs = read_observation("OBS.h5")
    assert len(obs.vis) == 600 and int(obs.flag.sum()) == 3 + 1
    assert obs.phase_centre == pytest.approx((350, 30))
    assert obs.weight[0] == 4 and not obs.absolute_weights
    op, y = measurement(obs, (16, 16))
    dirty = op.dirty(y)[0, 0]
    assert divmod(int(dirty.argmax()), 16) == (8 + 2, 8 - 3)
    assert float(dirty.max()) == pytest.approx(1, abs=1e-3)


def test_the_runner_sees_errors_and_marks():
    page = "text\n\n<!-- not run -->\n```python\nraise KeyError\n```\n\n```python\na = 1\n```\n\n"
    page += "```python\nb = a / 0\n```\n"
    assert [code for _, code in blocks(page)] == ["a = 1\n", "b = a / 0\n"]
    with pytest.raises(ZeroDivisionError) as error:
        run(page, "page")
    assert page.splitlines()[error.traceback[-1].lineno] == "b = a / 0"


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):  # pictures as well
        if not target.startswith(("http", "#", "mailto")):
            assert ((ROOT / page).parent / target.split("#")[0]).exists(), f"{page} links to {target}"


def shell_lines(text: str) -> list[str]:
    lines = re.findall(r"^ {4}(pnp-lofi .*)$|`(pnp-lofi [^`]+)`", text, re.M)
    return [(a or b).split("  #")[0].split(" && ")[0] for a, b in lines]


@pytest.mark.parametrize("page", DOCUMENTS)
def test_commands_exist(page):
    """Each `pnp-lofi ...` of a page names a command that there is and options that it takes."""
    for line in shell_lines((ROOT / page).read_text()):
        words = shlex.split(line.split("   ")[0])[1:]
        names = [w for w in words[:2] if re.fullmatch(r"[a-z]+", w)]
        names = names[:2] if names[:1] in (["solve"], ["simulate"]) else names[:1]
        shown = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [*names, "--help"])
        assert shown.exit_code == 0, f"{page}: {line}"
        for option in (w for w in words if w.startswith("-")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.output), f"{page}: {line}: {option}"


def test_the_command_check_sees_commands():
    assert len(shell_lines((ROOT / "docs/guide.md").read_text())) >= 7


@pytest.mark.parametrize("page", DOCUMENTS)
def test_no_path_of_a_machine(page):
    text = (ROOT / page).read_text()
    assert not re.search(r"/(?:work|home|root|tmp|Users)/", text)
