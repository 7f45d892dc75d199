"""A Dagster project: uploaded videos become persisted events, exactly once, where operators can see why."""

import warnings

# `dagster.yaml` names the handler of our log lines. Dagster calls that beta in each process that loads the
# file, on standard error, where a container's lines are JSON.
warnings.filterwarnings("ignore", message="Handling yaml-defined logging configuration")
