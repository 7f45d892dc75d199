"""Capstone: uploaded videos become persisted events, exactly once; this package is the Dagster code location."""
