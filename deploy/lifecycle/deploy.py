"""The verb `deploy`: plan, price, preflight, create or update, smoke test; what fails is rolled back."""

import argparse
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from aws.client import Aws, Failure
from aws.names import log_group
from aws.pricing import price_of_variant, price_range
from aws.roles import find_role
from common import CommandError, sample_image
from ecr import repository
from ecr.catalogue import is_gpu
from lifecycle import preflight, smoke_test, ttl
from lifecycle.apply import (
    apply_plan,
    apply_scaling,
    mark_live,
    restore_after_failure,
    set_deletion_time,
    update_endpoint,
    wait_until_idle,
    wait_until_serving,
)
from lifecycle.diagnose import explain
from lifecycle.plan import Plan, check_instance_type, make_plan, read_archive
from lifecycle.state import State, describe_config, kind_of, variant_of


def deploy(aws: Aws, args: argparse.Namespace) -> int:
    """The verb `deploy`: plan, price, preflight, make, gate; what fails is undone."""
    project = args.project
    if args.rollback:
        return roll_back(aws, args)
    if args.check:
        smoke_test.pick_image(args.build)
        if args.kind != "serverless":
            check_instance_type(aws, args.instance)
        find_role(aws, args.role, project)
        ttl.check(aws, project, args.ttl)
        return 0
    archive = read_archive(args.build, aws)
    question = smoke_test.pick_image(args.build)
    plan = make_plan(aws, project, archive, find_role(aws, args.role, project), args)
    schedule_role = ttl.check(aws, project, args.ttl)
    before = wait_until_idle(aws, project)
    new = before.config != plan.name
    check_kind_is_unchanged(aws, plan, before)
    announce(aws, plan, before)
    warn_about_idle_gpu(args.build, plan.settings)
    if new:
        for note in preflight.check(aws, plan, peak_instances(aws, plan, before)):
            print(f"note: {note}")
    try:
        apply_plan(aws, plan, before, schedule_role)
        said = run_smoke_test(aws, project, args.kind, archive.bucket, question)
        mark_live(aws, project, plan.name, before, plan.tags)
    except Failure as error:
        raise restore_after_failure(
            aws, before, project, plan.name, plan.model["ModelName"], error
        ) from error
    apply_scaling(aws, project, args)
    print(f"{project} is live{'' if new else ', unchanged'}: {said}")
    print(f"ask it: invoke predict PICTURE --endpoint {project}; end it: invoke destroy")
    return 0


def announce(aws: Aws, plan: Plan, before: State) -> None:
    """What will be done, what it costs, and how it ends, before anything is done."""
    what = "make" if before.endpoint is None else "change" if before.config != plan.name else "keep"
    print(f"{what} endpoint {plan.project} in {aws.region}: {plan.settings.kind}, {plan.name}")
    print_price(aws, plan.config, plan.settings)


def warn_about_idle_gpu(build: Path, settings: argparse.Namespace) -> None:
    """A GPU costs several times a processor's price, and a model that was packaged for one leaves it idle."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        use = json.loads((build / "model" / "model.json").read_text())["precision"]["use"]
        if is_gpu(settings.instance) and not any(mode.startswith("cuda") for mode in use):
            text = f"the GPU of {settings.instance} would idle, for this model was packaged for processors"
            print(f"note: {text}: `invoke package --device cuda`", flush=True)


def print_price(aws: Aws, config: dict, args: argparse.Namespace) -> None:
    """What an endpoint with this configuration costs, at most too, and the command that ends it."""
    variant = variant_of(config)
    cost = price_of_variant(aws.region, kind_of(config), variant)
    said = cost.sentence
    if args.max and "InitialInstanceCount" in variant:
        said += "\n" + price_range(cost, variant["InitialInstanceCount"], args.min, args.max)
    print(f"{said}; `invoke destroy` ends it", flush=True)


def check_kind_is_unchanged(aws: Aws, plan: Plan, before: State) -> None:
    """Raises Stop for an update that AWS cannot make."""
    old = describe_config(aws, before.config) if before.config else None
    if old and kind_of(old) != plan.settings.kind:
        text = f"an endpoint that is {kind_of(old)} cannot become {plan.settings.kind}"
        raise CommandError(
            2, f"{text}: end it with `invoke destroy` first, or give your project another name"
        )


def peak_instances(aws: Aws, plan: Plan, before: State) -> int:
    """The most instances of the wanted type that run at a time: an update starts the new beside the old."""
    if plan.settings.kind == "serverless":
        return 0
    old = describe_config(aws, before.config) if before.config else None
    same = old and variant_of(old).get("InstanceType") == plan.settings.instance
    running = variant_of(old)["InitialInstanceCount"] if same else 0
    return plan.settings.count + running


def run_smoke_test(aws: Aws, project: str, kind: str, bucket: str, question: smoke_test.TestImage) -> str:
    """One sentence on the picture that was answered rightly. Raises Stop, with the log, if it was not."""
    start = datetime.now(UTC)
    passed, said = smoke_test.run(aws, project, kind, bucket, question)
    if not passed:
        text = explain(aws, log_group(project), said, start)
        raise CommandError(1, f"the endpoint {project} runs, but it is not live: {text}")
    return said


def roll_back(aws: Aws, args: argparse.Namespace) -> int:
    """`deploy --rollback`: back to the configuration that was live before; twice is there and back again."""
    project = args.project
    schedule_role = ttl.check(aws, project, args.ttl)
    before = wait_until_idle(aws, project)
    config = describe_config(aws, before.previous) if before.previous else None
    if before.endpoint is None or config is None:
        raise CommandError(
            1, f"there is nothing that {project} served before: `invoke status` shows what it serves"
        )
    name, model = config["EndpointConfigName"], variant_of(config)["ModelName"]
    container = aws("sagemaker").describe_model(ModelName=model)["PrimaryContainer"]
    bucket = container["ModelDataUrl"].removeprefix("s3://").partition("/")[0]
    repository.check_image_exists(aws, project, container["Image"])
    print(f"change endpoint {project} in {aws.region} back to {name}")
    print_price(aws, config, args)
    start = datetime.now(UTC)
    try:
        set_deletion_time(aws, project, before, args.ttl, schedule_role)
        update_endpoint(aws, project, config, before, args)
        wait_until_serving(aws, project, name, start, args)
        said = run_smoke_test(
            aws, project, kind_of(config), bucket, pick_image_for_rollback(args.build, project, name)
        )
        mark_live(aws, project, name, before, {})
    except Failure as error:
        raise restore_after_failure(aws, before, project, name, model, error) from error
    apply_scaling(aws, project, args)
    print(f"{project} is live with {name}: {said}")
    return 0


def pick_image_for_rollback(build: Path, project: str, config: str) -> smoke_test.TestImage:
    """A picture for an archive that may not be the one in `build`: then any prediction will do."""
    try:
        packed = json.loads((build / "uploaded.json").read_text())["sha256"]
        return smoke_test.pick_image(build, compare=config.startswith(f"{project}-{packed[:12]}-"))
    except (CommandError, OSError, ValueError, KeyError):
        return smoke_test.TestImage("a grey picture", sample_image(), None)
