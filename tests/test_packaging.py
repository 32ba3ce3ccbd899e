"""The house: what is installed, what an import costs, and who may know whom."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pnp_lofi

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("operators", "priors", "recipes")
HEAVY = {"astropy", "finufft", "h5py", "matplotlib", "scipy", "skimage", "sklearn", "torchkbnufft", "typer"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(*folders: str) -> list[Path]:
    """Python files of the package, each once: the symlinks are not followed."""
    found = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    assert found
    return found


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or in a function, as absolute names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import; write `from pnp_lofi...`"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_of(statement: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_every_package_is_listed():
    """A folder that `packages` does not name would vanish from the wheel without a word."""
    inside = [path.parent for path in (ROOT / "pnp_lofi").rglob("__init__.py")]
    folders = {str(path.relative_to(ROOT)).replace(os.sep, ".") for path in inside}
    folders |= {f"pnp_lofi.{name}" for name in SUBPACKAGES}
    at_root = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"pnp_lofi", "benchmarks", "tests"}
    assert at_root == set(SUBPACKAGES)  # benchmarks and tests are run from the root and not installed
    settings = project()["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(folders)
    expected = {"pnp_lofi": "pnp_lofi"} | {f"pnp_lofi.{name}": name for name in SUBPACKAGES}
    assert settings["package-dir"] == expected


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_symlinks_are_relative(name):
    link = ROOT / "pnp_lofi" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


def test_every_data_file_is_packaged():
    patterns = project()["tool"]["setuptools"]["package-data"]["pnp_lofi"]
    home = ROOT / "pnp_lofi"
    packaged = {path for pattern in patterns for path in home.glob(pattern)}
    data = {path for path in home.iterdir() if path.is_file() and path.suffix != ".py"}
    for folder in ("data", "weights"):
        data |= {path for path in (home / folder).iterdir() if path.suffix not in (".part", ".state")}
    assert data <= packaged, f"not in package-data: {sorted(str(p) for p in data - packaged)}"


def test_an_import_is_light():
    """Beyond what deepinv alone brings in."""
    before = modules_of("import deepinv")
    after = modules_of("import pnp_lofi, pnp_lofi.operators, pnp_lofi.priors, pnp_lofi.recipes")
    assert "pnp_lofi" in after
    assert not (after - before) & HEAVY


LIGHT = ["__main__", "entry", "files", "options", "radio_commands", "version"]


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_starts_light(module):
    """`pnp-lofi --help` needs neither torch nor deepinv: they are imported by the commands."""
    source = ast.parse((ROOT / "pnp_lofi" / f"{module}.py").read_text())
    top = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
    names -= {f"pnp_lofi.{name}" for name in LIGHT}
    assert not {name.split(".")[0] for name in names} & ({"torch", "deepinv", "pnp_lofi"} | HEAVY - {"typer"})


@pytest.mark.parametrize("name", ["pnp_lofi", "pnp_lofi.operators", "pnp_lofi.priors"])
def test_export_lists_are_sorted_and_complete(name):
    module = importlib.import_module(name)
    path = Path(str(module.__file__))
    public = {
        alias.asname or alias.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(module.__all__) == public
    assert len(module.__all__) == len(public)
    # as ruff sorts it (RUF022): constants, then classes, then functions
    kinds = {n: 0 if n.isupper() else 1 if n[0].isupper() else 2 for n in public}
    assert module.__all__ == sorted(public, key=lambda n: (kinds[n], n))
    assert all(hasattr(module, n) for n in module.__all__)


def test_every_operator_and_prior_is_exported():
    for folder in ("operators", "priors"):
        files = {path.stem for path in sources(folder)} - {"__init__"}
        listed = {name.split(".")[2] for name in imported(ROOT / folder / "__init__.py") if name.count(".") >= 2}
        assert files == listed


def test_the_version_lives_in_one_place():
    assert "version" not in project()["project"]
    assert project()["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "pnp_lofi.version.__version__"
    places = [
        path for path in sources("pnp_lofi", *SUBPACKAGES) if re.search(r"^__version__\s*=", path.read_text(), re.M)
    ]
    assert places == [ROOT / "pnp_lofi" / "version.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", pnp_lofi.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.M)
    assert newest is not None and newest[1] == pnp_lofi.__version__


def test_who_knows_whom():
    for path in sources("pnp_lofi", *SUBPACKAGES, "tests"):
        names = imported(path)
        foreign = {n for n in names if n.split(".")[0] in SUBPACKAGES}
        assert not foreign, f"{path} imports {foreign}; write pnp_lofi.<folder>"
    for path in sources("pnp_lofi", "operators", "priors"):
        recipes = {n for n in imported(path) if n.startswith("pnp_lofi.recipes")}
        assert not recipes, f"{path} imports {recipes}; nothing imports a recipe"
    for path in sources("operators"):
        assert not any(n.startswith(("pnp_lofi.priors", "pnp_lofi.admm")) for n in imported(path)), path
    for path in sources("priors"):
        assert not any(n.startswith(("pnp_lofi.operators", "pnp_lofi.admm")) for n in imported(path)), path


def test_solvers_know_only_the_contracts():
    """A solver takes any LinearPhysics and any Denoiser: it names none of ours."""
    for name in ("admm", "cg", "noise", "parameters"):
        names = imported(ROOT / "pnp_lofi" / f"{name}.py")
        assert not any(n.startswith(("pnp_lofi.operators", "pnp_lofi.priors", "pnp_lofi.lofi")) for n in names), name


def test_the_scan_sees_an_import(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from pnp_lofi import operators\n")
    assert "pnp_lofi.operators" in imported(tmp_path / "a.py")
    (tmp_path / "b.py").write_text("from . import x\n")
    with pytest.raises(AssertionError, match="relative import"):
        imported(tmp_path / "b.py")


def test_no_gpl_dependency_and_extras_exist():
    settings = project()["project"]
    everything = settings["dependencies"] + [d for extra in settings["optional-dependencies"].values() for d in extra]
    assert not [d for d in everything if re.match(r"(astra|torch[-_]radon|casa)", d)]
    named = set(
        re.findall(r"pnp[_-]lofi\[([\w,]+)\]", " ".join(p.read_text() for p in sources("pnp_lofi", *SUBPACKAGES)))
    )
    assert {part for name in named for part in name.split(",")} <= settings["optional-dependencies"].keys()
