"""What the templates say where no emulator shows it, and where they must agree with the code."""

import email
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from batch_gpu.config import SHORTEST_TIMEOUT_S
from batch_gpu.endings import ending_of
from batch_gpu.jobs import DEFAULT_ATTEMPTS, retry_strategy
from capstone_dagster.catalog.log_groups import DAEMON, INTAKE, VIDEO_ANALYSIS, WEBSERVER
from capstone_dagster.local import aws
from capstone_dagster.web.protection import HEALTH
from tests.infra.stacks import INFRA, ORDER, resources, task_containers, template

# CloudFormation takes a template of this size as it is, and a longer one from a bucket.
LONGEST_TEMPLATE, LONGEST_IN_A_BUCKET = 51_200, 1_000_000
BY_A_BUCKET = ("application", "observability")
# What holds something that cannot be made again.
KEEPS_DATA = {
    "AWS::ECR::Repository": "Retain",
    "AWS::RDS::DBInstance": "Snapshot",
    "AWS::S3::Bucket": "Retain",
    "AWS::SecretsManager::Secret": "Retain",
    "AWS::SNS::Topic": "Retain",
    "AWS::SQS::Queue": "Retain",
}

# vCPUs and GiB of the g4dn, g5, g6 and m families, which agree in that.
SIZES = {"large": (2, 8), "xlarge": (4, 16), "2xlarge": (8, 32)}


NO_VALUE = {"Ref": "AWS::NoValue"}


def properties(stack: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = template(stack)["Resources"][name]["Properties"]
    return found


def dagster_yaml() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INFRA.parent / "dagster.yaml").read_text())
    return found


