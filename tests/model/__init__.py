"""Random operations on our mount, on the kernel's and on a plain directory."""
