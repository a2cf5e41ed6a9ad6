"""What a release must have: a changelog that knows the version, in the package and where readers look for it."""

from __future__ import annotations

import re
import tomllib
from importlib import resources

from support import REPOSITORY

from ddp_bp import __version__


def test_the_changelog_begins_with_this_version() -> None:
    changelog = resources.files("ddp_bp").joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+)$", changelog, flags=re.MULTILINE)
    assert versions[0] == __version__ and len(set(versions)) == len(versions)
    assert "(ddp_bp/CHANGELOG.md)" in (REPOSITORY / "README.md").read_text()


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    places = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "ddp_bp").rglob("*.py")
        if f'"{__version__}"' in path.read_text()
    ]
    assert places == ["ddp_bp/_version.py"]
