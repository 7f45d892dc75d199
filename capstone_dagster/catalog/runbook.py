"""What to do when something fails: a page for each failure class and for each thing that rings an alarm.

Rendered to docs/runbook.md. In commands, words in capitals are to be filled in from the notice: VIDEO is a
video's id or external id, JOB a job of AWS Batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from .model import RunbookPage

_STATUS = "`capstone status VIDEO`: state, class and the sentence of the failure."
_LOGS = (
    "`capstone logs VIDEO --tail 50`: the run's last lines; `capstone logs VIDEO --level ERROR` for errors "
    "alone."
)
_JOB = "`aws batch describe-jobs --jobs JOB`: status reason, exit code, and the name of its log stream."
_REEXECUTE = (
    "In Dagster's UI: open the run, Re-execute, From failure. Finished detections are kept, the GPU is not "
    "used again for them."
)
_BY_ITSELF = (
    "The system starts the run again from its failed step by itself, within a budget "
    "(CAPSTONE_REEXECUTIONS_PER_VIDEO, CAPSTONE_REEXECUTIONS_PER_HOUR)."
)
_RECOVERY = "A recovery notice says how long it lasted and how many runs it met."
_DAEMON_EVENTS = (
    "`aws ecs describe-services --cluster capstone --services capstone-daemon capstone-webserver`: the last "
    "events say why a task was stopped or could not be placed."
)

FAILURE_PAGES: tuple[RunbookPage, ...] = (
    RunbookPage(
        "undecodable-video",
        "A video cannot be decoded",
        "The file is no video, is cut off before its first frame, or has a codec that FFmpeg does not know. "
        "One video is concerned, never the system; trying again would cost a GPU and fail again.",
        (
            _STATUS,
            "Fetch it, `aws s3api get-object --bucket BUCKET --key KEY video.mp4`, and try it here: "
            "`capstone analyze video.mp4 --out result`.",
        ),
        (
            "If it does not play in an ordinary player either, ask the uploader for the file once more: a "
            "new upload has a run of its own.",
            "If it plays there, report it as a defect with the codec that `capstone logs VIDEO` names.",
            "If many come from one camera or one app version, its upload is cut off: look at the sizes.",
        ),
        "The video stays `failed`; nothing waits for it.",
    ),
    RunbookPage(
        "source-missing",
        "The uploaded object is gone",
        "Between the upload and the analysis somebody or a lifecycle rule deleted the object (404).",
        (
            _STATUS,
            "`aws s3api list-object-versions --bucket BUCKET --prefix KEY`: a delete marker says when it "
            "went.",
        ),
        (
            "If the video is still wanted, upload it again, or remove the delete marker and re-execute the "
            "run.",
            "If a lifecycle rule did it, lengthen its days: uploads may wait for hours for a GPU.",
        ),
        "The video stays `failed`; a new upload has a run of its own.",
    ),
    RunbookPage(
        "source-forbidden",
        "The worker may not read the video",
        "S3 answered 403: a bucket policy, the role's permissions or the key that encrypts the object leave "
        "the worker out. Usually all new videos of the bucket are concerned.",
        (
            _STATUS,
            "`aws s3api get-bucket-policy --bucket BUCKET` for a Deny, and "
            "`aws s3api head-object --bucket BUCKET --key KEY` for the key that encrypts it (SSEKMSKeyId).",
            "`aws iam simulate-principal-policy --policy-source-arn ROLE --action-names s3:GetObject "
            "kms:Decrypt --resource-arns ARN`: which of the two is refused.",
        ),
        (
            "Grant the jobs' role s3:GetObject and s3:GetObjectVersion on the bucket, and kms:Decrypt on its "
            "key (infra/application.yaml).",
            _REEXECUTE,
            "Messages that were given up meanwhile: `capstone dlq list`, then `capstone dlq redrive --all`.",
        ),
        "`capstone doctor` reads the bucket again. " + _RECOVERY,
    ),
    RunbookPage(
        "source-archived",
        "The video is in an archive",
        "S3 holds the object but does not give it out: its storage class is Glacier or Deep Archive and it is "
        "not restored, or the KMS key that encrypts it is disabled. Only this object is concerned.",
        (
            _STATUS,
            "`aws s3api head-object --bucket BUCKET --key KEY`: StorageClass and Restore, or SSEKMSKeyId.",
            "`aws kms describe-key --key-id KEY_ID`: KeyState, if a key encrypts it.",
        ),
        (
            "Archived: `aws s3api restore-object --bucket BUCKET --key KEY --restore-request Days=7`. A "
            "completed restore starts the analysis.",
            "Key disabled: `aws kms enable-key --key-id KEY_ID`. Then: " + _REEXECUTE,
            "If a lifecycle rule archives videos before they are analysed, lengthen its days.",
        ),
        "The restored video becomes `done`.",
    ),
    RunbookPage(
        "source-changed",
        "The video was overwritten while it was analysed",
        "The object under that key is another one than at its upload. The newer upload has a run of its own, "
        "so nothing is lost.",
        ("`capstone status VIDEO`: the older upload is `superseded`, the newer one is under way or done.",),
        (
            "Nothing, if it happens now and then.",
            "If the back end writes a key several times, let it write each video under a key of its own: "
            "every overwriting costs an analysis.",
        ),
        "The newer upload becomes `done`.",
    ),
    RunbookPage(
        "gpu-out-of-memory",
        "The GPU has no room for even one picture",
        "Batches were halved down to one picture and it still did not fit: the model is too large for the "
        "GPU, or something else holds its memory.",
        (
            _LOGS + " Look for `CUDA memory` and the batch sizes that were tried.",
            _JOB,
            "On a machine of your own: `nvidia-smi` shows who holds memory.",
        ),
        (
            _BY_ITSELF,
            "If it fails again: a smaller model, or machines with more memory (GpuInstanceTypes of "
            "infra/compute.yaml).",
            "Locally: end the other process on the GPU, or set CAPSTONE_DEVICE=cpu.",
        ),
        "The retry ends well. On the dashboard OutOfMemoryBackoffs is back at 0.",
    ),
    RunbookPage(
        "gpu-error",
        "The GPU or its driver failed",
        "CUDA reported an error that is not about memory: a driver that hangs, a faulty device, or none "
        "where CAPSTONE_REQUIRE_GPU asks for one.",
        (
            _LOGS,
            _JOB + " Note the machine: containerInstanceArn.",
            "`nvidia-smi` and the kernel's lines with `Xid` on that machine, if it is still there.",
        ),
        (
            _BY_ITSELF + " A new machine usually cures it.",
            "If the same machine fails again and again, take it out: `aws ec2 terminate-instances "
            "--instance-ids INSTANCE`. AWS Batch starts another.",
            "If all machines fail after an update, go back to the image before it (docs/deploy.md).",
        ),
        "The retry ends well on another machine.",
    ),
    RunbookPage(
        "model-unavailable",
        "The detection model cannot be loaded",
        "The model's file is missing, is another than CAPSTONE_MODEL_SHA256 says, or cannot be read by this "
        "version. No video can be analysed; after CAPSTONE_PAUSE_AFTER_FAILURES failures intake pauses "
        "itself.",
        (
            "`capstone doctor`: its line `model` says what is wrong with which file.",
            "A model in S3: `aws s3api head-object --bucket BUCKET --key KEY`.",
            "Was CAPSTONE_MODEL or the image changed lately? `aws ecs describe-task-definition "
            "--task-definition capstone-daemon` shows what runs.",
        ),
        (
            "Put the file back, or correct CAPSTONE_MODEL and CAPSTONE_MODEL_SHA256 (parameters Model and "
            "ModelSha256 of infra/application.yaml), and deploy.",
            _REEXECUTE,
            "Intake tries one upload now and then and resumes by itself; `capstone intake resume` does it at "
            "once.",
        ),
        "`capstone doctor` passes for the model, messages leave the queue again. " + _RECOVERY,
    ),
    RunbookPage(
        "database-unavailable",
        "The event store does not answer",
        "PostgreSQL with the events cannot be reached, refuses connections, or is in read-only or start-up "
        "mode. While it is away no message is taken from the queue: uploads wait there and are not lost.",
        (
            "`capstone doctor`: its line `database` has the server's own words.",
            "`aws rds describe-db-instances --db-instance-identifier capstone`: is it `available`, is its "
            "storage full?",
            "`aws rds describe-events --source-type db-instance --source-identifier capstone --duration 60`: "
            "a restart, a failover, maintenance.",
            "`aws ec2 describe-security-groups --filters Name=group-name,Values='capstone-*'`: may the tasks "
            "and jobs reach port 5432?",
        ),
        (
            "Stopped: `aws rds start-db-instance --db-instance-identifier capstone`. Hanging: `aws rds "
            "reboot-db-instance --db-instance-identifier capstone`.",
            "Out of connections or storage: see those pages.",
            "Locally: `capstone dev` starts it again; its log is .capstone/logs/postgres.log.",
            _BY_ITSELF + " Detections are finished by then, and only publishing is repeated.",
        ),
        "The sensor's ticks succeed, the queue drains within minutes. " + _RECOVERY,
    ),
    RunbookPage(
        "storage-unavailable",
        "S3 does not answer",
        "Reading or writing objects failed after retries within the run: the network, S3 itself, or a full "
        "disk where CAPSTONE_DERIVED_URL is a folder.",
        (
            "`capstone doctor`: its lines `s3 raw` and `s3 derived`.",
            _LOGS,
            "AWS's health page of the region; the NAT gateway's and the S3 endpoint's routes: "
            "`aws ec2 describe-vpc-endpoints`.",
        ),
        (
            "Locally: free disk space, and start the stack again if the emulator has ended.",
            _BY_ITSELF,
            "When the budget is used up: " + _REEXECUTE,
        ),
        "`capstone doctor` passes for both buckets. " + _RECOVERY,
    ),
    RunbookPage(
        "disk-full",
        "A disk is full",
        "A worker could not write: its machine's disk, or the folder that CAPSTONE_DERIVED_URL names, has no "
        "space left or its quota is used up.",
        (
            _STATUS + " The sentence names the file.",
            "On a machine of your own: `df -h`, then `du -sh .capstone/*` and the temporary folder.",
            _JOB,
        ),
        (
            "Locally: free space; `capstone retention` deletes what the retention settings allow.",
            "On AWS: raise DiskGiB of infra/compute.yaml and deploy.",
            _BY_ITSELF,
        ),
        "The retry ends well. " + _RECOVERY,
    ),
    RunbookPage(
        "code-server-unreachable",
        "The code server does not answer",
        "Dagster could not launch a run, because the process that serves this project's definitions does not "
        "answer: it is restarting, overloaded, or its code cannot be imported. Runs wait in the queue first; "
        "one that fails for this has not begun.",
        (
            "In Dagster's UI, Deployment, Code locations: its status, and the error if the code cannot be "
            "imported.",
            "`capstone doctor`: reads every setting; a wrong one keeps the code from loading.",
            _DAEMON_EVENTS,
        ),
        (
            "Since an update: go back to the image before it (docs/deploy.md, Going back).",
            "Locally: end `capstone dev` and start it again.",
            _BY_ITSELF,
        ),
        "The code location loads, and queued runs are launched. " + _RECOVERY,
    ),
    RunbookPage(
        "permission-denied",
        "Something is refused by its permissions",
        "AWS or PostgreSQL answered that this role may not do what the message names. It does not pass by "
        "itself.",
        (
            _STATUS + " The sentence names the action and the resource.",
            "`capstone doctor`: which services refuse.",
            "`aws sts get-caller-identity` and `aws iam simulate-principal-policy --policy-source-arn ROLE "
            "--action-names ACTION --resource-arns ARN`.",
            "For the database: who owns the tables? Only the daemon's first container makes roles and "
            "grants.",
        ),
        (
            "Grant what the message names in infra/application.yaml, and deploy; a change by hand is undone "
            "by the next deployment.",
            _REEXECUTE,
            "Messages that were given up meanwhile: `capstone dlq list`, then `capstone dlq redrive --all`.",
            "Intake resumes by itself with a trial run; `capstone intake resume` does it at once.",
        ),
        "`capstone doctor` passes. " + _RECOVERY,
    ),
    RunbookPage(
        "timeout",
        "A run took longer than it may",
        "The job's time limit was reached, or an answer did not come in time. The worker was told to stop; "
        "nothing of it is visible to consumers.",
        (
            _LOGS + " The five steps have their elapsed times; which one did not end?",
            _JOB,
            "On the dashboard: frames per second, GPU utilisation, database latency at that time.",
        ),
        (
            "A long video that made progress: raise GpuJobTimeoutSeconds (infra/application.yaml) and "
            "re-execute.",
            "No progress: the step that hangs tells where to look; a run on the CPU by mistake is some ten "
            "times slower (CpuFallbacks).",
            _BY_ITSELF,
        ),
        "The retry ends well within its limit.",
    ),
    RunbookPage(
        "capacity",
        "No machine came in time",
        "AWS Batch found no machine for the job: the quota is used up, spot capacity is short, or AWS "
        "throttled the submission. Uploads wait and are not lost.",
        (
            "`aws batch list-jobs --job-queue capstone-gpu --job-status RUNNABLE`, then " + _JOB,
            "`aws batch describe-compute-environments`: status and statusReason; is desiredvCpus at "
            "maxvCpus?",
            "`aws service-quotas list-service-quotas --service-code ec2`: the lines with `G and VT`.",
        ),
        (
            "Short of spot machines: wait, or allow more types (GpuInstanceTypes of infra/compute.yaml).",
            "At the quota: `aws service-quotas request-service-quota-increase --service-code ec2 "
            "--quota-code CODE --desired-value VCPUS`.",
            "At maxvCpus: raise GpuMaxVcpus and deploy.",
            _BY_ITSELF,
        ),
        "Jobs leave RUNNABLE; the videos' state turns from `waiting-for-compute` to `running`.",
    ),
    RunbookPage(
        "container-start",
        "The job's container does not start",
        "The image could not be pulled or its command not be executed, a secret could not be read, or the "
        "machine's disk is full. Locally: the run's process did not start.",
        (
            _JOB + " container.reason has the agent's words.",
            "`aws ecr describe-images --repository-name capstone`: is the tag that the job definition names "
            "there?",
            "`aws batch describe-job-definitions --job-definition-name capstone-gpu --status ACTIVE`.",
        ),
        (
            "The image is missing: push it again, or deploy the tag that was there (docs/deploy.md).",
            "CannotPullContainerError with a time-out: the NAT gateway or the registry's endpoint.",
            "No space left on device: raise DiskGiB of infra/compute.yaml.",
            _BY_ITSELF,
        ),
        "The next job reaches RUNNING. " + _RECOVERY,
    ),
    RunbookPage(
        "worker-lost",
        "A worker ended without a word",
        "The process or container of a run was killed, mostly for memory, or its machine was taken away. "
        "Dagster starts such a run again twice by itself; finished detections are kept.",
        (
            _JOB + " Exit code 137 is memory; `Host EC2` is a machine that was taken away.",
            _LOGS,
            "In Dagster's UI, the run's last engine events quote the container's last lines.",
        ),
        (
            "A spot machine that was reclaimed: nothing.",
            "Memory, again and again: raise GpuJobMemoryMiB or CpuJobMemoryMiB (infra/application.yaml).",
            "Locally: look for the kernel's out-of-memory killer, and run fewer videos at once.",
        ),
        "The retry, whose run names this one as its parent, ends well.",
    ),
    RunbookPage(
        "configuration",
        "A setting is wrong",
        "A setting, a run's configuration or a job definition asks for what cannot be. It does not pass by "
        "itself.",
        (
            _STATUS + " The sentence names the variable, the value and what is allowed.",
            "`capstone doctor`: reads every setting, and names variables that change nothing.",
        ),
        (
            "Correct it where it is set: the parameter of infra/application.yaml, or the shell locally. "
            "Deploy or restart.",
            _REEXECUTE,
        ),
        "`capstone doctor` passes for the settings.",
    ),
    RunbookPage(
        "internal",
        "A defect of this program",
        "Something went wrong that the program does not know. It is not tried again by itself.",
        (
            _LOGS,
            "In Dagster's UI: the failed step's stack trace.",
            "Is it one video or every video? `capstone status`.",
        ),
        (
            "Since an update, every video: go back to the image before it (docs/deploy.md, Going back).",
            "One video: report its run's log and, if you may, the video.",
        ),
        "Re-executed with a corrected version, the video becomes `done`.",
    ),
)

SYSTEM_PAGES: tuple[RunbookPage, ...] = (
    RunbookPage(
        "high-failure-rate",
        "More than a tenth of the runs fail",
        "Among enough runs to judge, over 10 % failed.",
        (
            "The dashboard's failures by class, or `capstone alerts`: one class that stands out is the "
            "cause; go to its page.",
            "`capstone status --limit 50`: do the failed ones share a camera, a folder, a start time?",
        ),
        (
            "One class: its page.",
            "Several since one moment: what was deployed then? `aws cloudformation describe-stack-events "
            "--stack-name capstone-application`.",
        ),
        "The rate falls below 10 % as new runs end well.",
    ),
    RunbookPage(
        "long-running",
        "A run is overdue",
        "A run is older than CAPSTONE_RUN_LIMIT_MINUTES, or for a long video older than "
        "CAPSTONE_RUN_LIMIT_PER_VIDEO seconds for each of its seconds. It may hang and hold a GPU.",
        (
            "`capstone status`: its progress; does it still move?",
            _LOGS,
            _JOB,
        ),
        (
            "It moves, but slowly: leave it; see whether it fell back to the CPU (`capstone logs VIDEO "
            "--level WARNING`).",
            "It does not move: in Dagster's UI, Terminate, then Re-execute, From failure. If that has no "
            "effect: `aws batch terminate-job --job-id JOB --reason hangs`.",
            "Long videos as a rule: raise the two settings.",
        ),
        "The run ends, or the next one takes its place on the GPU.",
    ),
    RunbookPage(
        "duplicate-job",
        "The same GPU work was started twice",
        "Two runs made the same detections (one detection id), which three fences should prevent. Nothing is "
        "published twice, but GPU time is burnt. Intake has paused itself.",
        (
            "`capstone alerts`: the notice names the second run. Its tags `capstone/duplicate_of` and "
            "`capstone/detection_id` name the other one and the detections.",
            "In Dagster's UI: how was the second run started? By the sensor, from the UI, by a backfill?",
            "`capstone logs VIDEO --tail 50`: duplicates prevented and not prevented.",
        ),
        (
            "The two runs' videos are the same file, uploaded twice at the same time under two names: "
            "nothing is broken. Intake resumes by itself, or by `capstone intake resume`.",
            "Started by hand on purpose: `capstone intake resume`.",
            "Two daemons on one queue: stop one. `aws ecs describe-services --cluster capstone --services "
            "capstone-daemon` must show one running task.",
            "Dagster's runs were deleted while messages waited: let those finish, then `capstone intake "
            "resume`.",
            "Otherwise it is a defect: keep intake paused and report both runs' logs.",
        ),
        "`capstone intake status` says that intake runs; no further notice comes.",
    ),
    RunbookPage(
        "sensor-failing",
        "A sensor's ticks fail",
        "A part of the system that runs every few seconds fails each time: intake, status, re-execution. No "
        "run fails of it, so that nothing else would tell.",
        (
            "The notice quotes the tick's error; Dagster's UI, Automation, the sensor's ticks has the stack "
            "trace.",
            "`capstone doctor`.",
            "`aws logs filter-log-events --log-group-name /capstone/video-analysis --filter-pattern tick`.",
        ),
        (
            "An error of a class above (database, permission, storage): its page.",
            "A sensor that somebody switched off or an old code location: reload it in the UI, Deployment.",
            "Anything else is a defect: report the stack trace; restart the daemon, `aws ecs update-service "
            "--cluster capstone --service capstone-daemon --force-new-deployment`.",
        ),
        "Ticks succeed again. " + _RECOVERY,
    ),
    RunbookPage(
        "dead-letters",
        "Messages were given up",
        "Messages could not be understood, or were delivered 20 times without success. Their videos are not "
        "analysed.",
        (
            "`capstone dlq list`: each with its reason.",
            "`capstone dlq show MESSAGE`: its text.",
        ),
        (
            "Malformed: correct whoever writes them; README, Messages, has the form. Send the right ones.",
            "Delivered too often: mend the cause (permissions, mostly), then `capstone dlq redrive --all`.",
            "Not wanted: leave them, they vanish after 14 days; or redrive nothing and purge: `aws sqs "
            "purge-queue --queue-url URL`.",
        ),
        "`capstone dlq list` is empty.",
    ),
    RunbookPage(
        "intake-paused",
        "Intake has paused itself",
        "The last runs failed for one systemic reason, or GPU work was doubled. New messages stay in the "
        "queue, where they cost nothing; now and then one upload is let through to see whether it is over.",
        (
            "`capstone intake status`: since when, for which class, when the next trial comes.",
            "The page of that class.",
        ),
        (
            "Mend the cause: the next trial that succeeds resumes intake by itself.",
            "Mended already: `capstone intake resume`. To hold uploads back on purpose: `capstone intake "
            "pause`.",
        ),
        "A notice says that intake has resumed and how long it was paused; the backlog drains.",
    ),
    RunbookPage(
        "queue-age",
        "Uploads wait long in the queue",
        "The oldest message has waited for longer than it should: intake is paused, its sensor fails, or "
        "runs are too many for the machines.",
        (
            "`aws sqs get-queue-attributes --queue-url URL --attribute-names All`: how many wait.",
            "`capstone intake status`, then Dagster's UI, Automation: do the upload sensor's ticks succeed?",
            "`capstone status`: are many `queued` or `waiting-for-compute`?",
        ),
        (
            "Paused: [intake-paused](#intake-paused). Ticks fail: [sensor-failing](#sensor-failing).",
            "Too many runs: more machines (GpuMaxVcpus of infra/compute.yaml), or wait; "
            "CAPSTONE_MAX_QUEUED_RUNS is how many are taken from the queue at once.",
            "No ticks at all: [daemon-silent](#daemon-silent).",
        ),
        "The age falls as the backlog drains.",
    ),
    RunbookPage(
        "no-success",
        "Nothing succeeds although uploads arrive",
        "Uploads wait or run, and for hours no run has ended well. Everything may look alive.",
        (
            "`capstone status`: what state are they in?",
            "`capstone intake status` and `capstone alerts`.",
            "`aws batch list-jobs --job-queue capstone-gpu --job-status RUNNABLE` for runs that wait.",
        ),
        (
            "Failed: the class's page. Waiting: [capacity](#capacity). Running for long: "
            "[long-running](#long-running). Not taken from the queue: [queue-age](#queue-age).",
        ),
        "A run ends well.",
    ),
    RunbookPage(
        "waiting-for-capacity",
        "Runs wait long for a machine",
        "Runs were launched and their jobs have had no machine for a while. They are not lost: after four "
        "hours they fail as `capacity` and are started again.",
        (
            "`capstone status`: the message of `waiting-for-compute` has AWS Batch's reason.",
            "`aws batch describe-compute-environments`: status and statusReason.",
        ),
        (
            "A first machine takes minutes to start and to pull the image: wait for ten.",
            "Longer: [capacity](#capacity).",
        ),
        "A recovery notice comes when none waits that long any more.",
    ),
    RunbookPage(
        "daemon-silent",
        "The daemon gives no sign of life",
        "Dagster's daemon does not answer, or the database that holds Dagster's storage is away. No upload "
        "becomes a run and no other notice can be sent: only this alarm, from outside, tells.",
        (
            _DAEMON_EVENTS,
            "`aws logs filter-log-events --log-group-name /ecs/capstone-daemon --filter-pattern ERROR`.",
            "`aws rds describe-db-instances --db-instance-identifier capstone`: Dagster's storage is there.",
        ),
        (
            "The database is away: [database-unavailable](#database-unavailable).",
            "Tasks that stop: stoppedReason names it (image, secret, memory); mend that, or go back to the "
            "image before.",
            "A task that runs and is silent: `aws ecs update-service --cluster capstone --service "
            "capstone-daemon --force-new-deployment`.",
            "Locally: `capstone dev` says which process ended; its log is in .capstone/logs.",
        ),
        "The heartbeat is back within two minutes, and the backlog drains.",
    ),
    RunbookPage(
        "webserver-silent",
        "The web server gives no sign of life",
        "Dagster's pages cannot be opened. Videos are analysed all the same.",
        (
            _DAEMON_EVENTS,
            "`aws logs filter-log-events --log-group-name /ecs/capstone-webserver --filter-pattern ERROR`.",
        ),
        (
            "`aws ecs update-service --cluster capstone --service capstone-webserver "
            "--force-new-deployment`.",
            "If it comes back only to stop again: memory ([ecs-memory](#ecs-memory)) or the database "
            "([database-unavailable](#database-unavailable)).",
        ),
        "The heartbeat is back, the pages open.",
    ),
    RunbookPage(
        "ecs-cpu",
        "A service uses its processor up",
        "The web server or the daemon has used more than 80 % of its vCPUs for ten minutes: pages and ticks "
        "become slow.",
        (
            _DAEMON_EVENTS,
            "The dashboard's sensor ticks: do they take longer than before? Has the number of runs grown?",
        ),
        (
            "The web server: it scales by itself up to WebserverMaxTasks (infra/application.yaml); raise "
            "that.",
            "The daemon: there must be one only; give its task more vCPUs (infra/application.yaml), and look "
            "for a sensor whose tick does too much.",
        ),
        "Below 70 % for two periods.",
    ),
    RunbookPage(
        "ecs-memory",
        "A service uses its memory up",
        "The web server or the daemon has used more than 85 % of its memory for ten minutes; at 100 % it is "
        "killed and started again.",
        (
            _DAEMON_EVENTS,
            "Does it grow steadily since its start, or did it jump with a deployment?",
        ),
        (
            "Now: `aws ecs update-service --cluster capstone --service capstone-daemon "
            "--force-new-deployment`, or capstone-webserver.",
            "Then: more memory for its task in infra/application.yaml; steady growth is a defect to report.",
        ),
        "Below 80 % for two periods.",
    ),
    RunbookPage(
        "database-cpu",
        "The database uses its processor up",
        "PostgreSQL's machine has been busy for long; statements become slow, then time out.",
        (
            "The saved query `slowest-statements`; `pg_stat_statements` in the database.",
            "`aws rds describe-db-instances --db-instance-identifier capstone`: a db.t3 that has used up its "
            "credits shows CPUCreditBalance 0.",
        ),
        (
            "One statement: whose is it? A consumer's report belongs on the replica (ReadReplica of "
            "infra/data.yaml).",
            "Growth: a larger DatabaseClass.",
        ),
        "Below 70 % for two periods.",
    ),
    RunbookPage(
        "database-connections",
        "The database runs out of connections",
        "More than 80 connections are open; a db.t3.small allows some 200, and then every new one is "
        "refused.",
        (
            "In the database: `SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP "
            "BY 1, 2, 3`.",
            "How many jobs run? Each takes up to a dozen.",
        ),
        (
            "Idle ones of one consumer: end them with pg_terminate_backend, and bound its pool.",
            "Many jobs: a larger DatabaseClass, or a smaller GpuMaxVcpus.",
        ),
        "Below 50.",
    ),
    RunbookPage(
        "database-storage",
        "The database's disk is nearly full",
        "Less than 2 GiB are free. When it is full PostgreSQL stops, and with it everything.",
        (
            "`aws rds describe-db-instances --db-instance-identifier capstone`: AllocatedStorage against "
            "MaxAllocatedStorage, to which it grows by itself.",
            "Which tables? `SELECT relname, pg_size_pretty(pg_total_relation_size(oid)) FROM pg_class ORDER "
            "BY pg_total_relation_size(oid) DESC LIMIT 10`. Dagster's event_logs, mostly.",
        ),
        (
            "Raise DatabaseMaxStorageGiB of infra/data.yaml and deploy; RDS grows once in six hours at most, "
            "so act now.",
            "Old runs of Dagster can be deleted in its UI; their results stay.",
        ),
        "More than 10 % is free.",
    ),
    RunbookPage(
        "load-balancer-errors",
        "The web server answers with errors",
        "More than 10 answers in five minutes were 5xx.",
        (
            "`aws elbv2 describe-target-groups --names capstone-webserver`, then `aws elbv2 "
            "describe-target-health --target-group-arn ARN`.",
            "`aws logs filter-log-events --log-group-name /ecs/capstone-webserver --filter-pattern "
            "Traceback`.",
        ),
        (
            "No healthy target: [webserver-silent](#webserver-silent).",
            "Healthy targets: the database is slow or away ([database-unavailable](#database-unavailable), "
            "[database-cpu](#database-cpu)).",
        ),
        "No 5xx for two periods.",
    ),
    RunbookPage(
        "detections-unusual",
        "Videos have unusually many or few detections",
        "The number of detections in a video left the band that CloudWatch learnt. Nothing failed: a camera "
        "may be covered or moved, the model changed, or there really are more people.",
        (
            "The contact sheets of the last videos, in Dagster's UI at the asset `detections`.",
            "Is it one camera? `capstone events --video VIDEO`.",
            "Was the model or a threshold changed?",
        ),
        (
            "A camera: whoever looks after it.",
            "A model: go back to the one before.",
            "True: nothing; the band learns.",
        ),
        "The value is within the band again.",
    ),
    RunbookPage(
        "notices-failed",
        "Notices cannot be sent",
        "SNS refuses or does not answer. Notices are kept and tried again, but nobody is told of anything "
        "meanwhile.",
        (
            "`capstone doctor`: its lines `sns` and `notices`.",
            "Dagster's UI, Automation, the sensor `alerts`: its ticks say what is kept and why.",
            "`aws sns get-topic-attributes --topic-arn ARN`, `aws sns list-subscriptions-by-topic "
            "--topic-arn ARN`: is a subscription still PendingConfirmation?",
        ),
        (
            "Correct CAPSTONE_ALERT_TOPIC_ARN, or grant the daemon's role sns:Publish on the topic (and kms "
            "permissions if it is encrypted).",
            "Nobody receives them: `aws sns subscribe --topic-arn ARN --protocol email "
            "--notification-endpoint ADDRESS`.",
        ),
        "Everything that was kept arrives, oldest first.",
    ),
    RunbookPage(
        "outbox-stuck",
        "Other systems are not told",
        "Notices of uploads (`video.received`, `video.analyzed`, `video.failed`) wait in the outbox: SNS "
        "takes none, or refuses one, which holds back its own video's. Results are published all the same, "
        "and `current_status` is true; who waits for notices does not know.",
        (
            "`capstone doctor`: its line `outbox` quotes SNS's refusal and counts what waits.",
            "Dagster's UI, Automation, the sensor `outbox`: is it on, and what do its ticks say?",
            "`aws sns get-topic-attributes --topic-arn ARN`: does the topic exist, is it encrypted?",
        ),
        (
            "None leaves: correct CAPSTONE_NOTICE_TOPIC_ARN, or grant the daemon's role sns:Publish on the "
            "topic (and kms permissions if it is encrypted). They leave within a minute then.",
            "One is refused alone: the outbox has it with SNS's words, `SELECT notice_id, kind, video_id, "
            "refusal FROM capstone.outbox WHERE sent_at IS NULL AND refusal IS NOT NULL`. It is tried every "
            "ten minutes. To give it up, so that its video's later ones leave: `UPDATE capstone.outbox SET "
            "sent_at = now() WHERE notice_id = ID`.",
        ),
        "Everything that waited arrives, in order for each video; OutboxAge is 0.",
    ),
    RunbookPage(
        "telemetry-dropped",
        "Log lines or metrics are given up",
        "The spool on disk is full, or CloudWatch cannot be reached for long. Videos are analysed all the "
        "same; what is missing is the account of it.",
        (
            "`capstone doctor`: its line `cloudwatch`, and what the shipper says.",
            "The first warning in the daemon's log names the reason and the remedy.",
        ),
        (
            "Grant logs:PutLogEvents and cloudwatch:PutMetricData, or mend the network.",
            "A long outage: raise CAPSTONE_LOG_SPOOL_MB.",
        ),
        "TelemetryDropped is 0.",
    ),
)

PAGES: Mapping[str, RunbookPage] = {page.anchor: page for page in (*FAILURE_PAGES, *SYSTEM_PAGES)}
