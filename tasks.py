"""The project's verbs: each task gathers words and says one command, echoed, so that you learn what ran.

    invoke train package                    # config/pets.yaml
    invoke -f config/local.yaml train       # another project
    invoke train --arch resnet34 --bs 16    # any key of a section, for one run

A section of the configuration is a script's flags. What no section sets are the places where scripts meet:
build/<project>/, given here.
"""

import inspect
import os
import shlex
import signal
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import yaml
from invoke import Collection, Context, Exit, task

ROOT = Path(__file__).resolve().parent
MODEL = ("stack", "role", "environment", "tags", "kms_key", "subnets", "security_groups", "isolation")
DEPLOYED = ("kind", "instance", "count", "memory", "provisioned", "max")  # what cost takes from deploy
TARGET = 600  # what deploy takes for a blank `target` of instances that are scaled
DEFAULTS = yaml.safe_load((ROOT / "config" / "pets.yaml").read_text())


def flags(section: str) -> Callable:
    """Let a task take every key of a configuration section as an option, for one run.

    The task gets them as `flags`, a ChainMap: first what the command line gives, then the configuration.
    """

    def decorate(body: Callable) -> Callable:
        @wraps(body)
        def run(c: Context, *args: object, **options: str | None) -> None:
            keys = {key: options.pop(key) for key in DEFAULTS[section]}
            given = {key: value for key, value in keys.items() if value is not None}
            body(c, ChainMap(given, dict(c.config[section])), *args, **options)

        own = [p for p in inspect.signature(body).parameters.values() if p.name not in ("c", "flags")]
        keys = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in DEFAULTS[section]
        ]
        context = inspect.Parameter("c", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([context, *own, *keys])
        return run

    return decorate


def check(c: Context) -> None:
    """Stop at a file or a section that Invoke would pass over without a word."""
    file = getattr(c.config, "_runtime_path", None)
    if file and not Path(file).is_file():
        raise Exit(f"error: there is no {file}: name a file in config/ with -f", 2)
    unknown = set(c.config) - set(DEFAULTS) - {"run", "runners", "sudo", "tasks", "timeouts"}
    if unknown:
        raise Exit(f"error: no section is called {', '.join(unknown)}: there are {', '.join(DEFAULTS)}", 2)


def build(c: Context, stage: str = "") -> str:
    """A stage's folder in build/<project>/."""
    return os.path.join("build", str(c.config["project"]), stage)


def words(script: str, *arguments: str, **options: object) -> list[str]:
    """One script's command line; an option that is None is left to the script."""
    python = os.path.relpath(sys.executable, ROOT) if ROOT in Path(sys.executable).parents else sys.executable
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None]
    return [python, script, *given, *arguments]


def one_endpoint(flags: ChainMap) -> ChainMap:
    """The flags without the address, or without the endpoint's name if an address shall be asked."""
    other = "endpoint" if "url" in flags.maps[0] or not flags["endpoint"] else "url"
    return flags | {other: None}


def say(c: Context, command: list[str]) -> None:
    """Echo a command, run it from the project's folder, and end with its exit code if that is not 0.

    Not by Invoke's own runner: a command that serves must get the signals, with a terminal and without.
    """
    check(c)
    place = "" if Path.cwd() == ROOT else f"cd {shlex.quote(str(ROOT))} && "
    print(place + shlex.join(command), file=sys.stderr, flush=True)  # stdout is the command's
    if c.config.run.dry:
        return
    process = subprocess.Popen(command, cwd=ROOT)

    def forward(number: int, _: object) -> None:
        if (
            number != signal.SIGINT or not sys.stdin.isatty()
        ):  # a terminal's Ctrl-C reaches the command by itself
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = process.wait()
    if code:
        raise Exit(code=code if code > 0 else 128 - code)


@task(auto_shortflags=False)
@flags("train")
def train(c: Context, flags: ChainMap) -> None:
    """Fit the model on the project's pictures (flags: train/train.py --help)."""
    say(c, words("train/train.py", **flags, out=build(c, "train")))


def name(c: Context) -> str:
    """The project's name: it may also be given as the folder that takes the place of build/<project>."""
    return os.path.basename(str(c.config["project"]))


def upload(c: Context, *optional: str) -> list[str]:
    """The command that puts the archive into S3, unless it is there."""
    places = {"archive": build(c, "model.tar.gz"), "out": build(c, "uploaded.json")}
    return words("package/upload.py", *optional, project=name(c), **places, **c.config["upload"])


