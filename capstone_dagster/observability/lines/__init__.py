"""A log line from the moment it is written until it waits on disk."""
