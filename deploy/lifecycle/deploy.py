"""The verb `deploy`: plan, price, preflight, create or update, smoke test; a failure is rolled back."""

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from aws.client import Aws, Failure
from aws.names import log_group
from aws.pricing import price_of_variant, price_range
from aws.roles import find_role
from common import CommandError, sample_picture
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
    update_limit,
    wait_until_idle,
    wait_until_serving,
)
from lifecycle.diagnose import explain
from lifecycle.plan import Plan, check_instance_type, make_plan, read_archive
from lifecycle.settings import Settings
from lifecycle.state import State, describe_config, kind_of, variant_of


def check(aws: Aws, project: str, build: Path, settings: Settings) -> int:
    """`deploy --check`: settings and roles only, before an image is built or an archive uploaded."""
    smoke_test.pick_picture(build)
    if settings.hosted_on:
        check_instance_type(aws, settings.hosted_on)
    find_role(aws, settings.role, project)
    ttl.check(aws, project, settings.ttl)
    return 0


def deploy(aws: Aws, project: str, build: Path, settings: Settings) -> int:
    """Create the endpoint or update it, and report it live after the smoke test; returns the exit code."""
    archive = read_archive(build, aws)
    picture = smoke_test.pick_picture(build)
    role = find_role(aws, settings.role, project)
    plan = make_plan(aws, project, build, archive, role, settings)
    schedule_role = ttl.check(aws, project, settings.ttl)
    before = wait_until_idle(aws, project)
    is_new = before.config != plan.name
    check_kind_is_unchanged(aws, plan, before)
    announce(aws, plan, before)
    warn_about_idle_gpu(build, settings)
    if is_new:
        for note in preflight.check(aws, plan, peak_instances(aws, plan, before)):
            print(f"note: {note}")
    try:
        apply_plan(aws, plan, before, schedule_role)
        answer = run_smoke_test(aws, project, settings.kind, archive.bucket, picture)
        mark_live(aws, project, plan.name, before, plan.tags)
    except Failure as error:
        model = plan.model["ModelName"]
        raise restore_after_failure(aws, before, project, plan.name, model, error) from error
    apply_scaling(aws, project, settings)
    print(f"{project} is live{'' if is_new else ', unchanged'}: {answer}")
    print(f"query: invoke predict PICTURE --endpoint {project}; delete: invoke destroy")
    return 0


def announce(aws: Aws, plan: Plan, before: State) -> None:
    """Print what will be done, its price, and how to delete it, before anything is done."""
    what = "create" if before.endpoint is None else "update" if before.config != plan.name else "keep"
    print(f"{what} endpoint {plan.project} in {aws.region}: {plan.settings.kind}, {plan.name}")
    print_price(aws, plan.config, plan.settings)


def warn_about_idle_gpu(build: Path, settings: Settings) -> None:
    """Note a model that was packaged for CPUs on a GPU instance, whose price is several times higher."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        use = json.loads((build / "model" / "model.json").read_text())["precision"]["use"]
        if is_gpu(settings.instance) and not any(mode.startswith("cuda") for mode in use):
            text = f"the GPU of {settings.instance} would be idle, because this model was packaged for CPUs"
            print(f"note: {text}: `invoke package --device cuda`", flush=True)


def print_price(aws: Aws, config: dict, settings: Settings) -> None:
    """Print the price of this configuration, its range with autoscaling, and how to delete the endpoint."""
    variant = variant_of(config)
    price = price_of_variant(aws.region, kind_of(config), variant)
    sentence = price.sentence
    if settings.max and "InitialInstanceCount" in variant:
        sentence += "\n" + price_range(price, variant["InitialInstanceCount"], settings.min, settings.max)
    print(f"{sentence}; `invoke destroy` deletes it", flush=True)


def check_kind_is_unchanged(aws: Aws, plan: Plan, before: State) -> None:
    """Raise CommandError for an update that AWS does not support."""
    old = describe_config(aws, before.config)
    if old and kind_of(old) != plan.settings.kind:
        text = f"an endpoint that is {kind_of(old)} cannot become {plan.settings.kind}"
        advice = "delete it with `invoke destroy` first, or give your project another name"
        raise CommandError(2, f"{text}: {advice}")


def peak_instances(aws: Aws, plan: Plan, before: State) -> int:
    """The most instances of the wanted type at a time: an update starts the new ones beside the old ones."""
    if plan.settings.kind == "serverless":
        return 0
    old = describe_config(aws, before.config)
    running = 0
    if old and variant_of(old).get("InstanceType") == plan.settings.instance:
        running = variant_of(old)["InitialInstanceCount"]
    return plan.settings.count + running


def run_smoke_test(aws: Aws, project: str, kind: str, bucket: str, picture: smoke_test.TestPicture) -> str:
    """One sentence on the right answer. Raises CommandError, with the log, if it was wrong or missing."""
    start = datetime.now(UTC)
    passed, answer = smoke_test.run(aws, project, kind, bucket, picture)
    if not passed:
        text = explain(aws, log_group(project), answer, start)
        raise CommandError(1, f"the endpoint {project} runs, but it is not live: {text}")
    return answer


# --- rollback


def roll_back(aws: Aws, project: str, build: Path, settings: Settings) -> int:
    """`deploy --rollback`: return to the configuration that was live before; twice returns to this one."""
    schedule_role = ttl.check(aws, project, settings.ttl)
    before = wait_until_idle(aws, project)
    config = describe_config(aws, before.previous)
    if before.endpoint is None or config is None:
        text = f"{project} has no previous version"
        raise CommandError(1, f"{text}: `invoke status` shows what it serves")
    name, model = config["EndpointConfigName"], variant_of(config)["ModelName"]
    container = aws("sagemaker").describe_model(ModelName=model)["PrimaryContainer"]
    bucket = container["ModelDataUrl"].removeprefix("s3://").partition("/")[0]
    repository.check_image_exists(aws, project, container["Image"])
    print(f"update endpoint {project} in {aws.region} back to {name}")
    print_price(aws, config, settings)
    start, picture = datetime.now(UTC), pick_picture_for_rollback(build, project, name)
    try:
        set_deletion_time(aws, project, before, settings.ttl, schedule_role)
        update_endpoint(aws, project, config, before, settings)
        wait_until_serving(aws, project, name, start, update_limit(settings))
        answer = run_smoke_test(aws, project, kind_of(config), bucket, picture)
        mark_live(aws, project, name, before, {})
    except Failure as error:
        raise restore_after_failure(aws, before, project, name, model, error) from error
    apply_scaling(aws, project, settings)
    print(f"{project} is live with {name}: {answer}")
    return 0


def pick_picture_for_rollback(build: Path, project: str, config: str) -> smoke_test.TestPicture:
    """A picture for the smoke test of a configuration whose archive may not be the one in `build`.

    If it is not, any prediction passes.
    """
    try:
        packed = json.loads((build / "uploaded.json").read_text())["sha256"]
        return smoke_test.pick_picture(build, compare=config.startswith(f"{project}-{packed[:12]}-"))
    except (CommandError, OSError, ValueError, KeyError):
        return smoke_test.TestPicture("a grey picture", sample_picture(), None)
