"""A course on the storage and networks of containers, on storage of ours: each line is checked."""
