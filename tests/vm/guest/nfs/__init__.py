"""Tests of the kernel's NFS server and client, over loopback: `tests/vm/test_nfs.py` runs them."""
