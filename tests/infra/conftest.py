"""The six stacks, deployed once to each emulator."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from capstone_dagster.local import aws
from capstone_dagster.local.aws import client, ministack_server
from tests.infra.stacks import (
    NOT_ON,
    ORDER,
    deploy,
    outputs,
    template,
    without,
    without_metric_math,
    without_optional_elements,
)
from tests.support.moto import moto_server

# A host name, so that everything behind the condition exists too.
HOST, BROWSE_HOST = "dagster.example.com", "events.example.com"
APPLICATION = {"ImageTag": "v1", "Model": "yolo11n.pt", "Labels": "person"}
SERVICES = (
    *("s3", "sqs", "sns", "logs", "batch", "sts", "cloudformation", "iam", "ec2", "ecs", "ecr", "rds"),
    *("secretsmanager", "cognito-idp", "elasticloadbalancing", "acm", "monitoring"),
)


@dataclass(frozen=True)
class Deployed:
    """An emulator with the stacks in it."""

    name: str
    endpoint_url: str

    def client(self, service: str) -> Any:
        return client(service, self.endpoint_url)

    def output(self, stack: str, key: str) -> str:
        return outputs(self.endpoint_url, stack)[key]


@pytest.fixture(scope="session")
def on_ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Has queue and bucket policies, working notifications, PostgreSQL's settings, secrets and Cognito."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aws, "SERVICES", SERVICES)
        with ministack_server(tmp_path_factory.mktemp("infra")) as emulator:
            url = emulator.endpoint_url
            for name in ORDER:
                body, parameters = template(name), dict[str, str]()
                if name == "network":
                    # Without NAT gateways it takes no new VPC, but an existing one.
                    parameters = _existing_network(url)
                if name == "compute":
                    # Nothing is left of it; what others import is.
                    body = {"Resources": {"Nothing": {"Type": "AWS::CloudFormation::WaitConditionHandle"}}}
                    body |= _exports(
                        {"capstone-gpu-queue": "capstone-gpu", "capstone-cpu-queue": "capstone-cpu"}
                    )
                else:
                    body = without(body, NOT_ON["ministack"])
                if name == "data":
                    parameters = {"ReadReplica": "true", "AlertEmail": "operator@example.com"}
                    parameters["BrowseHostName"] = BROWSE_HOST
                if name == "application":
                    parameters = _application(url)
                if name == "observability":
                    body = without_metric_math(body)
                    parameters = {"LoadBalancer": outputs(url, "application")["LoadBalancerFullName"]}
                deploy(url, name, body, parameters)
            yield Deployed("ministack", url)


# Not for the whole session: what moto knows belongs to the process, and the servers of other files clear it.
@pytest.fixture(scope="module")
def on_moto() -> Iterator[Deployed]:
    """Has the network with its NAT gateway, and AWS Batch. Here nobody gave a host name, as at first."""
    with moto_server() as url:
        iam = client("iam", url)
        # In AWS the role comes with the service.
        role = iam.create_role(RoleName="AWSServiceRoleForBatch", AssumeRolePolicyDocument="{}")["Role"][
            "Arn"
        ]
        for name in ORDER:
            body = without_optional_elements(without(template(name), NOT_ON["moto"]))
            if name == "data":
                body["Outputs"]["DatabaseHost"]["Value"] = "database.example"
                body["Outputs"]["DatabasePort"]["Value"] = "5432"
            for resource in body["Resources"].values():
                if resource["Type"] == "AWS::Batch::ComputeEnvironment":
                    resource["Properties"]["ServiceRole"] = role
            deploy(url, name, body, APPLICATION if name == "application" else {})
        yield Deployed("moto", url)


@pytest.fixture(params=["ministack", "moto"])
def deployed(request: pytest.FixtureRequest) -> Deployed:
    """Each emulator in turn, for what both have."""
    found: Deployed = request.getfixturevalue(f"on_{request.param}")
    return found


def _application(endpoint_url: str) -> dict[str, str]:
    certificate = client("acm", endpoint_url).request_certificate(DomainName=HOST)["CertificateArn"]
    return {**APPLICATION, "HostName": HOST, "BrowseHostName": BROWSE_HOST, "CertificateArn": certificate}


def _existing_network(endpoint_url: str) -> dict[str, str]:
    ec2 = client("ec2", endpoint_url)
    vpc = ec2.create_vpc(CidrBlock="10.40.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.40.{number}.0/24")["Subnet"]["SubnetId"]
        for number in range(4)
    ]
    return {
        "VpcId": vpc,
        "PublicSubnetIds": ",".join(subnets[:2]),
        "PrivateSubnetIds": ",".join(subnets[2:]),
    }


def _exports(values: dict[str, str]) -> dict[str, Any]:
    named = {f"Output{number}": item for number, item in enumerate(values.items())}
    return {
        "Outputs": {key: {"Value": value, "Export": {"Name": name}} for key, (name, value) in named.items()}
    }
