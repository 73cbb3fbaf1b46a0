"""All rows, in the order of the report."""

from __future__ import annotations

from tests.bench import (
    rows_daemon,
    rows_data,
    rows_engines,
    rows_names,
    rows_snapshots,
    rows_trees,
)
from tests.bench.model import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *rows_names.SCENARIOS,
    *rows_trees.SCENARIOS,
    *rows_data.SCENARIOS,
    *rows_daemon.SCENARIOS,
    *rows_snapshots.SCENARIOS,
    *rows_engines.SCENARIOS,
)
