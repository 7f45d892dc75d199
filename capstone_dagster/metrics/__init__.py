"""Metrics of the catalog: emitted by workers and services, and observed from outside by `vital_signs`."""
