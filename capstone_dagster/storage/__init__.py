"""Where things are kept: objects (S3 or local files), raw videos, and events (PostgreSQL)."""
