"""Three hosts for all tests of this folder."""

from __future__ import annotations

import pytest
from hosts import Hosts, why_not


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory):
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def partition_seconds(request: pytest.FixtureRequest) -> float:
    """How long a link is cut that is mended again."""
    seconds: float = request.config.getoption("--partition-seconds")
    return seconds
