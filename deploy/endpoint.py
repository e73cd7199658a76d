"""An endpoint's life on SageMaker: `python deploy/endpoint.py deploy --project pets --build build/pets`.

deploy makes it, or changes it without a pause, and says "live" only after it has answered a real picture.
status, logs, transform and destroy are its other verbs. Every one of them may be stopped and repeated.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import destroy
import gate
import logs
import preflight
import registry
import settings
import status
import transform
import ttl
from apply import arrange_end, arrange_scaling, arrived, make, mark_live, rest, undone, update
from aws import Aws, Failure, Stop, connect, guarded
from diagnose import explain
from grey import grey_picture
from hourly import of_variant, span
from images import is_gpu
from names import check_project, log_group
from plan import Plan, check_instance, make_plan, read_archive
from role import find_role
from state import State, describe_config, kind_of, variant_of


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    sys.stdout.reconfigure(errors="replace")
    args = arguments(argv)

    def run() -> int:
        check_project(args.project)
        if args.verb == "deploy":
            settings.check(args)
        return args.run(connect(), args)

    return guarded(run)


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
    settings.add_model_arguments(one)
    settings.add_endpoint_arguments(one)
    one = verb("status", show_status, "what runs, how it does, what it costs")
    one.add_argument("--all", action="store_true", help="every endpoint that this tool made here")
    one.add_argument("--json", action="store_true", help="print JSON and nothing else")
    one = verb("logs", show_logs, "what the containers write")
    one.add_argument("--follow", action="store_true", help="and what they will write, until Ctrl-C")
    one.add_argument(
        "--since", type=settings.duration, default=3600, help="how far back: 10m, 1h (default), 2d"
    )
    one = verb("destroy", end, "remove everything of the project")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.add_argument("--data", action="store_true", help="the archives, answers, images and logs as well")
    one.add_argument("--bucket", help="where data is; default: what `invoke package` wrote down")
    transform.add_arguments(verb("transform", transform.transform, "answer every picture under an S3 prefix"))
    return parser.parse_args(argv)


def show_status(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `status`."""
    return status.show(aws, args.project, args.all, args.json)


