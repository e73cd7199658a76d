"""CodeBuild, of which moto has only the API: a build really runs the buildspec, in an empty folder.

Its `docker` and `aws` are fake_docker_cli.py's: what it pushes is in moto's ECR, its output in moto's logs.
"""

import contextlib
import io
import os
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import yaml

from fake_aws_answers import REGION, Problem

GROUP = "/aws/codebuild/fastai-sagemaker-pets"


class CodeBuild:
    """An account's builds. `tools` is a folder of programs for their PATH."""

    def __init__(self, cloud, folder: Path, tools: Path) -> None:
        self.cloud, self.folder, self.tools = cloud, folder, tools
        self.builds: dict[str, dict] = {}
        self.requests: list[dict] = []
        self.threads: list[threading.Thread] = []
        self.hold = threading.Event()  # a build finishes once it is set
        self.hold.set()

    def end(self) -> None:
        """Wait until every build has finished."""
        self.hold.set()
        for thread in self.threads:
            thread.join(60)

    @property
    def answers(self) -> dict:
        """For fake_aws_answers.ANSWERS."""
        return {
            "codebuild:StartBuild": self.start,
            "codebuild:BatchGetBuilds": self.describe,
            "codebuild:ListBuildsForProject": self.list,
            "codebuild:StopBuild": self.stop,
        }

    def start(self, cloud, request, given):
        if not cloud.client("codebuild").batch_get_projects(names=[given["projectName"]])["projects"]:
            return Problem(f"Project cannot be found: {given['projectName']}")
        self.requests.append(given)
        number = f"{given['projectName']}:{len(self.builds)}"
        self.builds[number] = {
            "id": number,
            "buildStatus": "IN_PROGRESS",
            "currentPhase": "QUEUED",
            "environment": {"environmentVariables": given["environmentVariablesOverride"]},
            "logs": {},
            "phases": [],
        }
        self.threads.append(threading.Thread(target=self.run, args=(self.builds[number], given), daemon=True))
        self.threads[-1].start()
        return {"build": self.builds[number]}

    def describe(self, cloud, request, given):
        return {"builds": [self.builds[number] for number in given["ids"]]}

    def list(self, cloud, request, given):
        return {"ids": list(reversed(self.builds))}

    def stop(self, cloud, request, given):
        self.builds[given["id"]]["buildStatus"] = "STOPPED"
        self.hold.set()
        return {"build": self.builds[given["id"]]}

    def run(self, build: dict, given: dict) -> None:
        """A build's machine: the source unpacked, then every command of every phase."""
        bucket, _, key = given["sourceLocationOverride"].partition("/")
        packed = self.cloud.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        place = self.folder / f"build-{len(self.requests)}"
        zipfile.ZipFile(io.BytesIO(packed)).extractall(place)
        stream = {"logGroupName": GROUP, "logStreamName": build["id"].partition(":")[2]}
        logs = self.cloud.client("logs")
        known = logs.describe_log_groups(logGroupNamePrefix=GROUP)["logGroups"]
        if GROUP not in [one["logGroupName"] for one in known]:
            logs.create_log_group(logGroupName=GROUP)
        logs.create_log_stream(**stream)
        build["logs"] = {"groupName": stream["logGroupName"], "streamName": stream["logStreamName"]}
        build["currentPhase"] = "BUILD"

        def write(line: dict) -> None:
            with contextlib.suppress(logs.exceptions.ResourceNotFoundException):  # deleted meanwhile
                logs.put_log_events(**stream, logEvents=[line])

        code = self.commands(place, given, write)
        self.hold.wait(60)
        if build["buildStatus"] == "IN_PROGRESS":
            said = {
                "statusCode": "COMMAND_EXECUTION_ERROR",
                "message": f"Error while executing: exit status {code}",
            }
            status = "FAILED" if code else "SUCCEEDED"
            build["phases"].append(
                {"phaseType": "BUILD", "phaseStatus": status, "contexts": [said] if code else []}
            )
            build |= {"buildStatus": status, "currentPhase": "COMPLETED"}

    def commands(self, place: Path, given: dict, write) -> int:
        """Run the buildspec's commands one after another until one fails; its exit code."""
        spec = yaml.safe_load(given["buildspecOverride"])
        variables = {one["name"]: one["value"] for one in given["environmentVariablesOverride"]}
        known = {"PATH": f"{self.tools}:{os.environ['PATH']}", "AWS_REGION": REGION, "HOME": str(place)}
        for name in ("DOCKER_HOST", "STANDIN", "FAIL", "MANIFEST", "PASSWORD"):
            known |= {name: os.environ[name]} if name in os.environ else {}
        lines = [line for phase in spec["phases"].values() for line in phase["commands"]]
        script = "\n".join(f"{line} || exit $?" for line in lines)
        command = [spec["env"]["shell"], "-c", script]
        environment = known | spec["env"]["variables"] | variables
        with subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as done:
            assert done.stdout is not None
            for line in done.stdout:
                write({"timestamp": int(time.time() * 1000), "message": line})
        return done.returncode
