"""Dagster runs as AWS Batch jobs: a run launcher, a sensor that watches jobs until they start, a fake Batch.

Knows nothing of the project around it: any Dagster deployment can use it. `docs/batch_gpu.md` is its manual.
"""
