"""A command in a root file system of its own: namespaces, devices, a first process."""
