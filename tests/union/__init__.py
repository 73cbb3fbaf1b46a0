"""What the merged tree does, by subject."""
