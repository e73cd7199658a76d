"""The project's verbs: each task builds one command line, prints it and runs it.

    invoke train package                    # config/pets.yaml
    invoke -f config/local.yaml train       # another project
    invoke train --arch resnet34 --bs 16    # any setting of a section, for one run

A section of the configuration is a script's flags (configuration.py reads and checks them). What no section
sets is where scripts meet: build/<project>/, given here.
"""

import inspect
import os
import shlex
import signal
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

from invoke import Collection, Context, Exit, Task

from configuration import IN_USE, ROOT, SECTIONS, check_config, configured, install

MODEL = ("stack", "role", "environment", "tags", "kms_key", "subnets", "security_groups", "isolation")
DEPLOYED = ("kind", "instance", "count", "memory", "provisioned", "max")  # what cost takes from deploy
TARGET = 600  # deploy's default for a blank `target` of autoscaled instances

ns = Collection()


# --- how a verb becomes a command


def script_task(*scripts: str, **help: str) -> Callable:
    """Register a verb with its own options' help, if its scripts are here: a folder takes its verbs along."""

    def decorate(body: Callable) -> Task:
        options = getattr(body, "option_help", {})
        parameters = inspect.signature(body).parameters
        switch = {name for name in help if isinstance(parameters[name].default, bool)}
        own = {name: f"{text} ({'switch' if name in switch else 'text'})" for name, text in help.items()}
        # No short flags where a section gives the options: a new setting would change their letters.
        task: Task = Task(body, help=options | own, auto_shortflags=not options)
        if all((ROOT / script).is_file() for script in scripts):
            ns.add_task(task)
        return task

    return decorate


def section_options(section: str) -> Callable:
    """Let a verb take every setting of a configuration section as an option, for one run.

    The verb gets them as `options`, a ChainMap: first what the command line gives, then the configuration.
    """
    known = SECTIONS[section].settings if section in SECTIONS else {}

    def decorate(body: Callable) -> Callable:
        @wraps(body)
        def run(c: Context, *args: object, **given: str | None) -> None:
            values = {key: given.pop(key) for key in known}
            options = {key: value for key, value in values.items() if value is not None}
            for key, value in options.items():
                if reason := known[key].reject(value):
                    raise Exit(f"error: --{key.replace('_', '-')}: {reason}", 2)
            body(c, ChainMap(options, configured(c, section)), *args, **given)

        own = [p for p in inspect.signature(body).parameters.values() if p.name not in ("c", "options")]
        keys = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in known]
        context = inspect.Parameter("c", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([context, *own, *keys])  # type: ignore[attr-defined]  # Invoke reads it
        run.option_help = {key: str(setting) for key, setting in known.items()}  # type: ignore[attr-defined]
        return run

    return decorate


def project_name(c: Context) -> str:
    """The project's name: it may also be given as the folder that takes the place of build/<project>."""
    return os.path.basename(str(c.config["project"]))


def build_path(c: Context, stage: str = "") -> str:
    """A stage's folder in build/<project>/."""
    return os.path.join("build", str(c.config["project"]), stage)


def build_command(script: str, *arguments: str, **options: object) -> list[str]:
    """One script's command line; an option that is None is left to the script."""
    python = os.path.relpath(sys.executable, ROOT) if ROOT in Path(sys.executable).parents else sys.executable
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None]
    return [python, script, *given, *arguments]


def run_command(c: Context, command: list[str]) -> None:
    """Print a command, run it from the project's folder, and end with its exit code if that is not 0.

    Not by Invoke's own runner: a command that serves must get the signals, with a terminal and without.
    """
    check_config(c)
    folder = "" if Path.cwd() == ROOT else f"cd {shlex.quote(str(ROOT))} && "
    print(folder + shlex.join(command), file=sys.stderr, flush=True)  # stdout is the command's
    if c.config.run.dry:
        return
    process = subprocess.Popen(command, cwd=ROOT)

    def forward(number: int, _: object) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal sends Ctrl-C to the command itself
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = process.wait()
    if code:
        raise Exit(code=code if code > 0 else 128 - code)


def switches(**given: bool) -> list[str]:
    """The flags without a value: --yes for yes=True."""
    return [f"--{name}" for name, on in given.items() if on]


def one_endpoint(options: ChainMap) -> ChainMap:
    """The options without the address, or without the endpoint's name if this run gives an address."""
    other = "endpoint" if "url" in options.maps[0] or not options["endpoint"] else "url"
    return options | {other: None}


# --- train, package


@script_task("train/train.py")
@section_options("train")
def train(c: Context, options: ChainMap) -> None:
    """Fit the model on the project's pictures."""
    run_command(c, build_command("train/train.py", **options, out=build_path(c, "train")))


def from_here(options: ChainMap, *keys: str) -> dict[str, str]:
    """The paths among this run's options, from where the user stands; those of a file stay as they are."""
    given = {
        key: os.path.abspath(os.path.expanduser(path)) for key, path in options.maps[0].items() if key in keys
    }
    return {
        key: os.path.relpath(path, ROOT) if ROOT in Path(path).parents else path
        for key, path in given.items()
    }


