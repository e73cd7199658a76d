"""An endpoint on SageMaker: `python deploy/endpoint.py deploy --project pets --build build/pets`.

`deploy` creates the endpoint, or updates it without downtime, and reports it live only after it has answered
a validation picture. The other verbs are status, logs, transform and destroy. All commands are safe to
interrupt and re-run (idempotent).
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from aws.client import connect, run_command
from aws.names import check_project
from lifecycle import batch, deploy, destroy, logs, settings, status


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for a terminal without the sparklines' characters
    args = arguments(argv)

    def run() -> int:
        check_project(args.project)
        return args.run(args)

    return run_command(run)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="An endpoint on SageMaker, from deploy to destroy.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def add_verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--project", required=True, help="names the endpoint")
        verb.add_argument("--build", type=Path, default=Path("build"), help="build/<project>")
        verb.set_defaults(run=run)
        return verb

    verb = add_verb("deploy", run_deploy, "create the endpoint, or update it without downtime")
    verb.add_argument("--rollback", action="store_true", help="return to the previous version")
    verb.add_argument("--check", action="store_true", help="check settings and roles only")
    settings.add_model_arguments(verb)
    settings.add_endpoint_arguments(verb)
    verb = add_verb("status", run_status, "what runs, its last hour, and its price")
    verb.add_argument("--all", action="store_true", help="every endpoint of this tool in the Region")
    verb.add_argument("--json", action="store_true", help="print JSON and nothing else")
    verb = add_verb("logs", run_logs, "the containers' log")
    verb.add_argument("--follow", action="store_true", help="print new lines until Ctrl-C")
    since = "how far back: 10m, 1h (default), 2d"
    verb.add_argument("--since", type=settings.duration_seconds, default=3600, help=since)
    verb = add_verb("destroy", run_destroy, "remove everything of the project")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    verb.add_argument("--data", action="store_true", help="also the archives, answers, images and logs")
    verb.add_argument("--bucket", help="of the data; default: the bucket that `invoke package` used")
    verb = add_verb("transform", run_transform, "predictions for every picture under an S3 prefix")
    settings.add_batch_arguments(verb)
    return parser.parse_args(argv)


def run_deploy(args: argparse.Namespace) -> int:
    """The verb `deploy`."""
    checked = settings.check(args)  # before the first request to AWS
    verb = deploy.roll_back if args.rollback else deploy.check if args.check else deploy.deploy
    return verb(connect(), args.project, args.build, checked)


def run_status(args: argparse.Namespace) -> int:
    """The verb `status`."""
    return status.show(connect(), args.project, everything=args.all, as_json=args.json)


def run_logs(args: argparse.Namespace) -> int:
    """The verb `logs`; Ctrl-C is the normal end of --follow."""
    aws = connect()
    try:
        return logs.show(aws, args.project, args.since, follow=args.follow)
    except KeyboardInterrupt:
        return 0 if args.follow else 130


def run_destroy(args: argparse.Namespace) -> int:
    """The verb `destroy`."""
    bucket = args.bucket or destroy.uploaded_bucket(args.build)
    return destroy.destroy(connect(), args.project, bucket, yes=args.yes, data=args.data)


def run_transform(args: argparse.Namespace) -> int:
    """The verb `transform`."""
    checked = settings.check_batch(args)
    return batch.run(connect(), args.project, args.build, checked)


if __name__ == "__main__":
    raise SystemExit(main())
