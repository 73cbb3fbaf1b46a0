"""``python -m unionfs``: the same as the command ``unionfs``."""

from unionfs.cli import program

program()