def lower_first(value: Any) -> Any:
    """CloudFormation's spelling of an API's parameters, as the API spells them."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: lower_first(each) for key, each in value.items()}
    return [lower_first(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ORDER)
def test_a_template_is_short_enough_for_how_it_is_deployed(name: str) -> None:
    """The last two by a bucket, which data.yaml has made by then."""
    longest = LONGEST_IN_A_BUCKET if name in BY_A_BUCKET else LONGEST_TEMPLATE
    assert len((INFRA / f"{name}.yaml").read_bytes()) < 0.9 * longest


def test_stacks_import_only_from_those_before_them() -> None:
    exported: set[str] = set()
    for name in ORDER:
        text = json.dumps(template(name))
        imported = {part.split('"')[0] for part in text.split('"Fn::ImportValue": "')[1:]}
        assert imported <= exported, name
        exported |= {
            each["Export"]["Name"] for each in template(name).get("Outputs", {}).values() if "Export" in each
        }


def test_what_keeps_data_outlives_its_stack() -> None:
    for where, body in resources(*KEEPS_DATA):
        if "SourceDBInstanceIdentifier" in body["Properties"]:
            continue  # a copy keeps nothing of its own, and RDS makes no snapshot of one
        expected = KEEPS_DATA[body["Type"]]
        assert (body.get("DeletionPolicy"), body.get("UpdateReplacePolicy")) == (expected, expected), where


# By the prefix of a container's log streams: its group, and what awslogs does while CloudWatch is slow.
LOGS = {
    "capstone-gpu": (VIDEO_ANALYSIS, "non-blocking"),
    "capstone-cpu": (VIDEO_ANALYSIS, "non-blocking"),
    "prepare": (DAEMON, "blocking"),
    "code-server": (INTAKE, "non-blocking"),
    "daemon": (DAEMON, "non-blocking"),
    "webserver": (WEBSERVER, "non-blocking"),
    "browse": (WEBSERVER, "non-blocking"),
}


def log_options() -> dict[str, dict[str, Any]]:
    bodies = [
        *(body["Properties"]["ContainerProperties"] for _, body in resources("AWS::Batch::JobDefinition")),
        *(each for _, body in resources("AWS::ECS::TaskDefinition") for each in task_containers(body)),
    ]
    found = [each["LogConfiguration"] for each in bodies]
    assert {each["LogDriver"] for each in found} == {"awslogs"}
    return {each["Options"]["awslogs-stream-prefix"]: each["Options"] for each in found}


def test_every_container_logs_into_its_group_in_a_mode_that_is_chosen() -> None:
    options = log_options()

    assert {
        prefix: (each["awslogs-group"], each["mode"], each.get("max-buffer-size"))
        for prefix, each in options.items()
    } == {
        prefix: (group.name, mode, "25m" if mode == "non-blocking" else None)
        for prefix, (group, mode) in LOGS.items()
    }


def service(name: str) -> dict[str, Any]:
    [found] = [
        each
        for _, body in resources("AWS::ECS::TaskDefinition")
        for each in task_containers(body)
        if each["Name"] == name
    ]
    return dict(found)


def test_services_write_from_their_group_s_level_up_as_json() -> None:
    for name in ("code-server", "daemon", "webserver"):
        words = " ".join(service(name)["Command"]).replace("=", " ")
        assert "log-level warning" in words
        assert "--log-format json" in words
    assert "--dagster-log-level=warning" in service("webserver")["Command"]


def test_daemon_and_webservers_share_one_code_server() -> None:
    [server] = yaml.safe_load((INFRA / "image" / "code-server.yaml").read_text())["load_from"]
    place = server["grpc_server"]
    [local] = yaml.safe_load((INFRA.parent / "workspace.yaml").read_text())["load_from"]
    code_server = service("code-server")

    # Run keys hold for one location: under another name every upload would be asked for once more.
    assert place["location_name"] == local["python_module"]
    assert place["host"] == {"env": "CODE_SERVER_HOST"}
    assert {
        f"--port={place['port']}",
        f"--location-name={place['location_name']}",
        f"--module-name={local['python_module']}",
    } <= set(code_server["Command"])
    for client, host in (
        ("daemon", "127.0.0.1"),
        ("webserver", "code-server.capstone.internal"),
    ):
        assert "code-server.yaml" in " ".join(service(client)["Command"])
        assert {"Name": "CODE_SERVER_HOST", "Value": host} in service(client)["Environment"]


def test_only_the_services_reach_the_code_server() -> None:
    """It has no password, and executes what it is sent."""
    group = {"Fn::GetAtt": ["ServicesGroup", "GroupId"]}
    for name, other in (
        ("CodeServerIngress", "SourceSecurityGroupId"),
        ("CodeServerEgress", "DestinationSecurityGroupId"),
    ):
        rule = properties("network", name)
        assert (rule["GroupId"], rule[other], rule["FromPort"], rule["ToPort"]) == (group, group, 4000, 4000)
    names = [properties("application", name)["Name"] for name in ("CodeServerName", "Namespace")]
    assert names == ["code-server", "capstone.internal"]
    [registry] = properties("application", "DaemonService")["ServiceRegistries"]
    assert registry == {"RegistryArn": {"Fn::GetAtt": ["CodeServerName", "Arn"]}}


def test_queues_are_those_of_the_local_stack() -> None:
    """One place says why (capstone_dagster/local/aws.py), and the soak tests ran with it."""
    queue, dead = properties("data", "UploadQueue"), properties("data", "DeadLetterQueue")

    assert queue["QueueName"] == aws.UPLOAD_QUEUE
    assert {name: str(queue[name]) for name in aws.UPLOAD_QUEUE_ATTRIBUTES} == aws.UPLOAD_QUEUE_ATTRIBUTES
    assert queue["RedrivePolicy"]["maxReceiveCount"] == aws.MAX_RECEIVE_COUNT
    assert (dead["QueueName"], dead["MessageRetentionPeriod"]) == (aws.DEAD_LETTER_QUEUE, aws.RETENTION_S)
    assert properties("data", "AlertTopic")["TopicName"] == aws.ALERT_TOPIC
    assert properties("data", "NoticeTopic")["TopicName"] == aws.NOTICE_TOPIC
    assert queue["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


def test_superseded_uploads_outlive_the_messages_that_name_them() -> None:
    rules = properties("data", "RawBucket")["LifecycleConfiguration"]["Rules"]
    [days] = [
        each["NoncurrentVersionExpiration"]["NoncurrentDays"]
        for each in rules
        if "NoncurrentVersionExpiration" in each
    ]
    assert days * 24 * 3600 > 2 * aws.RETENTION_S


def test_uploads_and_completed_restores_reach_the_queue() -> None:
    configurations = properties("data", "RawBucket")["NotificationConfiguration"]["QueueConfigurations"]
    assert [each["Event"] for each in configurations] == ["s3:ObjectCreated:*", "s3:ObjectRestore:Completed"]


def test_results_are_never_expired() -> None:
    rules = properties("data", "DerivedBucket")["LifecycleConfiguration"]["Rules"]
    assert [each.get("Prefix") for each in rules if "ExpirationInDays" in each] == ["compute-logs/"]


def test_passwords_need_no_quoting() -> None:
    made = [
        body["Properties"]["GenerateSecretString"] for _, body in resources("AWS::SecretsManager::Secret")
    ]
    assert len(made) == 4
    assert all(each["ExcludePunctuation"] is True and each["PasswordLength"] >= 32 for each in made)


def test_the_dashboard_knows_the_size_of_the_disk() -> None:
    size = template("observability")["Parameters"]["DatabaseStorageGiB"]["Default"]
    assert str(size) == properties("data", "Database")["AllocatedStorage"]


def test_the_databases_parameters() -> None:
    database, parameters = properties("data", "Database"), properties("data", "DatabaseParameters")

    assert parameters["Parameters"] == {
        "log_min_duration_statement": "1000",
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.track": "all",
        "rds.force_ssl": "1",
    }
    assert parameters["Family"] == f"postgres{database['EngineVersion']}"
    assert "ManageMasterUserPassword" not in database, "RDS then makes no read replica"
    _, restored, made = database["MasterUserPassword"]["Fn::If"]
    assert "{{resolve:secretsmanager:${AdministratorSecret}:" in made["Fn::Sub"]
    assert restored == NO_VALUE
    assert properties("data", "DatabaseReplica")["SourceDBInstanceIdentifier"] == {"Ref": "Database"}
    assert template("data")["Resources"]["DatabaseReplica"]["Condition"] == "HasReadReplica"
    assert template("data")["Parameters"]["ReadReplica"]["Default"] == "false"


def test_a_snapshot_brings_what_it_was_made_with() -> None:
    """RDS refuses a user, a password or an encryption beside a snapshot (CloudFormation's reference)."""
    database = properties("data", "Database")
    assert template("data")["Conditions"]["FromSnapshot"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "DatabaseSnapshot"}, ""]}]
    }
    assert template("data")["Parameters"]["DatabaseSnapshot"]["Default"] == ""
    assert database["DBSnapshotIdentifier"] == {
        "Fn::If": ["FromSnapshot", {"Ref": "DatabaseSnapshot"}, NO_VALUE]
    }
    for name in ("MasterUsername", "MasterUserPassword", "StorageEncrypted"):
        assert database[name]["Fn::If"][:2] == ["FromSnapshot", NO_VALUE], name
    assert not {"DBName", "KmsKeyId", "CharacterSetName"} & set(database)


