"""Programs that container engines ask by a socket: snapshots for containerd, volumes for Docker.

A plugin serves one socket until it is told to end. What it serves is a store's, and outlives it:
mounts have daemons of their own, and a plugin that starts anew finds all as it was.
"""
