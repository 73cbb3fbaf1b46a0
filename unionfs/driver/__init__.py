"""Storage drivers: snapshots of trees, kept by key, on top of one another."""
