"""What the emulators really made of the templates, by describe calls: their word that a stack is complete is
worth nothing, since both leave out in silence what they do not know.

No emulator shows the scaling of the web servers; test_templates.py reads it in the template. Composite
alarms, anomaly detector and saved queries: tests/catalog/test_render_cloudformation.py.
"""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
from capstone_dagster.local.aws import REGION, client
from tests.infra.conftest import APPLICATION, BROWSE_HOST, Deployed
from tests.infra.stacks import NOT_ON, deploy, resources, template, without
from tests.support.waiting import wait_for


def attributes(aws: Deployed, queue: str) -> dict[str, str]:
    sqs = aws.client("sqs")
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return found


def bucket(aws: Deployed, kind: str) -> str:
    names = [each["Name"] for each in aws.client("s3").list_buckets()["Buckets"]]
    [name] = [name for name in names if name.startswith(f"capstone-{kind}-")]
    return str(name)


def containers(aws: Deployed, family: str) -> dict[str, dict[str, Any]]:
    task = aws.client("ecs").describe_task_definition(taskDefinition=family)["taskDefinition"]
    return {each["name"]: each for each in task["containerDefinitions"]}


def test_every_kind_of_resource_is_looked_at_somewhere() -> None:
    """A new kind in the templates asks for a decision: which emulator shows it, or nobody."""
    nowhere = NOT_ON["ministack"] & NOT_ON["moto"]
    declared = {body["Type"] for _, body in resources()}

    assert nowhere & declared == {
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "AWS::ApplicationAutoScaling::ScalingPolicy",
        "AWS::CloudWatch::AnomalyDetector",
        "AWS::CloudWatch::CompositeAlarm",
        "AWS::Logs::QueryDefinition",
        "AWS::ServiceDiscovery::PrivateDnsNamespace",
        "AWS::ServiceDiscovery::Service",
    }


# --- what both show ---


def test_the_queue_waits_as_long_as_the_code_expects(deployed: Deployed) -> None:
    queue, dead = attributes(deployed, "capstone-uploads"), attributes(deployed, "capstone-uploads-dlq")

    assert (queue["VisibilityTimeout"], queue["ReceiveMessageWaitTimeSeconds"]) == ("180", "20")
    assert queue["MessageRetentionPeriod"] == dead["MessageRetentionPeriod"] == "1209600"
    redrive = json.loads(queue["RedrivePolicy"])
    assert (redrive["deadLetterTargetArn"], int(redrive["maxReceiveCount"])) == (dead["QueueArn"], 20)


def test_log_groups_forget(deployed: Deployed) -> None:
    groups = deployed.client("logs").describe_log_groups()["logGroups"]
    assert {each["logGroupName"]: each["retentionInDays"] for each in groups} == {
        "/capstone/intake": 7,
        "/aws/batch/job": 14,
        "/capstone/video-analysis": 30,
        "/ecs/capstone-webserver": 7,
        "/ecs/capstone-daemon": 7,
    }


def test_the_dashboard_draws_what_was_deployed(deployed: Deployed) -> None:
    cloudwatch = deployed.client("cloudwatch")
    body = cloudwatch.get_dashboard(DashboardName="capstone-operations")["DashboardBody"]
    widgets = json.loads(body)["widgets"]

    assert ("AWS/ApplicationELB" in body) == (deployed.name == "ministack")  # where a host name was given
    assert len(widgets) > 20
    for wanted in ('"ClusterName","capstone"', '"QueueName","capstone-uploads"', '"Environment","prod"'):
        assert wanted in body
    assert {each["properties"]["region"] for each in widgets if each["type"] != "text"} == {REGION}


def test_an_image_never_changes_under_its_tag(deployed: Deployed) -> None:
    [repository] = deployed.client("ecr").describe_repositories()["repositories"]
    assert (repository["repositoryName"], repository["imageTagMutability"]) == ("capstone", "IMMUTABLE")


