"""The daemon killed in the middle of a change."""
