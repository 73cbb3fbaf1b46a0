"""Programs that people run, on trees that people have."""
