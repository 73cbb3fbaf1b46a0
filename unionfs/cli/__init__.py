"""What a person or a program types: parsed, carried out, answered with text and exit status."""

from unionfs.cli.main import main, program

__all__ = ["main", "program"]
