"""What runs in a guest: its first two scripts, and tests that need its kernel."""
