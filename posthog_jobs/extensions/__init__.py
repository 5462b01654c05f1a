"""What `meta` offers besides jobs, one file each."""
