"""The cases of every operation, by its name."""

from __future__ import annotations

import engine_cases
import engine_cases_arrays
import engine_cases_losses
import engine_cases_sequence
import engine_cases_spatial
from engine_cases import Case

CASES: dict[str, Case] = {
    **engine_cases.CASES,
    **engine_cases_arrays.CASES,
    **engine_cases_losses.CASES,
    **engine_cases_sequence.CASES,
    **engine_cases_spatial.CASES,
}