@script_task("train/adopt.py")
@section_options("adopt")
def adopt(c: Context, options: ChainMap) -> None:
    """Take a Learner that was exported elsewhere, and pictures to check it with."""
    table = str(options["labels"] or "").lower().endswith(".csv")
    paths = from_here(options, "learner", "pictures", *["labels"] * table)
    run_command(c, build_command("train/adopt.py", **options | paths, out=build_path(c, "train")))


def upload_command(c: Context, *optional: str) -> list[str]:
    """The command that puts the archive into S3, unless it is there."""
    files = {"archive": build_path(c, "model.tar.gz"), "out": build_path(c, "uploaded.json")}
    names = {"project": project_name(c), **files, **configured(c, "upload")}
    return build_command("package/upload.py", *optional, **names)


@script_task(
    "package/export.py", "package/archive.py", "package/upload.py", local="do not upload the archive to S3"
)
@section_options("package")
def package(c: Context, options: ChainMap, *, local: bool = False) -> None:
    """Export as ONNX, prove it equal to the Learner, pack it and upload it."""
    model = build_path(c, "model")
    run_command(c, build_command("package/export.py", train=build_path(c, "train"), out=model, **options))
    run_command(c, build_command("package/archive.py", model=model, out=build_path(c, "model.tar.gz")))
    if not local:
        run_command(c, upload_command(c, "--optional"))


# --- on this machine


def warn_if_stale(c: Context) -> None:
    """Note on stderr that the Learner is newer than the model that is served."""
    learner, model = (ROOT / build_path(c, name) for name in ("train/metrics.json", "model/model.json"))
    both = learner.is_file() and model.is_file() and not c.config.run.dry
    if both and model.stat().st_mtime < learner.stat().st_mtime:
        text = "note: the model is older than the Learner in build/: `invoke package` exports it again"
        print(text, file=sys.stderr, flush=True)


DOCKER = "in the container, as large as what is deployed"


def local_command(c: Context, options: ChainMap, command: Sequence[str] = (), *, docker: bool) -> list[str]:
    """The command that serves the packaged model here, until Ctrl-C or while another command runs."""
    deployed = configured(c, "deploy")
    size = "memory" if docker and deployed["kind"] == "serverless" else "instance"
    limits = {size: deployed[size]} if docker else {}
    model = build_path(c, "model")
    python, script, *rest = build_command("deploy/local.py", *command, model=model, **options, **limits)
    return [python, script, *switches(docker=docker), *rest]


@script_task("deploy/local.py", docker=DOCKER)
@section_options("local")
def local(c: Context, options: ChainMap, *, docker: bool = False) -> None:
    """Serve the packaged model on this machine until Ctrl-C."""
    warn_if_stale(c)
    run_command(c, local_command(c, options, docker=docker))


@script_task("deploy/local.py", "client/cli.py", docker=DOCKER)
@section_options("local")
def test_local(c: Context, options: ChainMap, *, docker: bool = False) -> None:  # noqa: PT028 - a verb
    """Serve the packaged model, send it training's validation pictures, and report whether it passed."""
    warn_if_stale(c)
    expected = build_path(c, "train/validation.json")
    query = build_command("client/cli.py", endpoint=c.config["project"], expect=expected)
    port = options.maps[0].get("port", 0)  # the configured one may be serving already
    run_command(c, local_command(c, options | {"port": port}, query, docker=docker))


@script_task(
    "client/cli.py",
    pictures="a file, folder, quoted glob or address; more of them, or flags such as --json, after --",
)
@section_options("predict")
def predict(c: Context, options: ChainMap, pictures: str) -> None:
    """Send pictures to an endpoint; more of them after --."""
    given = [pictures, *(sys.argv[sys.argv.index("--") + 1 :] if c.remainder else [])]
    paths = [path if "://" in path else os.path.relpath(path, ROOT) for path in given]
    options = one_endpoint(options)
    kind = options["kind"] if options["endpoint"] else None
    run_command(c, build_command("client/cli.py", *paths, **options | {"kind": kind}))


@script_task("bench/load.py", yes="load an endpoint on SageMaker, which costs money, without confirmation")
@section_options("bench")
def bench(c: Context, options: ChainMap, *, yes: bool = False) -> None:
    """Load an endpoint step by step until its latency is too high."""
    out = build_path(c, "bench.json")
    run_command(c, build_command("bench/load.py", *switches(yes=yes), **one_endpoint(options), out=out))


# --- on SageMaker


def endpoint_command(c: Context, verb: str, *arguments: str, **options: object) -> list[str]:
    """The command of one of deploy/endpoint.py's verbs."""
    names = {"project": project_name(c), "build": build_path(c)}
    python, script, *rest = build_command("deploy/endpoint.py", *arguments, **names, **options)
    return [python, script, verb, *rest]


def image_command(c: Context, *arguments: str, **options: object) -> list[str]:
    """The command that builds the image of `stack: slim`, unless it is there."""
    names = {"project": project_name(c), "build": build_path(c), **configured(c, "upload")}
    return build_command("deploy/image.py", *arguments, **names, **options)