@task(auto_shortflags=False, help={"local": "do not upload the archive to S3"})
@flags("package")
def package(c: Context, flags: ChainMap, local: bool = False) -> None:
    """Export as ONNX, prove it equal, pack it, upload it (flags: package/export.py --help)."""
    model = build(c, "model")
    say(c, words("package/export.py", train=build(c, "train"), out=model, **flags))
    say(c, words("package/archive.py", model=model, out=build(c, "model.tar.gz")))
    if not local:
        say(c, upload(c, "--optional"))


DOCKER = "in the container, as large as what is deployed"


def served(c: Context, flags: ChainMap, docker: bool, *command: str) -> list[str]:
    """The command that serves the packaged model here, until Ctrl-C or while another command runs."""
    deployed = c.config["deploy"]
    size = "memory" if deployed["kind"] == "serverless" else "instance"
    limits = {size: deployed[size]} if docker else {}
    python, script, *rest = words("deploy/local.py", *command, model=build(c, "model"), **flags, **limits)
    return [python, script, *(["--docker"] if docker else []), *rest]


@task(auto_shortflags=False, help={"docker": DOCKER})
@flags("local")
def local(c: Context, flags: ChainMap, docker: bool = False) -> None:
    """Serve the packaged model on this machine until Ctrl-C (flags: deploy/local.py --help)."""
    say(c, served(c, flags, docker))


@task(auto_shortflags=False, help={"docker": DOCKER})
@flags("local")
def test_local(c: Context, flags: ChainMap, docker: bool = False) -> None:  # noqa: PT028 - no test of pytest's
    """Serve the packaged model, ask it training's validation pictures, and say whether it passed."""
    ask = words("client/cli.py", endpoint=c.config["project"], expect=build(c, "train/validation.json"))
    port = flags.maps[0].get("port", 0)  # the configured one may be serving already
    say(c, served(c, flags | {"port": port}, docker, *ask))


@task(
    auto_shortflags=False,
    positional=["pictures"],
    help={"pictures": "a file, folder, quoted glob or address"},
)
@flags("predict")
def predict(c: Context, flags: ChainMap, pictures: str) -> None:
    """Ask an endpoint about pictures; more of them after -- (flags: client/cli.py --help)."""
    asked = [pictures, *(sys.argv[sys.argv.index("--") + 1 :] if c.remainder else [])]
    asked = [name if "://" in name else os.path.relpath(name, ROOT) for name in asked]
    flags = one_endpoint(flags)
    say(c, words("client/cli.py", *asked, **flags | {"kind": flags["kind"] if flags["endpoint"] else None}))


@task(auto_shortflags=False, help={"yes": "load an endpoint on SageMaker, which costs money, without asking"})
@flags("bench")
def bench(c: Context, flags: ChainMap, yes: bool = False) -> None:
    """Load an endpoint until answers come too late (flags: bench/load.py --help)."""
    consent = ["--yes"] if yes else []
    say(c, words("bench/load.py", *consent, **one_endpoint(flags), out=build(c, "bench.json")))


def endpoint(c: Context, verb: str, *arguments: str, **options: object) -> list[str]:
    """The command of one of deploy/endpoint.py's verbs."""
    places = {"project": name(c), "build": build(c)}
    python, script, *rest = words("deploy/endpoint.py", *arguments, **places, **options)
    return [python, script, verb, *rest]


def image_words(c: Context, *arguments: str, **options: object) -> list[str]:
    """The command that makes the image of `stack: slim`, unless it is there."""
    places = {"project": name(c), "build": build(c), **c.config["upload"]}
    return words("deploy/image.py", *arguments, **places, **options)


@task(
    auto_shortflags=False,
    help={"delete": "remove the images and all that made them", "yes": "without asking"},
)
@flags("image")
def image(c: Context, flags: ChainMap, delete: bool = False, yes: bool = False) -> None:
    """Build the slim image, push it to ECR, say what a scan finds (flags: deploy/image.py --help)."""
    deployed = c.config["deploy"]
    given = [*(["--delete"] if delete else []), *(["--yes"] if yes else [])]
    instance = flags["instance"] or deployed["instance"]
    say(c, image_words(c, *given, kind=deployed["kind"], **flags | {"instance": instance}))


