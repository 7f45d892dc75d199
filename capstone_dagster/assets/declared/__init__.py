"""What Dagster sees: assets, checks, jobs and partitions. Their bodies call `steps`."""