def test_the_registry_forgets_tagged_images_only() -> None:
    """Twice ten versions: what a tag points to may consist of parts without tags."""
    text = properties("data", "Repository")["LifecyclePolicy"]["LifecyclePolicyText"]
    [rule] = json.loads(text)["rules"]
    assert rule["selection"] == {
        "tagStatus": "tagged",
        "tagPatternList": ["*"],
        "countType": "imageCountMoreThan",
        "countNumber": 20,
    }


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_batch_retries_what_the_launcher_would(kind: str) -> None:
    definition = properties("application", f"{kind}JobDefinition")
    assert lower_first(definition["RetryStrategy"]) == retry_strategy(DEFAULT_ATTEMPTS)


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_an_update_leaves_the_running_daemon_its_job_definition(kind: str) -> None:
    definition = properties("application", f"{kind}JobDefinition")
    assert definition["ResourceRetentionPolicy"] == {"SkipDeregisterOnUpdate": True}


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_every_machine_holds_the_job(kind: str) -> None:
    """Some memory goes to the system and the ECS agent; a job that asks for all of it is never placed."""
    parameters = template("application")["Parameters"]
    vcpus = parameters[f"{kind}JobVcpus"]["Default"]
    memory_mib = parameters[f"{kind}JobMemoryMiB"]["Default"]

    for machine in template("compute")["Parameters"][f"{kind}InstanceTypes"]["Default"].split(","):
        has_vcpus, has_gib = SIZES[machine.partition(".")[2]]
        assert vcpus <= has_vcpus, machine
        assert memory_mib <= 0.9 * has_gib * 1024, machine
    assert template("compute")["Parameters"][f"{kind}MaxVcpus"]["Default"] >= vcpus


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_jobs_end(kind: str) -> None:
    definition = properties("application", f"{kind}JobDefinition")
    parameter = definition["Timeout"]["AttemptDurationSeconds"]["Ref"]
    declared = template("application")["Parameters"][parameter]

    assert declared["MinValue"] == SHORTEST_TIMEOUT_S
    assert 600 <= declared["Default"] <= 24 * 3600


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_a_job_that_cannot_run_leaves_its_queue_with_a_failure_class(kind: str) -> None:
    limits = properties("compute", f"{kind}Queue")["JobStateTimeLimitActions"]
    classes = {
        each["Reason"]: ending.failure
        for each in limits
        if (
            ending := ending_of(
                {
                    "jobId": "1",
                    "status": "FAILED",
                    # As AWS words it (user guide, "Jobs stuck in RUNNABLE").
                    "statusReason": f"Canceled by JobStateTimeLimit action due to reason: {each['Reason']}",
                }
            )
        )
    }

    assert classes == {
        "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE": "configuration",
        "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT": "configuration",
        "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED": "configuration",
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY": "capacity",
    }
    assert all(each["State"] == "RUNNABLE" and each["Action"] == "CANCEL" for each in limits)
    # AWS's least (API reference, "JobStateTimeLimitAction"); only capacity is worth hours.
    assert {each["MaxTimeSeconds"] for each in limits if "CAPACITY" not in each["Reason"]} == {600}


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_waiting_for_capacity_ends_in_order(kind: str) -> None:
    """First the launcher's sensor, which can say why; then, were it away, Dagster and AWS."""
    config = dagster_yaml()
    sensor_s = config["run_launcher"]["config"][kind.lower()]["max_wait_seconds"]
    [queue_s] = [
        each["MaxTimeSeconds"]
        for each in properties("compute", f"{kind}Queue")["JobStateTimeLimitActions"]
        if each["Reason"].startswith("CAPACITY")
    ]

    assert sensor_s < config["run_monitoring"]["start_timeout_seconds"] <= queue_s