@task(auto_shortflags=False, help={"rollback": "go back to what was served before"})
@flags("deploy")
def deploy(c: Context, flags: ChainMap, rollback: bool = False) -> None:
    """Make the endpoint on SageMaker, or change it (flags: deploy/endpoint.py deploy --help)."""
    if not rollback:
        say(c, endpoint(c, "deploy", "--check", **flags))  # before anything is uploaded, or a build paid for
        say(c, upload(c))
        if flags["stack"] == "slim":
            runs = {key: flags[key] for key in ("kind", "instance")}
            say(c, image_words(c, **dict(c.config["image"]) | runs))
    say(c, endpoint(c, "deploy", *(["--rollback"] if rollback else []), **flags))


@task(help={"all": "every endpoint that this tool made in the account", "json": "print JSON"})
def status(c: Context, all: bool = False, json: bool = False) -> None:
    """Say what runs on SageMaker, how it does and what it costs."""
    say(c, endpoint(c, "status", *(["--all"] if all else []), *(["--json"] if json else [])))


@task(help={"follow": "go on until Ctrl-C", "since": "how far back: 10m, 1h, 2d"})
def logs(c: Context, follow: bool = False, since: str = "1h") -> None:
    """Print what the endpoint's containers write."""
    say(c, endpoint(c, "logs", *(["--follow"] if follow else []), since=since))


@task(auto_shortflags=False, positional=["source", "to"])
@flags("transform")
def transform(c: Context, flags: ChainMap, source: str, to: str) -> None:
    """Answer every picture under s3://SOURCE into s3://TO (flags: deploy/endpoint.py transform --help)."""
    model = {key: c.config["deploy"][key] for key in MODEL}
    if model["stack"] == "slim":
        say(c, image_words(c, **dict(c.config["image"]) | {"instance": flags["instance"]}))
    say(c, endpoint(c, "transform", source, to, **model, **flags))


@task(help={"yes": "do not ask", "data": "what is in S3, and the logs, as well"})
def destroy(c: Context, yes: bool = False, data: bool = False) -> None:
    """Remove everything of the project from SageMaker."""
    given = [*(["--yes"] if yes else []), *(["--data"] if data else [])]
    say(c, endpoint(c, "destroy", *given, **c.config["upload"]))


@task(
    help={
        "create": "make the roles, or bring them up to date",
        "remove": "delete them",
        "read": "where transform's pictures are: s3://bucket/prefix,s3://...",
        "write": "where its answers go",
    }
)
def role(
    c: Context,
    create: bool = False,
    remove: bool = False,
    read: str | None = None,
    write: str | None = None,
) -> None:
    """Print the roles and policies that the project needs on AWS."""
    given = [*(["--create"] if create else []), *(["--remove"] if remove else [])]
    own = {key: c.config["deploy"][key] for key in ("role", "kms_key")}
    options = {"project": name(c), "read": read, "write": write, **own, **c.config["upload"]}
    say(c, words("deploy/role.py", *given, **options))


@task(
    auto_shortflags=False,
    help={
        "example": "fast.ai's guide of 2019, then and now",
        "compare": "every kind and instance, cheapest first",
        "simulate": "a day, request by request",
        "actual": "what runs in your account now",
        "billed": "with --actual: what Cost Explorer says of it, for $0.01",
        "refresh": "read AWS's price list into your own cache",
        "json": "print JSON",
    },
)
@flags("cost")
def cost(
    c: Context,
    flags: ChainMap,
    example: bool = False,
    compare: bool = False,
    simulate: bool = False,
    actual: bool = False,
    billed: bool = False,
    refresh: bool = False,
    json: bool = False,
) -> None:
    """Say what an endpoint costs, or would cost (flags: cost/estimate.py --help)."""
    switches = {"compare": compare, "simulate": simulate, "actual": actual, "billed": billed}
    switches |= {"refresh": refresh, "json": json, "example=guide": example}
    given = [f"--{switch}" for switch, on in switches.items() if on]
    deployed = c.config["deploy"]
    same = {key: deployed[key] for key in DEPLOYED if flags[key] is None}
    if flags["invocations"] is None and deployed["max"]:
        same["invocations"] = deployed["target"] or TARGET
    places = {"archive": build(c, "model.tar.gz"), "bench": build(c, "bench.json")}
    say(c, words("cost/estimate.py", *given, **flags | same, **places))


ns = Collection(train, package, local, test_local, predict, bench)
for life in (role, image, deploy, status, logs, transform, destroy, cost):
    ns.add_task(life)
ns.configure(DEFAULTS)
