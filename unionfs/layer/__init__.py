"""What one directory tree on disk is: access beneath its root, its marks, its file handles."""
