"""unionfs: a copy-on-write union filesystem with overlayfs's behaviour and on-disk format."""

__version__ = "0.1.0"
