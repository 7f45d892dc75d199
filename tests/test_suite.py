"""What the suite itself rests on."""

import os

import pytest


def test_a_worker_takes_a_group_of_tests_whole(request: pytest.FixtureRequest) -> None:
    """Live tests, and those of one file, run one after the other in one worker: by the name after the `@`."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests run in one process: there is nothing to distribute")
    assert request.node.nodeid.endswith("@tests/test_suite.py")