@pytest.mark.parametrize("where", ["GpuSpotEnvironment", "GpuOnDemandEnvironment", "CpuEnvironment"])
def test_machines_have_the_right_image_and_keep_their_credentials(where: str) -> None:
    compute = properties("compute", where)["ComputeResources"]
    [image] = compute["Ec2Configuration"]

    assert image["ImageType"] == ("ECS_AL2023" if where.startswith("Cpu") else "ECS_AL2023_NVIDIA")
    assert compute["LaunchTemplate"]["LaunchTemplateId"] == {"Ref": "MachineTemplate"}
    data = properties("compute", "MachineTemplate")["LaunchTemplateData"]
    assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    disk = data["BlockDeviceMappings"][0]["Ebs"]
    assert (disk["Encrypted"], disk["VolumeType"], disk["Throughput"]) == (True, "gp3", 500)


def test_the_user_of_the_image_does_not_reach_the_machines_credentials(tmp_path: Path) -> None:
    """Containers of AWS Batch share the machine's network, where a hop limit protects nothing."""
    data = properties("compute", "MachineTemplate")["LaunchTemplateData"]
    message = email.message_from_string(data["UserData"]["Fn::Base64"])
    [part] = message.get_payload()
    script = part.get_payload()
    uid = re.findall(r"--uid (\d+)", (INFRA.parent / "Dockerfile").read_text())

    assert message.get_content_type() == "multipart/mixed"
    assert part.get_content_type() == "text/cloud-boothook", "before Docker starts anything"
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert "169.254.170.2" not in script, "where a job's own credentials come from"

    done, calls = run_on_a_machine(script, tmp_path)
    rule = f"--match owner --uid-owner {uid[0]} --jump REJECT"
    assert done.returncode == 0
    assert calls[:2] == [
        f"iptables --wait 30 --insert OUTPUT --destination 169.254.169.254 {rule}",
        f"ip6tables --wait 30 --insert OUTPUT --destination fd00:ec2::254 {rule}",
    ]
    assert "poweroff" not in calls


