"""The ways to install agree: pyproject.toml, environment.yml and the lock file say the
same.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def pip_arguments(environment: dict[str, Any]) -> list[str]:
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    return pip


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    names = ("requirements.lock", "requirements-edge.lock")
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    pins = (
        line.split(";")[0].strip().split("==")
        for line in lines
        if "==" in line and not line.lstrip().startswith("#")
    )
    return {canonicalize_name(name): version for name, version in pins}


def test_conda_installs_every_extra(pyproject: dict[str, Any], pip_arguments: list[str]) -> None:
    """But for the one that compiles for minutes, which make test-edge installs."""
    [extras] = [
        match[1]
        for argument in pip_arguments
        if (match := re.fullmatch(r"--editable \.\[(.*)\]", argument))
    ]
    assert {*extras.split(","), "edge"} == set(pyproject["project"]["optional-dependencies"])


def test_conda_installs_the_locked_versions_first(pip_arguments: list[str]) -> None:
    assert pip_arguments[0] == "--requirement requirements.lock"


def test_every_direct_dependency_is_locked_at_a_version_that_is_allowed(
    pyproject: dict[str, Any], locked: dict[str, str]
) -> None:
    project = pyproject["project"]
    for text in (
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ):
        wanted = Requirement(text)
        version = locked.get(canonicalize_name(wanted.name))
        assert version, f"{wanted.name} is not in requirements.lock"
        assert wanted.specifier.contains(version), f"{text} does not allow the locked {version}"


def test_python_versions_agree(pyproject: dict[str, Any], environment: dict[str, Any]) -> None:
    [version] = [
        entry.partition("=")[2]
        for entry in environment["dependencies"]
        if isinstance(entry, str) and entry.startswith("python=")
    ]
    assert SpecifierSet(pyproject["project"]["requires-python"]).contains(version)
    assert pyproject["tool"]["mypy"]["python_version"] == version
    assert pyproject["tool"]["ruff"]["target-version"] == "py" + version.replace(".", "")


def test_the_environment_is_named_after_the_command(
    pyproject: dict[str, Any], environment: dict[str, Any]
) -> None:
    assert list(pyproject["project"]["scripts"]) == [environment["name"]]