def test_there_is_one_daemon_and_a_web_server(deployed: Deployed) -> None:
    services = deployed.client("ecs").describe_services(
        cluster="capstone", services=["capstone-daemon", "capstone-webserver"]
    )["services"]
    counts = {each["serviceName"]: each["desiredCount"] for each in services}

    # How many web servers is autoscaling's to say, which no emulator has.
    assert counts["capstone-daemon"] == 1
    assert set(counts) == {"capstone-daemon", "capstone-webserver"}


def test_services_run_the_small_image_and_find_their_logs(deployed: Deployed) -> None:
    daemon, web = containers(deployed, "capstone-daemon"), containers(deployed, "capstone-webserver")
    everything = [*daemon.values(), *web.values()]

    assert set(daemon) | set(web) == {"prepare", "code-server", "daemon", "webserver"}
    assert {each["image"].split(".", 1)[1] for each in everything} == {
        "dkr.ecr.ap-northeast-2.amazonaws.com/capstone:v1"
    }
    assert {each["logConfiguration"]["options"]["awslogs-group"] for each in everything} == {
        "/capstone/intake",
        "/ecs/capstone-daemon",
        "/ecs/capstone-webserver",
    }


# --- what ministack shows ---


def test_alarms_watch_what_was_deployed_and_tell_the_topic(on_ministack: Deployed) -> None:
    alarms = on_ministack.client("cloudwatch").describe_alarms()["MetricAlarms"]
    found = {each["AlarmName"]: each for each in alarms}
    connections = found["DatabaseConnectionsHigh"]

    assert connections["Dimensions"] == [{"Name": "DBInstanceIdentifier", "Value": "capstone"}]
    assert connections["AlarmActions"] == [on_ministack.output("data", "AlertTopicArn")]
    assert "Runbook: docs/runbook.md#database-connections" in connections["AlarmDescription"]
    assert found["S3AccessDenied"]["Dimensions"] == [{"Name": "Environment", "Value": "prod"}]
    assert found["S3AccessDenied"]["AlarmActions"] == [], "its incident's composite tells of it"


def test_nobody_reaches_a_web_server_without_logging_in(on_ministack: Deployed) -> None:
    elb = on_ministack.client("elbv2")
    [balancer] = elb.describe_load_balancers(Names=["capstone"])["LoadBalancers"]
    listeners = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    actions = {each["Port"]: [action["Type"] for action in each["DefaultActions"]] for each in listeners}

    assert actions == {443: ["authenticate-cognito", "forward"], 80: ["redirect"]}
    [targets] = elb.describe_target_groups(Names=["capstone-webserver"])["TargetGroups"]
    assert (targets["HealthCheckPath"], targets["Port"]) == ("/server_info", 3000)
    [listener] = [each["ListenerArn"] for each in listeners if each["Port"] == 443]
    [rule] = [each for each in elb.describe_rules(ListenerArn=listener)["Rules"] if not each["IsDefault"]]
    assert [each["Type"] for each in rule["Actions"]] == ["authenticate-cognito", "forward"]
    assert rule["Conditions"][0]["HostHeaderConfig"]["Values"] == [BROWSE_HOST]


def test_a_browser_may_upload_from_the_pages_of_events(on_ministack: Deployed) -> None:
    [rule] = on_ministack.client("s3").get_bucket_cors(Bucket=bucket(on_ministack, "raw"))["CORSRules"]
    assert (rule["AllowedOrigins"], rule["AllowedMethods"]) == ([f"https://{BROWSE_HOST}"], ["PUT"])


@pytest.mark.parametrize("kind", ["raw", "derived"])
def test_buckets_are_encrypted_and_closed(on_ministack: Deployed, kind: str) -> None:
    s3, name = on_ministack.client("s3"), bucket(on_ministack, kind)
    [rule] = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    block = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]

    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert len(block) == 4
    assert set(block.values()) == {True}


def test_only_uploads_have_versions(on_ministack: Deployed) -> None:
    s3 = on_ministack.client("s3")
    assert s3.get_bucket_versioning(Bucket=bucket(on_ministack, "raw")).get("Status") == "Enabled"
    assert s3.get_bucket_versioning(Bucket=bucket(on_ministack, "derived")).get("Status") is None


