"""A store: snapshots, images and volumes kept by name below one directory."""
