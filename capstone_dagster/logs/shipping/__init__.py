"""What waits on disk on its way to CloudWatch, and the process that sees a container to its end."""