@pytest.mark.parametrize("broken", ["iptables", "ip6tables"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_machine_that_cannot_hide_its_credentials_takes_no_job(
    tmp_path: Path, broken: str, missing: bool
) -> None:
    data = properties("compute", "MachineTemplate")["LaunchTemplateData"]
    [part] = email.message_from_string(data["UserData"]["Fn::Base64"]).get_payload()

    done, calls = run_on_a_machine(part.get_payload(), tmp_path, **{broken: None if missing else 1})
    assert done.returncode == 1
    assert calls[-2:] == ["systemctl mask --now ecs", "poweroff"]


def run_on_a_machine(
    script: str, folder: Path, **programs: int | None
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script beside programs that note how they are called; None: there is no such program."""
    endings = dict.fromkeys(("iptables", "ip6tables", "install", "systemctl", "poweroff"), 0) | programs
    for name, ending in endings.items():
        if ending is not None:
            (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\nexit {ending}\n')
            (folder / name).chmod(0o755)
    local = script.replace("/dev/console", "/dev/null")
    done = subprocess.run(
        ["/bin/sh"], input=local, env={"PATH": str(folder)}, text=True, capture_output=True, check=False
    )
    return done, [line.strip() for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["Gpu", "Cpu"])
def test_a_machine_fetches_a_model_once_and_the_user_of_the_image_owns_it(kind: str) -> None:
    container = properties("application", f"{kind}JobDefinition")["ContainerProperties"]
    condition, [volume], _ = container["Volumes"]["Fn::If"]
    same_condition, [mount], _ = container["MountPoints"]["Fn::If"]
    script = properties("compute", "MachineTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    dockerfile = (INFRA.parent / "Dockerfile").read_text()

    assert condition == same_condition == "CacheOnMachine"
    assert mount["SourceVolume"] == volume["Name"]
    assert f"CAPSTONE_MODEL_CACHE={mount['ContainerPath']} " in dockerfile
    assert f"--owner 10001 --group 10001 --mode 0700 {volume['Host']['SourcePath']}\n" in script


def test_zones_are_three_and_can_be_chosen() -> None:
    """Which zone has which kind of machine differs; AWS's first ones are only the default."""
    zones = {
        name: body["Properties"]["AvailabilityZone"]["Fn::If"]
        for name, body in template("network")["Resources"].items()
        if body["Type"] == "AWS::EC2::Subnet"
    }
    letters = {name: name[-1] for name in zones}
    assert sorted(letters[name] for name in zones if name.startswith("Private")) == ["A", "B", "C"]
    for name, choice in zones.items():
        number = "ABC".index(letters[name])
        assert choice == [
            f"NamesZone{letters[name]}",
            {"Ref": f"Zone{letters[name]}"},
            {"Fn::Select": [number, {"Fn::GetAZs": ""}]},
        ]


def test_two_daemons_never_run() -> None:
    service = properties("application", "DaemonService")
    deployment = service["DeploymentConfiguration"]

    assert service["DesiredCount"] == 1
    assert (deployment["MinimumHealthyPercent"], deployment["MaximumPercent"]) == (0, 100)
    assert service["AvailabilityZoneRebalancing"] == "DISABLED"


def test_the_daemon_waits_for_what_prepares_it_and_the_web_server_for_the_daemon() -> None:
    prepare, code_server, daemon = task_containers(template("application")["Resources"]["DaemonTask"])

    assert (prepare["Name"], prepare["Essential"]) == ("prepare", False)
    prepared = {"ContainerName": "prepare", "Condition": "SUCCESS"}
    assert code_server["DependsOn"] == [prepared]
    assert daemon["DependsOn"] == [prepared, {"ContainerName": "code-server", "Condition": "HEALTHY"}]
    assert template("application")["Resources"]["WebserverService"]["DependsOn"] == "DaemonService"


def test_one_task_holds_all_services_where_that_is_chosen() -> None:
    """The webserver beside the daemon is the one of its own service, but for how it finds the code server."""
    found = template("application")["Resources"]
    *others, inside = task_containers(found["DaemonTask"], web_in_daemon_task=True)
    alone = service("webserver")

    assert [each["Name"] for each in others] == ["prepare", "code-server", "daemon"]
    assert inside.pop("DependsOn") == others[-1]["DependsOn"]
    variables = [
        {each["Name"]: each["Value"] for each in body.pop("Environment")} for body in (inside, alone)
    ]
    assert [each.pop("CODE_SERVER_HOST") for each in variables] == [
        "127.0.0.1",
        "code-server.capstone.internal",
    ]
    assert variables[0] == variables[1]
    assert inside == alone
    assert properties("application", "DaemonTask")["Memory"] == {
        "Fn::If": ["WebInDaemonTask", "5120", "4096"]
    }

    conditional = {name for name, body in found.items() if body.get("Condition") == "HasWebserverService"}
    assert conditional == {
        *("WebserverTask", "WebserverService"),
        *("WebserverScaling", "WebserverScalingByCpu", "WebserverScalingByMemory"),
    }
    condition, balancers, _ = found["DaemonService"]["Properties"]["LoadBalancers"]["Fn::If"]
    assert condition == "HasAddressInDaemonTask"
    assert balancers == found["WebserverService"]["Properties"]["LoadBalancers"]["Fn::If"][1]
    exported = template("application")["Outputs"]["WebserverService"]["Value"]["Fn::If"]
    assert exported[2] == {"Fn::GetAtt": ["DaemonService", "Name"]}


@pytest.mark.parametrize(
    ("model", "labels", "refused"),
    [
        ("yolo11n.pt", "person,face", True),
        ("yolo11n.pt", "person", False),
        ("s3://bucket/models/faces.pt", "person,face", False),
        ("/app/models/yolov8x.pt", "person,face", False),
    ],
)
def test_a_published_model_is_refused_for_the_label_that_it_does_not_know(
    model: str, labels: str, refused: bool
) -> None:
    """Before anything is created: CloudFormation checks rules first."""
    rule = template("application")["Rules"]["PublishedModelsKnowNoFace"]
    given = {"Model": model, "Labels": labels}

    def holds(condition: dict[str, Any]) -> bool:
        [(function, arguments)] = condition.items()
        if function == "Fn::Not":
            return not holds(arguments[0])
        assert function == "Fn::Contains"
        return given[arguments[1]["Ref"]] in arguments[0]

    assert (holds(rule["RuleCondition"]) and not holds(rule["Assertions"][0]["Assert"])) == refused
    default = template("application")["Parameters"]["Labels"]["Default"]
    assert "face" in default.split(",")


def test_an_update_leaves_the_heartbeats_alarm_its_patience() -> None:
    """What the template adds to an update's pause: the last stop and the wait for a healthy code server.

    Fetching the image and starting are the rest, for which three minutes have to do; no figure is from AWS.
    """
    _, code_server, daemon = task_containers(template("application")["Resources"]["DaemonTask"])
    [patience_s] = [
        each["MetricStat"]["Period"]
        for each in properties("observability", "DaemonHeartbeatLost")["Metrics"]
        if "MetricStat" in each
    ]

    stopping_s = max(each.get("StopTimeout", 30) for each in (code_server, daemon))
    assert stopping_s + code_server["HealthCheck"]["Interval"] + 180 < patience_s


def test_web_servers_come_and_go_with_the_load() -> None:
    target = properties("application", "WebserverScaling")
    minimum, maximum = (
        template("application")["Parameters"][target[bound]["Ref"]]["Default"]
        for bound in ("MinCapacity", "MaxCapacity")
    )
    policies = {
        tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]: (
            tracking["TargetValue"],
            tracking["ScaleOutCooldown"],
            tracking["ScaleInCooldown"],
        )
        for _, body in resources("AWS::ApplicationAutoScaling::ScalingPolicy")
        if (tracking := body["Properties"]["TargetTrackingScalingPolicyConfiguration"])
    }

    assert (minimum, maximum) == (2, 10)
    # A count in the template would take autoscaling's back at each update.
    assert "DesiredCount" not in properties("application", "WebserverService")
    assert policies == {
        "ECSServiceAverageCPUUtilization": (70, 60, 300),
        "ECSServiceAverageMemoryUtilization": (80, 60, 300),
    }


def test_a_broken_deployment_goes_back_by_itself() -> None:
    for where, body in resources("AWS::ECS::Service"):
        breaker = body["Properties"]["DeploymentConfiguration"]["DeploymentCircuitBreaker"]
        assert breaker == {"Enable": True, "Rollback": True}, where


def test_only_the_load_balancer_is_reached_from_outside() -> None:
    open_ports = {
        where: {
            rule["FromPort"]
            for rule in body["Properties"].get("SecurityGroupIngress", [])
            if "CidrIp" in rule
        }
        for where, body in resources("AWS::EC2::SecurityGroup")
    }

    assert {where: ports for where, ports in open_ports.items() if ports} == {
        "network/LoadBalancerGroup": {80, 443}
    }
    for where, body in resources("AWS::ECS::Service"):
        network = body["Properties"]["NetworkConfiguration"]["AwsvpcConfiguration"]
        assert network["AssignPublicIp"] == {"Fn::ImportValue": "capstone-assign-public-ip"}, where


def test_without_a_nat_gateway_everything_leaves_by_an_address_of_its_own() -> None:
    """For a small budget. Nobody gets in either way: the test above looks at the security groups."""
    network = template("network")
    assert network["Outputs"]["AssignPublicIp"]["Value"] == {"Fn::If": ["HasNat", "DISABLED", "ENABLED"]}
    for name, body in network["Resources"].items():
        if name.startswith("PrivateSubnet") and body["Type"] == "AWS::EC2::Subnet":
            assert body["Properties"]["MapPublicIpOnLaunch"] == {"Fn::If": ["HasNat", False, True]}, name
        if name.startswith("PrivateWayOut"):
            assert body["Properties"]["GatewayId"] == {
                "Fn::If": ["HasNat", NO_VALUE, {"Ref": "InternetGateway"}]
            }
    assert properties("data", "Database")["PubliclyAccessible"] is False


def test_each_subnet_has_its_way_out() -> None:
    found = {
        body["Properties"]["SubnetId"]["Ref"]: body["Properties"]["RouteTableId"]["Ref"]
        for _, body in resources("AWS::EC2::SubnetRouteTableAssociation")
    }
    assert found == {
        "PublicSubnetA": "PublicRoutes",
        "PublicSubnetB": "PublicRoutes",
        "PrivateSubnetA": "PrivateRoutesA",
        "PrivateSubnetB": "PrivateRoutesB",
        "PrivateSubnetC": "PrivateRoutesA",
    }


def test_without_a_host_name_there_is_no_way_in() -> None:
    """Then nothing is public, and the tunnel of docs/deploy.md is the only way."""
    public = {
        "AWS::Cognito::UserPool",
        "AWS::ElasticLoadBalancingV2::LoadBalancer",
        "AWS::ElasticLoadBalancingV2::Listener",
        "AWS::ElasticLoadBalancingV2::TargetGroup",
    }
    for where, body in resources(*public):
        assert body["Condition"] in ("HasAddress", "HasBrowse"), where
    browse = template("application")["Conditions"]["HasBrowse"]["Fn::And"]
    assert {"Condition": "HasAddress"} in browse
    assert template("application")["Parameters"]["HostName"]["Default"] == ""


def test_the_pages_of_events_ask_for_the_login_of_the_uis() -> None:
    """A rule's actions replace the listener's, so a rule that only forwards would let everybody in."""
    [rule] = [body["Properties"] for _, body in resources("AWS::ElasticLoadBalancingV2::ListenerRule")]
    login, forward = rule["Actions"]
    assert login == properties("application", "HttpsListener")["DefaultActions"][0]
    assert forward["TargetGroupArn"] == {"Ref": "BrowseTargets"}
    targets = properties("application", "BrowseTargets")
    container = service("browse")
    assert f"--port={targets['Port']}" in container["Command"]
    assert [each["ContainerPort"] for each in container["PortMappings"]] == [targets["Port"]]
    assert targets["HealthCheckPath"] == HEALTH
    for group, rules in (("LoadBalancerGroup", "Egress"), ("ServicesGroup", "Ingress")):
        ports = [each["FromPort"] for each in properties("network", group)[f"SecurityGroup{rules}"]]
        assert targets["Port"] in ports


def test_only_the_pages_of_events_may_send_uploads_from_a_browser() -> None:
    condition, cors, otherwise = properties("data", "RawBucket")["CorsConfiguration"]["Fn::If"]
    assert (condition, otherwise) == ("HasBrowse", NO_VALUE)
    [rule] = cors["CorsRules"]
    assert rule["AllowedOrigins"] == [{"Fn::Sub": "https://${BrowseHostName}"}]
    assert rule["AllowedMethods"] == ["PUT"]
    assert "CorsConfiguration" not in properties("data", "DerivedBucket")
