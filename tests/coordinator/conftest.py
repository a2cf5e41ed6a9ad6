"""Coordinators of two ranks that are scripted."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_fakes import Machine

from ddp_bp.coordinator.lifecycle import State


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A coordinator before its ranks have come."""
    return Machine(tmp_path, total_steps=100)


@pytest.fixture
def training(machine: Machine) -> Machine:
    """One whose two ranks train."""
    machine.join_all()
    assert machine.coordinator.state is State.TRAINING
    return machine
