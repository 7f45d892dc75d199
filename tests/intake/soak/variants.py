"""Intake as it must not be, made of the real sensor: the checker has to catch each of them.

`naive` deletes what it received in the tick that asks for the runs. `racy` gives its runs no key and
deletes in the next tick whatever it received in this one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from capstone_dagster.intake.runs import JOB_NAME
from capstone_dagster.intake.sensor import SENSOR_NAME, upload_sensor
from capstone_dagster.services import Services

VARIABLE = "SOAK_VARIANT"
REAL, NAIVE, RACY = "real", "naive", "racy"


def sensor_of_variant(variant: str) -> dg.SensorDefinition:
    """The real sensor, or a wrong one around it."""
    return {REAL: upload_sensor, NAIVE: naive_sensor, RACY: racy_sensor}[variant]


@dg.sensor(
    name=SENSOR_NAME,
    job_name=JOB_NAME,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def naive_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult:
    with _listening(services) as received:
        result = _evaluate_real(context)
    _delete(services, received)
    return result


_received_before: list[str] = []


@dg.sensor(
    name=SENSOR_NAME,
    job_name=JOB_NAME,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def racy_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    _delete(services, _received_before)
    with _listening(services) as received:
        result = _evaluate_real(context)
    _received_before[:] = received
    unkeyed = [request.with_replaced_attrs(run_key=None) for request in result.run_requests or []]
    return result._replace(run_requests=unkeyed or None)


def _evaluate_real(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    result = upload_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


@contextmanager
def _listening(services: Services) -> Iterator[list[str]]:
    """Collect the receipts of everything that is received meanwhile."""
    receipts: list[str] = []
    sqs: Any = services.sqs
    receive = sqs.receive_message

    def receive_message(**call: Any) -> Any:
        answer = receive(**call)
        receipts.extend(message["ReceiptHandle"] for message in answer.get("Messages", []))
        return answer

    sqs.receive_message = receive_message
    try:
        yield receipts
    finally:
        sqs.receive_message = receive


def _delete(services: Services, receipts: list[str]) -> None:
    url = services.settings.required("queue_url")
    for start in range(0, len(receipts), 10):
        entries = [
            {"Id": str(at), "ReceiptHandle": receipt}
            for at, receipt in enumerate(receipts[start : start + 10])
        ]
        services.sqs.delete_message_batch(QueueUrl=url, Entries=entries)  # type: ignore[arg-type]
