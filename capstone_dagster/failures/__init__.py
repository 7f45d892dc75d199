"""Failures: their classes, the policy of each, and how ended runs are read."""
