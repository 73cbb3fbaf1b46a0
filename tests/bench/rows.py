"""All rows, in the order of the report."""

from __future__ import annotations

from tests.bench import rows_names
from tests.bench.model import Scenario

SCENARIOS: tuple[Scenario, ...] = (*rows_names.SCENARIOS,)
