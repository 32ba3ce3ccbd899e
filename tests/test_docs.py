"""The documents do what they say: their Python blocks run, their links lead somewhere, their commands exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pnp_lofi.priors.lofi as prior_module
from pnp_lofi import LoFi
from pnp_lofi.__main__ import RECIPES, app
from pnp_lofi.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "docs/ct.md",
    "docs/data.md",
    "docs/generative.md",
    "docs/guide.md",
    "docs/lensing.md",
    "docs/ldct.md",
    "docs/massmap.md",
    "docs/network.md",
    "docs/obs_h5.md",
    "docs/operators.md",
    "docs/radio.md",
    "docs/scaling.md",
    "docs/selfcal.md",
    "docs/solvers.md",
    "docs/uncertainty.md",
    "docs/visibilities.md",
    "docs/zoom.md",
    "README.md",
]
DOCUMENTS = sorted(
    {
        *PAGES,
        "docs/conventions.md",
        "docs/denoise.md",
        "docs/priors.md",
        "docs/radio_results.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    }
)
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
        recipe = names[:1] + words[1:2] if words[0] in ("train", "test", "apply") and {*words[1:2]} & {*RECIPES} else []
        called = import_module(f"pnp_lofi.recipes.{recipe[1]}").app if recipe else app
        shown = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}).invoke(called, [*names, "--help"])
        assert shown.exit_code == 0, f"{page}: {line}"
        for option in (w for w in words if w.startswith("-")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.output), f"{page}: {line}: {option}"


def test_the_command_check_sees_commands():
    assert len(shell_lines((ROOT / "docs/guide.md").read_text())) >= 7


@pytest.mark.parametrize("page", DOCUMENTS)
def test_no_path_of_a_machine(page):
    text = (ROOT / page).read_text()
    assert not re.search(r"/(?:work|home|root|tmp|Users)/", text)
