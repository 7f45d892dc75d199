"""What Dagster's pages show of the results: metadata, pictures, tables."""