def show_logs(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `logs`; Ctrl-C is how following it ends."""
    try:
        return logs.show(aws, args.project, args.since, args.follow)
    except KeyboardInterrupt:
        return 0 if args.follow else 130


def end(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `destroy`."""
    bucket = args.bucket or destroy.bucket_of(args.build)
    return destroy.destroy(aws, args.project, bucket, args.yes, args.data)


def deploy(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `deploy`: plan, price, preflight, make, gate; what fails is undone."""
    project = args.project
    if args.rollback:
        return roll_back(aws, args)
    if args.check:
        gate.question(args.build)
        if args.kind != "serverless":
            check_instance(aws, args.instance)
        find_role(aws, args.role, project)
        ttl.check(aws, project, args.ttl)
        return 0
    archive = read_archive(args.build, aws)
    question = gate.question(args.build)
    plan = make_plan(aws, project, archive, find_role(aws, args.role, project), args)
    schedule_role = ttl.check(aws, project, args.ttl)
    before = rest(aws, project)
    new = before.config != plan.name
    refuse_another_kind(aws, plan, before)
    announce(aws, plan, before)
    note_an_idle_gpu(args.build, plan.settings)
    if new:
        for note in preflight.check(aws, plan, instances_at_once(aws, plan, before)):
            print(f"note: {note}")
    try:
        make(aws, plan, before, schedule_role)
        said = pass_gate(aws, project, args.kind, archive.bucket, question)
        mark_live(aws, project, plan.name, before, plan.tags)
    except Failure as error:
        raise undone(aws, before, project, plan.name, plan.model["ModelName"], error) from error
    arrange_scaling(aws, project, args)
    print(f"{project} is live{'' if new else ', unchanged'}: {said}")
    print(f"ask it: invoke predict PICTURE --endpoint {project}; end it: invoke destroy")
    return 0


def announce(aws: Aws, plan: Plan, before: State) -> None:
    """What will be done, what it costs, and how it ends, before anything is done."""
    what = "make" if before.endpoint is None else "change" if before.config != plan.name else "keep"
    print(f"{what} endpoint {plan.project} in {aws.region}: {plan.settings.kind}, {plan.name}")
    say_price(aws, plan.config, plan.settings)


def note_an_idle_gpu(build: Path, settings: argparse.Namespace) -> None:
    """A GPU costs several times a processor's price, and a model that was packaged for one leaves it idle."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        use = json.loads((build / "model" / "model.json").read_text())["precision"]["use"]
        if is_gpu(settings.instance) and not any(mode.startswith("cuda") for mode in use):
            text = f"the GPU of {settings.instance} would idle, for this model was packaged for processors"
            print(f"note: {text}: `invoke package --device cuda`", flush=True)


def say_price(aws: Aws, config: dict, args: argparse.Namespace) -> None:
    """What an endpoint with this configuration costs, at most too, and the command that ends it."""
    variant = variant_of(config)
    cost = of_variant(aws.region, kind_of(config), variant)
    said = cost.sentence
    if args.max and "InitialInstanceCount" in variant:
        said += "\n" + span(cost, variant["InitialInstanceCount"], args.min, args.max)
    print(f"{said}; `invoke destroy` ends it", flush=True)


def refuse_another_kind(aws: Aws, plan: Plan, before: State) -> None:
    """Raises Stop for an update that AWS cannot make."""
    old = describe_config(aws, before.config) if before.config else None
    if old and kind_of(old) != plan.settings.kind:
        text = f"an endpoint that is {kind_of(old)} cannot become {plan.settings.kind}"
        raise Stop(2, f"{text}: end it with `invoke destroy` first, or give your project another name")


def instances_at_once(aws: Aws, plan: Plan, before: State) -> int:
    """The most instances of the wanted type that run at a time: an update starts the new beside the old."""
    if plan.settings.kind == "serverless":
        return 0
    old = describe_config(aws, before.config) if before.config else None
    same = old and variant_of(old).get("InstanceType") == plan.settings.instance
    running = variant_of(old)["InitialInstanceCount"] if same else 0
    return plan.settings.count + running


def pass_gate(aws: Aws, project: str, kind: str, bucket: str, question: gate.Question) -> str:
    """One sentence on the picture that was answered rightly. Raises Stop, with the log, if it was not."""
    start = datetime.now(UTC)
    passed, said = gate.ask(aws, project, kind, bucket, question)
    if not passed:
        text = explain(aws, log_group(project), said, start)
        raise Stop(1, f"the endpoint {project} runs, but it is not live: {text}")
    return said


def roll_back(aws: Aws, args: argparse.Namespace) -> int:
    """`deploy --rollback`: back to the configuration that was live before; twice is there and back again."""
    project = args.project
    schedule_role = ttl.check(aws, project, args.ttl)
    before = rest(aws, project)
    config = describe_config(aws, before.previous) if before.previous else None
    if before.endpoint is None or config is None:
        raise Stop(1, f"there is nothing that {project} served before: `invoke status` shows what it serves")
    name, model = config["EndpointConfigName"], variant_of(config)["ModelName"]
    container = aws("sagemaker").describe_model(ModelName=model)["PrimaryContainer"]
    bucket = container["ModelDataUrl"].removeprefix("s3://").partition("/")[0]
    registry.check_image(aws, project, container["Image"])
    print(f"change endpoint {project} in {aws.region} back to {name}")
    say_price(aws, config, args)
    start = datetime.now(UTC)
    try:
        arrange_end(aws, project, before, args.ttl, schedule_role)
        update(aws, project, config, before, args)
        arrived(aws, project, name, start, args)
        said = pass_gate(aws, project, kind_of(config), bucket, older_question(args.build, project, name))
        mark_live(aws, project, name, before, {})
    except Failure as error:
        raise undone(aws, before, project, name, model, error) from error
    arrange_scaling(aws, project, args)
    print(f"{project} is live with {name}: {said}")
    return 0


def older_question(build: Path, project: str, config: str) -> gate.Question:
    """A picture for an archive that may not be the one in `build`: then any prediction will do."""
    try:
        packed = json.loads((build / "uploaded.json").read_text())["sha256"]
        return gate.question(build, compare=config.startswith(f"{project}-{packed[:12]}-"))
    except (Stop, OSError, ValueError, KeyError):
        return gate.Question("a grey picture", grey_picture(), None)


if __name__ == "__main__":
    raise SystemExit(main())