@pytest.mark.parametrize(
    ("stack", "parameters", "message"),
    [
        ("application", {**APPLICATION, "HostName": "a.example.com"}, "needs a certificate"),
        ("application", {**APPLICATION, "BrowseHostName": "a.example.com"}, "needs HostName"),
        ("network", {"VpcId": "vpc-1", "PublicSubnetIds": "subnet-1"}, "PrivateSubnetIds"),
        ("network", {"VpcId": "vpc-1", "PrivateSubnetIds": "subnet-1"}, "PublicSubnetIds"),
    ],
)
def test_parameters_that_need_each_other_are_refused_alone(
    stack: str, parameters: dict[str, str], message: str, on_ministack: Deployed
) -> None:
    body = without(template(stack), NOT_ON["ministack"])
    with pytest.raises(ClientError, match=message):
        deploy(on_ministack.endpoint_url, "refused", body, parameters)


def test_only_the_raw_bucket_may_send_to_the_queue(on_ministack: Deployed) -> None:
    queue = attributes(on_ministack, "capstone-uploads")
    [statement] = json.loads(queue["Policy"])["Statement"]

    assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
    assert statement["Resource"] == queue["QueueArn"]
    assert statement["Condition"]["ArnLike"] == {
        "aws:SourceArn": f"arn:aws:s3:::{bucket(on_ministack, 'raw')}"
    }


def test_an_upload_is_announced(on_ministack: Deployed) -> None:
    on_ministack.client("s3").put_object(Bucket=bucket(on_ministack, "raw"), Key="gate/a.mp4", Body=b"film")
    sqs = on_ministack.client("sqs")
    url = sqs.get_queue_url(QueueName="capstone-uploads")["QueueUrl"]

    def announced() -> list[str]:
        messages = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", [])
        bodies = [json.loads(each["Body"]) for each in messages]
        return [record["s3"]["object"]["key"] for body in bodies for record in body.get("Records", [])]

    assert wait_for("the upload's message", announced, 20) == ["gate/a.mp4"]


@pytest.mark.parametrize("kind", ["raw", "derived"])
def test_buckets_refuse_unencrypted_connections(on_ministack: Deployed, kind: str) -> None:
    policy = on_ministack.client("s3").get_bucket_policy(Bucket=bucket(on_ministack, kind))["Policy"]
    [statement] = json.loads(policy)["Statement"]

    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_database_is_as_agreed(on_ministack: Deployed) -> None:
    rds = on_ministack.client("rds")
    [database] = rds.describe_db_instances(DBInstanceIdentifier="capstone")["DBInstances"]
    expected = {
        "DBInstanceIdentifier": "capstone",
        "DBInstanceClass": "db.t3.small",
        "Engine": "postgres",
        "AllocatedStorage": 50,
        "MaxAllocatedStorage": 200,
        "BackupRetentionPeriod": 7,
        "PreferredBackupWindow": "03:00-04:00",
        "StorageEncrypted": True,
        "PubliclyAccessible": False,
        "DeletionProtection": True,
    }

    assert {name: database[name] for name in expected} == expected
    assert database["PreferredMaintenanceWindow"].lower() == "mon:04:00-mon:05:00"


def test_a_read_replica_is_there_when_asked_for(on_ministack: Deployed) -> None:
    rds = on_ministack.client("rds")
    [replica] = rds.describe_db_instances(DBInstanceIdentifier="capstone-replica")["DBInstances"]

    # Of what it is a copy, ministack does not keep: test_templates.py reads it.
    assert (replica["DBInstanceClass"], replica["PubliclyAccessible"]) == ("db.t3.small", False)


def test_the_operator_is_told_by_mail(on_ministack: Deployed) -> None:
    found = on_ministack.client("sns").list_subscriptions()["Subscriptions"]
    assert [(each["Protocol"], each["Endpoint"]) for each in found] == [("email", "operator@example.com")]


@pytest.mark.parametrize(
    ("secret", "user"),
    [
        ("capstone/database/administrator", "capstone_admin"),
        ("capstone/database/dagster", "dagster"),
        ("capstone/database/events", "capstone"),
        ("capstone/database/reader", "capstone_browse"),
    ],
)
def test_passwords_are_made_not_given(on_ministack: Deployed, secret: str, user: str) -> None:
    value = json.loads(
        on_ministack.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    )

    assert value["username"] == user
    assert len(value["password"]) == 40


