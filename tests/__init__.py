"""The tests of unionfs: real mounts through the command, compared with the kernel's overlayfs."""
