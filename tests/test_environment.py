"""The four places that say what is installed agree: pyproject.toml, constraints.txt, environment.yml, CI. Offline."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def direct_dependencies():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    requirements = map(Requirement, lines)
    return [r for r in requirements if canonicalize_name(r.name) != canonicalize_name(PROJECT["name"])]


def constraint_lines(file="constraints.txt"):
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line]


def constraints(file="constraints.txt"):
    return {canonicalize_name(r.name): r for r in map(Requirement, constraint_lines(file))}


def pinned_version(requirement):
    [pin] = requirement.specifier
    assert pin.operator == "==", f"{requirement}: a constraint is one version"
    return pin.version


def conda_specs():
    return [d for d in CONDA["dependencies"] if isinstance(d, str)]


def conda_pip_list():
    [pip] = [d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict)]
    return pip


def test_environment_yml_has_the_shape_that_conda_reads():
    assert set(CONDA) <= {"name", "channels", "dependencies", "variables", "platforms", "category"}, "no prefix"
    assert all(isinstance(channel, str) for channel in CONDA["channels"])
    maps = [d for d in CONDA["dependencies"] if not isinstance(d, str)]
    assert [list(m) for m in maps] == [["pip"]]
    assert "pip" in conda_specs(), "conda warns unless pip itself is listed"


def test_conda_specs_parse_and_offer_a_python_that_the_package_accepts():
    specs = {spec.name.normalized: spec for spec in map(MatchSpec, conda_specs())}
    assert set(specs) == {"python", "pip"}, "everything else is listed in pyproject.toml, once"
    [python] = re.findall(r"^python=(\d+\.\d+)$", "\n".join(conda_specs()), flags=re.M)
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_this_package_with_extras_that_exist():
    [line] = conda_pip_list()
    editable = re.fullmatch(r"-e \.\[([\w,-]+)\]", line)
    assert editable, f"{line!r} is not this folder"
    asked = set(editable.group(1).split(","))
    assert asked <= set(EXTRAS) and {"notebook", "test"} <= asked


def test_each_extra_that_names_this_package_names_an_extra_of_it():
    for requirement in (Requirement(line) for extra in EXTRAS.values() for line in extra):
        if canonicalize_name(requirement.name) == canonicalize_name(PROJECT["name"]):
            assert requirement.extras and requirement.extras <= set(EXTRAS)


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_every_direct_dependency_has_a_tested_version_within_its_bound(requirement):
    version = pinned_version(constraints()[canonicalize_name(requirement.name)])
    assert version in requirement.specifier


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["tensorboard"], *EXTRAS["checks"]])
def test_the_oldest_versions_are_the_ones_that_are_claimed(line):
    """Rejects a lower bound that was moved without a run of `.ci/versions oldest`, or that this run never sees."""
    requirement = Requirement(line)
    if canonicalize_name(requirement.name) == canonicalize_name(PROJECT["name"]):
        return
    [claim] = requirement.specifier
    assert pinned_version(constraints("constraints-oldest.txt")[canonicalize_name(requirement.name)]) == claim.version


def test_direct_dependencies_have_a_lower_bound_and_no_upper_one():
    for requirement in direct_dependencies():
        assert [s.operator for s in requirement.specifier] == [">="], f"{requirement} would fight Colab"


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["tensorboard"], *EXTRAS["checks"]])
def test_colab_keeps_what_it_brings(line):
    """Rejects a bound above Colab's versions: an upgrade makes it restart, and its pages do not show widgets 8."""
    requirement, brought = Requirement(line), constraints("constraints-colab.txt")
    assert {"torch", "transformers", "ipywidgets", "ipykernel"} <= set(brought)
    if (there := brought.get(canonicalize_name(requirement.name))) is not None:
        assert pinned_version(there) in requirement.specifier


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt", "constraints-colab.txt"])
def test_constraints_fit_every_build_and_every_package_is_named_once(file):
    lines, found = constraint_lines(file), constraints(file)
    assert len(found) == len(lines)
    assert not [line for line in lines if line.startswith(("-", "/", ".")) or "://" in line or " @ " in line]
    assert not [r for r in found.values() if "+" in pinned_version(r)], "a local build, such as +cpu"
    assert "setuptools" not in found, "pip would apply it to the building of packages, too"


def test_ci_covers_the_oldest_python_and_conda_s():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    versions = job["strategy"]["matrix"]["python-version"]
    assert all(isinstance(v, str) and v in SpecifierSet(PROJECT["requires-python"]) for v in versions)
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert any(f"python={v}" in conda_specs() for v in versions)
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert (ROOT / ".ci/run").is_file()


def test_ci_tries_the_versions_on_the_python_that_the_script_names():
    """Rejects a kind of versions that CI never runs, and another Python than the one that the documents name."""
    script = (ROOT / ".ci/versions").read_text()
    kinds = dict(re.findall(r"^    (\w+)\) python=python(3\.\d+) ", script, flags=re.M))
    rows = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["versions"]["strategy"]["matrix"]
    assert {row["versions"]: row["python-version"] for row in rows["include"]} == kinds
    assert kinds["oldest"] == PROJECT["requires-python"].removeprefix(">=")


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "rlhf_lib").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_file_beside_the_modules_is_shipped():
    """Rejects a script, model or template that only a checkout has: in Colab the course is installed from a wheel."""
    package = ROOT / "rlhf_lib"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlhf_lib"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sorted(files - shipped - set(package.rglob("*.py"))) == []