def test_nobody_signs_up(on_ministack: Deployed) -> None:
    cognito = on_ministack.client("cognito-idp")
    pool = cognito.describe_user_pool(UserPoolId=on_ministack.output("application", "UserPool"))["UserPool"]
    assert pool["AdminCreateUserConfig"]["AllowAdminCreateUserOnly"] is True


# --- what moto shows ---


def test_without_a_host_name_nothing_is_public(on_moto: Deployed) -> None:
    services = on_moto.client("ecs").describe_services(cluster="capstone", services=["capstone-webserver"])

    assert on_moto.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert [each["loadBalancers"] for each in services["services"]] == [[]]


def test_the_way_out_is_nat_and_the_way_to_s3_is_free(on_moto: Deployed) -> None:
    """Which subnet uses which table moto leaves out: test_templates.py reads it."""
    ec2, vpc = on_moto.client("ec2"), on_moto.output("network", "VpcId")
    [nat] = ec2.describe_nat_gateways()["NatGateways"]
    [endpoint] = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["VpcEndpoints"]
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    private = on_moto.output("network", "PrivateSubnets").split(",")
    leaving = {
        table["RouteTableId"]
        for table in tables
        if any(route.get("NatGatewayId") == nat["NatGatewayId"] for route in table["Routes"])
    }

    assert nat["SubnetId"] in on_moto.output("network", "PublicSubnets").split(",")
    assert endpoint["ServiceName"] == "com.amazonaws.ap-northeast-2.s3"
    assert set(endpoint["RouteTableIds"]) == leaving
    assert len(leaving) == 2
    assert len({each["AvailabilityZone"] for each in ec2.describe_subnets(SubnetIds=private)["Subnets"]}) == 3


def test_gpu_machines_are_spot_first_and_none_when_idle(on_moto: Deployed) -> None:
    batch = on_moto.client("batch")
    environments = {
        each["computeEnvironmentArn"]: each["computeResources"]
        for each in batch.describe_compute_environments()["computeEnvironments"]
    }
    queues = {
        each["jobQueueName"]: [
            environments[place["computeEnvironment"]]
            for place in sorted(each["computeEnvironmentOrder"], key=lambda place: place["order"])
        ]
        for each in batch.describe_job_queues()["jobQueues"]
    }

    assert {name: [each["type"] for each in order] for name, order in queues.items()} == {
        "capstone-gpu": ["SPOT", "EC2"],
        "capstone-cpu": ["EC2"],
    }
    assert {each["minvCpus"] for each in environments.values()} == {0}
    private = set(on_moto.output("network", "PrivateSubnets").split(","))
    assert {subnet for each in environments.values() for subnet in each["subnets"]} == private
    assert {each["securityGroupIds"][0] for each in environments.values()} == {
        on_moto.output("network", "JobsGroup")
    }


@pytest.mark.parametrize("name", ["capstone-gpu", "capstone-cpu"])
def test_jobs_run_the_workers_image_and_log_where_the_launcher_looks(on_moto: Deployed, name: str) -> None:
    [definition] = on_moto.client("batch").describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    container = definition["containerProperties"]
    needs = {each["type"]: each["value"] for each in container["resourceRequirements"]}

    assert container["image"].endswith("/capstone:v1-worker")
    assert container["logConfiguration"]["options"]["awslogs-group"] == VIDEO_ANALYSIS.name
    assert needs.get("GPU") == ("1" if name == "capstone-gpu" else None)
    assert container["linuxParameters"]["sharedMemorySize"] >= 1024


def test_the_launchers_client_finds_what_it_is_configured_with(on_moto: Deployed) -> None:
    """The daemon names a definition by its ARN, which pins the revision that was deployed with it."""
    arn = on_moto.output("application", "GpuJobDefinition")
    found = client("batch", on_moto.endpoint_url).describe_job_definitions(jobDefinitions=[arn])
    assert [each["jobDefinitionName"] for each in found["jobDefinitions"]] == ["capstone-gpu"]
