"""Partitions of the assets, a video each, and how many of them one run of a backfill takes."""

import dagster as dg

videos = dg.DynamicPartitionsDefinition(name="videos")

# A run's own cost (a machine's start of minutes, a process's and a model's load of seconds) is spread over so
# many videos. More would save little, and a bad place in Dagster's queue or a lost worker would hold up more.
VIDEOS_PER_RUN = 20

backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=VIDEOS_PER_RUN)
