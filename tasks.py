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


@task
def package(c: Context) -> None:
    """Export the trained model as ONNX, prove it equal, and pack it as model.tar.gz."""
    model = build(c, "model")
    say(c, words("package/export.py", train=build(c, "train"), out=model))
    say(c, words("package/archive.py", model=model, out=build(c, "model.tar.gz")))


@task(auto_shortflags=False)
@flags("local")
def local(c: Context, flags: ChainMap) -> None:
    """Serve the packaged model on this machine until Ctrl-C (flags: deploy/local.py --help)."""
    say(c, words("deploy/local.py", model=build(c, "model"), **flags))


@task(auto_shortflags=False)
@flags("local")
def test_local(c: Context, flags: ChainMap) -> None:
    """Serve the packaged model, ask it training's validation pictures, and say whether it passed."""
    ask = words("client/cli.py", endpoint=c.config["project"], expect=build(c, "train/validation.json"))
    port = flags.maps[0].get("port", 0)  # the configured one may be serving already
    say(c, words("deploy/local.py", *ask, model=build(c, "model"), **flags | {"port": port}))


@task(
    auto_shortflags=False,
    positional=["pictures"],
    help={"pictures": "a file, folder, quoted glob or address"},
)
@flags("predict")
def predict(c: Context, flags: ChainMap, pictures: str) -> None:
    """Ask an endpoint about pictures; more of them after -- (flags: client/cli.py --help)."""
    other = "endpoint" if "url" in flags.maps[0] or not flags["endpoint"] else "url"
    asked = [pictures, *(sys.argv[sys.argv.index("--") + 1 :] if c.remainder else [])]
    asked = [name if "://" in name else os.path.relpath(name, ROOT) for name in asked]
    say(c, words("client/cli.py", *asked, **flags | {other: None}))


ns = Collection(train, package, local, test_local, predict)
ns.configure(DEFAULTS)