@script_task(
    "deploy/image.py",
    delete="remove the images and all that was created to build them",
    yes="without confirmation",
)
@section_options("image")
def image(c: Context, options: ChainMap, *, delete: bool = False, yes: bool = False) -> None:
    """Build the slim image, push it to ECR and report what a scan finds."""
    deployed = configured(c, "deploy")
    size = {"kind": deployed["kind"], "instance": options["instance"] or deployed["instance"]}
    run_command(c, image_command(c, *switches(delete=delete, yes=yes), **options | size))


@script_task("deploy/endpoint.py", "package/upload.py", rollback="go back to what was served before")
@section_options("deploy")
def deploy(c: Context, options: ChainMap, *, rollback: bool = False) -> None:
    """Create the endpoint on SageMaker, or update it."""
    if not rollback:
        # Settings are checked before anything is uploaded or a build is paid for.
        run_command(c, endpoint_command(c, "deploy", "--check", **options))
        run_command(c, upload_command(c))
        if options["stack"] == "slim":
            size = {key: options[key] for key in ("kind", "instance")}
            run_command(c, image_command(c, **configured(c, "image") | size))
    run_command(c, endpoint_command(c, "deploy", *switches(rollback=rollback), **options))


@script_task(
    "deploy/endpoint.py", all="every endpoint that this tool created in the account", json="print JSON"
)
def status(c: Context, *, all: bool = False, json: bool = False) -> None:
    """Report what runs on SageMaker, its health and its price."""
    run_command(c, endpoint_command(c, "status", *switches(all=all, json=json)))


@script_task("deploy/endpoint.py", follow="go on until Ctrl-C", since="how far back: 10m, 1h (default), 2d")
def logs(c: Context, *, follow: bool = False, since: str = "1h") -> None:
    """Print what the endpoint's containers write."""
    run_command(c, endpoint_command(c, "logs", *switches(follow=follow), since=since))


@script_task(
    "deploy/endpoint.py", source="s3://bucket/prefix of the pictures", to="s3://bucket/prefix for the answers"
)
@section_options("transform")
def transform(c: Context, options: ChainMap, source: str, to: str) -> None:
    """Predict every picture under s3://SOURCE into s3://TO, without an endpoint."""
    deployed = configured(c, "deploy")
    model = {key: deployed[key] for key in MODEL}
    if model["stack"] == "slim":
        size = {"instance": options["instance"]}
        run_command(c, image_command(c, **configured(c, "image") | size))
    run_command(c, endpoint_command(c, "transform", source, to, **model, **options))


@script_task("deploy/endpoint.py", yes="without confirmation", data="also what is in S3, and the logs")
def destroy(c: Context, *, yes: bool = False, data: bool = False) -> None:
    """Delete everything of the project from SageMaker."""
    run_command(c, endpoint_command(c, "destroy", *switches(yes=yes, data=data), **configured(c, "upload")))


@script_task(
    "deploy/role.py",
    create="create the roles, or update them",
    remove="delete them",
    read="where transform's pictures are: s3://bucket/prefix,s3://...",
    write="where its answers go, likewise",
)
def role(
    c: Context,
    *,
    create: bool = False,
    remove: bool = False,
    read: str | None = None,
    write: str | None = None,
) -> None:
    """Print the roles and policies that the project needs on AWS."""
    deployed = configured(c, "deploy")
    own = {key: deployed[key] for key in ("role", "kms_key")}
    options = {"project": project_name(c), "read": read, "write": write, **own, **configured(c, "upload")}
    run_command(c, build_command("deploy/role.py", *switches(create=create, remove=remove), **options))


# --- its price


@script_task(
    "cost/estimate.py",
    example="fast.ai's guide of 2019, then and now",
    compare="every kind and instance, cheapest first",
    simulate="a day, request by request",
    actual="what runs in your account now",
    billed="with --actual: what Cost Explorer reports, for $0.01",
    refresh="read AWS's price list into your own cache",
    json="print JSON",
)
@section_options("cost")
def cost(
    c: Context,
    options: ChainMap,
    *,
    example: bool = False,
    compare: bool = False,
    simulate: bool = False,
    actual: bool = False,
    billed: bool = False,
    refresh: bool = False,
    json: bool = False,
) -> None:
    """Estimate what an endpoint costs, or would cost."""
    given = switches(
        compare=compare, simulate=simulate, actual=actual, billed=billed, refresh=refresh, json=json
    )
    if example:
        given.append("--example=guide")
    deployed = configured(c, "deploy")
    same = {key: deployed[key] for key in DEPLOYED if options[key] is None}
    if options["invocations"] is None and deployed["max"]:
        same["invocations"] = deployed["target"] or TARGET
    files = {"archive": build_path(c, "model.tar.gz"), "bench": build_path(c, "bench.json")}
    run_command(c, build_command("cost/estimate.py", *given, **options | same, **files))


ns.configure(IN_USE)
install()
