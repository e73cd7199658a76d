"""An endpoint's life on SageMaker: `python deploy/endpoint.py deploy --project pets --build build/pets`.

deploy makes it, or changes it without a pause, and says "live" only after it has answered a real picture.
status, logs, transform and destroy are its other verbs. Every one of them may be stopped and repeated.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from aws.client import Aws, connect, run_command
from aws.names import check_project
from lifecycle import batch, destroy, logs, status
from lifecycle.deploy import deploy
from lifecycle.settings import add_endpoint_arguments, add_model_arguments, check, duration_seconds


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    sys.stdout.reconfigure(errors="replace")
    args = arguments(argv)

    def run() -> int:
        check_project(args.project)
        if args.verb == "deploy":
            check(args)
        return args.run(connect(), args)

    return run_command(run)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="An endpoint's whole life on SageMaker.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, run: Callable[[Aws, argparse.Namespace], int], said: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=said, description=said)
        one.add_argument("--project", required=True, help="names the endpoint")
        one.add_argument("--build", type=Path, default=Path("build"), help="build/<project>")
        one.set_defaults(run=run)
        return one

    one = verb("deploy", deploy, "make the endpoint, or change it without a pause")
    one.add_argument("--rollback", action="store_true", help="go back to what was served before")
    one.add_argument("--check", action="store_true", help="look at settings and roles, make nothing")
    add_model_arguments(one)
    add_endpoint_arguments(one)
    one = verb("status", run_status, "what runs, how it does, what it costs")
    one.add_argument("--all", action="store_true", help="every endpoint that this tool made here")
    one.add_argument("--json", action="store_true", help="print JSON and nothing else")
    one = verb("logs", run_logs, "what the containers write")
    one.add_argument("--follow", action="store_true", help="and what they will write, until Ctrl-C")
    one.add_argument(
        "--since", type=duration_seconds, default=3600, help="how far back: 10m, 1h (default), 2d"
    )
    one = verb("destroy", run_destroy, "remove everything of the project")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.add_argument("--data", action="store_true", help="the archives, answers, images and logs as well")
    one.add_argument("--bucket", help="where data is; default: what `invoke package` wrote down")
    batch.add_arguments(verb("transform", batch.run, "answer every picture under an S3 prefix"))
    return parser.parse_args(argv)


def run_status(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `status`."""
    return status.show(aws, args.project, args.all, args.json)


def run_logs(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `logs`; Ctrl-C is how following it ends."""
    try:
        return logs.show(aws, args.project, args.since, args.follow)
    except KeyboardInterrupt:
        return 0 if args.follow else 130


def run_destroy(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `destroy`."""
    bucket = args.bucket or destroy.uploaded_bucket(args.build)
    return destroy.destroy(aws, args.project, bucket, args.yes, args.data)


if __name__ == "__main__":
    raise SystemExit(main())
