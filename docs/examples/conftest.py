pytest_plugins = ["capstone_dagster.testing"]
