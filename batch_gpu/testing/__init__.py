"""A fake AWS Batch, for tests of the launcher and of what is built on it.

It speaks the service's real HTTP protocol, so that boto3 talks to it through `AWS_ENDPOINT_URL_BATCH` and
`AWS_ENDPOINT_URL_CLOUDWATCH_LOGS` and botocore checks every parameter; and it really executes each
container's command as a process of this machine. What it models of AWS's documented behaviour is listed in
`fake_batch`.

    with fake_batch_server([Queue("gpu", Machines(gpus=1))]) as batch:
        os.environ |= batch.environment
"""

from batch_gpu.testing.clock import FakeClock
from batch_gpu.testing.fake_batch import FakeBatch
from batch_gpu.testing.server import FakeBatchServer, fake_batch_server
from batch_gpu.testing.state import Fault, Machines, Queue, TimeLimit

__all__ = [
    "FakeBatch",
    "FakeBatchServer",
    "FakeClock",
    "Fault",
    "Machines",
    "Queue",
    "TimeLimit",
    "fake_batch_server",
]
