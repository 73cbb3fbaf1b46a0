"""One layer: its formats and calls."""
