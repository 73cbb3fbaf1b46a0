"""The benchmark: this union and its peers, side by side in one run. `scripts/bench` starts it."""
