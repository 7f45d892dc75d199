"""A Dagster project: uploaded videos become persisted events, exactly once, where operators can see why."""
