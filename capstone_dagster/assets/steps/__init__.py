"""What ops do: plain functions from an upload to published events."""
