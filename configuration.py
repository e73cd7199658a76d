"""The project's configuration: read and checked before Invoke uses it, so that each mistake is one sentence.

config/defaults.yaml has every setting. A project file names the project and has what differs: the file that
-f names, else config/pets.yaml. Invoke merges them. The later ones win: defaults.yaml, pets.yaml,
INVOKE_SECTION_KEY in the environment, the file that -f names, options such as --bs.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from invoke import Context, Exit, ParseError, Program, main
from invoke.config import AmbiguousMergeError
from invoke.exceptions import AmbiguousEnvVar, UncastableEnvVar

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "config"
INVOKES_OWN = ("run", "runners", "sudo", "tasks", "timeouts")  # Invoke's own sections of any file
SWITCH = {True: "on", False: "off"}
WORDS = {"on": "on", "yes": "on", "true": "on", "off": "off", "no": "off", "false": "off"}
UNREADABLE = object()


@dataclass(frozen=True)
class Setting:
    """One line of config/defaults.yaml: `bs: 32  # batch size [whole number]`."""

    default: object
    help: str
    kind: str  # text, number, whole number, or choices: "on | off"

    def __str__(self) -> str:
        """The help with the kind and the default: `batch size (whole number; default: 32)`."""
        default = f"; default: {self.default}" if self.default not in (None, "") else ""
        return f"{self.help} ({self.kind}{default})"

    @property
    def choices(self) -> list[str]:
        """The values that it may have; empty if it is not a choice."""
        return self.kind.split(" | ") if " | " in self.kind else []

    @property
    def is_number(self) -> bool:
        """Whether it takes a number."""
        return self.kind in ("number", "whole number")

    def plain(self, text: str) -> str:
        """The text as scripts take it: YAML's other words for on and off are not theirs."""
        word = WORDS.get(text.lower(), text)
        return word if word in self.choices else text

    def reject(self, text: str) -> str:
        """Why the text is not a value of this setting; empty if it is one."""
        if self.choices and self.plain(text) not in self.choices:
            return f"{text!r} is not one of {', '.join(self.choices)}{nearest(text, self.choices)}"
        try:
            {"whole number": int, "number": float}.get(self.kind, str)(text)
        except ValueError:
            return f"{text!r} is not a {self.kind}"
        return ""


@dataclass(frozen=True)
class Section:
    """A section of config/defaults.yaml: the script whose flags it has, and its settings."""

    script: str
    settings: dict[str, Setting]

    @property
    def is_here(self) -> bool:
        """False if the script's folder was removed from this repository."""
        return (ROOT / self.script).is_file()


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing if no name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


# --- YAML: its errors and its surprises


def display(file: Path) -> str:
    """The file's path, relative to where the user is if it is below."""
    here = Path.cwd()
    return str(file.relative_to(here)) if here in file.parents else str(file)


def failure(file: Path, line: int, message: str) -> Exit:
    """What ends the run with exit code 2; lines count from 0, as in PyYAML."""
    return Exit(f"error: {display(file)}:{line + 1}: {message}", 2)


def read_text(file: Path) -> str:
    """The text of a configuration file. Raises Exit."""
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise Exit(f"error: {display(file)} is not a .yaml file: name one such as config/local.yaml", 2)
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        files = [display(other) for other in project_files()]
        raise Exit(f"error: there is no {display(file)}{nearest(display(file), files)}", 2) from None
    except OSError as error:
        raise Exit(f"error: {display(file)} cannot be read: {error.strerror}", 2) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n")
        raise failure(file, line, "this is not UTF-8: save the file in UTF-8") from None


def explain(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """The line of a YAML error, and one sentence about it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        position = getattr(error, "position", 0)
        return text[:position].count("\n"), f"not YAML: {getattr(error, 'reason', error)}"
    line, problem, context = error.problem_mark.line, error.problem or "", error.context or ""
    if "'\\t'" in problem:
        return line, "a tab: YAML is indented with spaces"
    if "unknown escape" in problem or "escape sequence" in problem:
        return line, r"a backslash between double quotes: use single quotes, such as '^(.+)_\d+\.jpg$'"
    if "quoted scalar" in context and error.context_mark:
        return error.context_mark.line, "a quote is not closed"
    if "cannot start any token" in problem:
        return line, f"{problem}: put the text in single quotes"
    if "flow" in context and error.context_mark:
        advice = "put text with [ or { in quotes"
        return error.context_mark.line, f"a bracket is not closed, or a comma is missing: {advice}"
    if "mapping values are not allowed" in problem:
        return line, "not `key: value`: check the indentation, and put text with a colon in quotes"
    if "block" in context or "could not find expected ':'" in problem:
        return line, "not `key: value`: check the indentation, the colon and the space after it"
    return line, f"not YAML: {problem}"


def parse(file: Path, text: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """A file's top-level keys, each with its node and its value's. Raises Exit."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise failure(file, *explain(error, text)) from None
    except RecursionError:
        raise failure(file, 0, "too deeply nested") from None
    return {} if node is None or value_of(node) is None else entries(file, node, "the file")


def value_of(node: yaml.Node) -> object:
    """What YAML makes of a scalar; its text for a list or a mapping, or where YAML makes nothing of it."""
    if not isinstance(node, yaml.ScalarNode):
        return str(node.value)
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):  # an unknown !tag; the 30th of February
        return UNREADABLE


def entries(file: Path, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """A mapping's keys, each with its node and its value's. Raises Exit; also for a key given twice."""
    if not isinstance(node, yaml.MappingNode):
        raise failure(file, node.start_mark.line, f"{what} must be `key: value` lines")
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        line, name = key.start_mark.line, str(key.value)
        if not isinstance(key, yaml.ScalarNode):
            raise failure(file, line, f"{what} must be `key: value` lines, with one word as key")
        if name in found:
            first = found[name][0].start_mark.line + 1
            raise failure(file, line, f"`{name}` is given twice, first in line {first}: remove one")
        found[name] = (key, value)
    return found


def read_value(file: Path, name: str, node: yaml.Node, setting: Setting) -> object:
    """A setting's value. Raises Exit for a wrong one, and where YAML changes what is written."""
    line = node.start_mark.line
    if not isinstance(node, yaml.ScalarNode):
        raise failure(file, line, f"`{name}` must be one value: write several as one text, such as 'a,b'")
    value, text = value_of(node), str(node.value)
    if value is None:
        return None
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):  # "\b" is a backspace; and no command takes a "\0"
        raise failure(file, line, f"`{name}` has a control character: use single quotes where a \\ is meant")
    if isinstance(value, bool) and SWITCH[value] in setting.choices:
        return SWITCH[value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (number and is_as_written(value, text, setting)):
        if reason := setting.reject(text):
            raise failure(file, line, f"`{name}`: {reason}")
        return value
    meaning = str(value).lower() if isinstance(value, int | float) else "a date or another type"
    advice = "write it in decimal" if setting.is_number else f"write '{text}' in quotes"
    raise failure(file, line, f"YAML reads `{name}: {text}` as {meaning}: {advice}")


def is_as_written(value: object, text: str, setting: Setting) -> bool:
    """False for 012 (octal: 10), 1:30 (base 60: 90) and, as text, 1.10 (1.1)."""
    if not setting.is_number:
        return str(value) == text
    try:
        return (int if isinstance(value, int) else float)(text) == value
    except ValueError:
        return False


# --- config/defaults.yaml


def read_defaults(file: Path) -> dict[str, Section]:
    """Every section of config/defaults.yaml. Raises Exit."""
    text = read_text(file)
    lines = text.splitlines()
    sections = {}
    for name, (key, node) in parse(file, text).items():
        found = re.search(r"# (\S+\.py)", lines[key.start_mark.line])
        rows = entries(file, node, f"section {name}")
        settings = {
            key: read_setting(file, key, value, lines[node.start_mark.line])
            for key, (node, value) in rows.items()
        }
        sections[name] = Section(found[1] if found else "", settings)
    return sections


def read_setting(file: Path, name: str, node: yaml.Node, line: str) -> Setting:
    """One setting; where the comment does not say of what kind it is, the value does. Raises Exit."""
    comment = re.search(r" # (.*) \[([^\[\]]+)\]\s*$", line)
    kind = {int: "whole number", float: "number"}.get(type(value_of(node)), "text")
    setting = Setting(None, *(comment.groups() if comment else ("", kind)))
    return Setting(read_value(file, name, node, setting), setting.help, setting.kind)


SECTIONS = read_defaults(FOLDER / "defaults.yaml")
DEFAULTS = {
    name: {key: setting.default for key, setting in section.settings.items()}
    for name, section in SECTIONS.items()
}
IN_USE = {name: values for name, values in DEFAULTS.items() if SECTIONS[name].is_here}


# --- project files


def project_files() -> list[Path]:
    """The project files in config/: all but defaults.yaml."""
    return sorted(file for file in FOLDER.glob("*.yaml") if file.name != "defaults.yaml")


def default_project_file() -> Path:
    """config/pets.yaml; if it was renamed, the only other one but local.yaml. Raises Exit."""
    files = [file for file in project_files() if file.name != "local.yaml"]
    chosen = [file for file in files if file.name == "pets.yaml"] or files
    if len(chosen) != 1:
        names = ", ".join(display(file) for file in project_files()) or "none"
        raise Exit(f"error: which project? Name its file with -f (in config/: {names})", 2)
    return chosen[0]


def read_project(file: Path, *, named: bool = True) -> dict[str, object]:
    """The checked content of a project file; `named`: it must say `project: NAME`. Raises Exit."""
    text = read_text(file)
    data: dict[str, object] = {}
    for name, (key, node) in parse(file, text).items():
        if name == "project":
            data[name] = read_value(file, name, node, Setting(None, "", "text"))
        elif name in INVOKES_OWN:
            entries(file, node, f"section {name}")
            data[name] = read_all(file, text)[name]
        elif name not in SECTIONS:
            raise failure(file, key.start_mark.line, f"no section is called {name}{guess_section(name)}")
        elif SECTIONS[name].is_here:
            data[name] = read_section(file, name, key.start_mark.line, node)
        elif isinstance(unchecked := read_all(file, text)[name], dict):
            data[name] = unchecked
    if named and not str(data.get("project") or "").strip():
        advice = "add a line `project: NAME` (results go to build/NAME)"
        raise Exit(f"error: {display(file)} names no project: {advice}", 2)
    return data


def read_all(file: Path, text: str) -> dict[str, object]:
    """The content as Invoke will read it. Raises Exit."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # such as a 30th of February
        raise Exit(f"error: {display(file)}: {error}".partition("\n")[0], 2) from None


def guess_section(name: str) -> str:
    """The nearest section, or the one that a setting outside of any belongs to."""
    owners = [section for section, known in SECTIONS.items() if name in known.settings]
    if owners:
        return f": it is a setting of {' and '.join(owners)}, and goes below `{owners[0]}:`, indented"
    return nearest(name, [*SECTIONS, "project"]) or f": there are {', '.join(SECTIONS)}"


def read_section(file: Path, section: str, line: int, node: yaml.Node) -> dict[str, object]:
    """The checked settings of one section. Raises Exit."""
    settings = SECTIONS[section].settings
    if value_of(node) is None:
        message = f"section {section} is empty: remove the line, or indent its settings below it"
        raise failure(file, line, message)
    if isinstance(node, yaml.ScalarNode):
        example = f"{next(iter(settings), 'key')}: ..."
        message = f"`{section}` is a section: its settings go below it, indented, such as `{example}`"
        raise failure(file, line, message)
    data = {}
    for name, (key, value) in entries(file, node, f"section {section}").items():
        if name not in settings:
            text = f"section {section} has no setting {name}{nearest(name, settings)}"
            known = ", ".join(settings) if len(settings) < 5 else f"`invoke {section} --help` lists them"
            raise failure(file, key.start_mark.line, f"{text}: {known}")
        data[name] = read_value(file, name, value, settings[name])
    return data


def check_environment() -> None:
    """Refuse INVOKE_SECTION_KEY variables that Invoke would ignore or cannot convert. Raises Exit."""
    for section in IN_USE:
        known = SECTIONS[section]
        prefix = f"INVOKE_{section.upper()}_"
        names = {prefix + key.upper(): key for key in known.settings}
        for name, text in os.environ.items():
            if name in names:
                if reason := known.settings[names[name]].reject(text):
                    raise Exit(f"error: {name} in the environment: {reason}", 2)
            elif name.startswith(prefix):
                guess = nearest(name.removeprefix(prefix), [key.removeprefix(prefix) for key in names])
                raise Exit(f"error: {name} in the environment is not a setting of {section}{guess}", 2)


class Configured(dict):
    """The values of a section; one that config/defaults.yaml has lost is named."""

    def __missing__(self, key: str) -> str:
        """Raises Exit."""
        raise Exit(f"error: config/defaults.yaml has no setting {key}, which this verb needs: restore it", 2)


def configured(c: Context, section: str) -> Configured:
    """A section as the configuration has it, all sources merged; on and off as text, as scripts take them."""
    merged = c.config.get(section)
    values = DEFAULTS.get(section, {}) | (dict(merged) if hasattr(merged, "keys") else {})
    return Configured(
        (key, SWITCH[value] if isinstance(value, bool) else value) for key, value in values.items()
    )


def check_config(c: Context) -> None:
    """Refuse settings from files that only Invoke reads (~/.invoke.yaml, /etc/invoke.yaml). Raises Exit."""
    for section in IN_USE:
        known = SECTIONS[section]
        for key, value in c.config[section].items():
            if key not in known.settings:
                raise Exit(f"error: section {section} has no setting {key}{nearest(key, known.settings)}", 2)
            if value is not None and (reason := known.settings[key].reject(str(value))):
                raise Exit(f"error: `{key}` of {section}: {reason}", 2)


# --- Invoke's program, with these checks


class ProjectProgram(Program):
    """`invoke` for this project: what it refuses is one sentence, with exit code 2."""

    def parse_tasks(self) -> None:
        """Read the verbs and their options."""
        try:
            super().parse_tasks()
        except ParseError as error:
            raise Exit(f"error: {self.explain(error)}", 2) from None

    def parse_cleanup(self) -> None:
        """Print help or the list of verbs, if they were requested."""
        try:
            super().parse_cleanup()
        except ParseError as error:  # of --help VERB
            raise Exit(f"error: {self.explain(error)}", 2) from None

    def explain(self, error: ParseError) -> str:
        """One sentence for what Invoke's parser did not understand."""
        message = str(error)
        verb = (error.context and error.context.name) or ""
        usage = f"see `{' '.join(('invoke', *verb.split(), '--help'))}`"
        if unknown := re.fullmatch(r"No idea what (.*) is!", message, re.DOTALL):
            word = unknown[1].strip("'\"")
            if word.startswith("-"):
                flags = [*(error.context.flags if error.context else ()), *self.initial_context.flags]
                return f"{verb or 'invoke'} has no option {word}{nearest(word, flags)}: {usage}"
            return f"no verb is called {word}{nearest(word, self.parser.contexts)}: `make help` lists them"
        if flag := re.match(r"Flag <Argument: ([\w-]+).*needed value", message):
            return f"--{flag[1].replace('_', '-')} needs a value: {usage}"
        if missing := re.search(r"required positional arguments: (.*)", message):
            return f"{verb} needs {missing[1].upper()}: {usage}".replace("'", "")
        return f"{message}: {usage}"

    def update_config(self, merge: bool = True) -> None:  # noqa: FBT001, FBT002 - Invoke's signature
        """Check every source of the configuration before Invoke reads and merges them."""
        file = self.args.config.value or os.environ.get("INVOKE_RUNTIME_CONFIG")
        project = read_project(Path(file).expanduser() if file else default_project_file())
        check_environment()
        if not file:  # below the environment, as all that no -f names
            self.collection.configure(project)
        with one_sentence():
            super().update_config(merge)

    def execute(self) -> None:
        """Run the verbs."""
        with one_sentence():
            super().execute()

    def print_columns(self, tuples: Sequence[tuple[str, str | None]]) -> None:
        """Print options and their help, which says of what kind a value is: to Invoke, each is a STRING."""
        super().print_columns([(name.replace("STRING", "VALUE"), text) for name, text in tuples])


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors of Invoke in files that only Invoke reads, without their traceback."""
    try:
        yield
    except AmbiguousMergeError:
        message = "a file that Invoke reads, such as ~/.invoke.yaml, has one value where a section belongs"
        raise Exit(f"error: {message}, or a section where one value belongs", 2) from None
    except (AmbiguousEnvVar, UncastableEnvVar) as error:
        raise Exit(f"error: an INVOKE_ variable in the environment: {error}", 2) from None


def install() -> None:
    """Make the running `invoke` a ProjectProgram; called while it loads tasks.py.

    Invoke has no hook between the command line and the configuration files. Its program is running by now, so
    its class is changed: the methods above are called next.
    """
    for name, value in dict(getattr(main.program, "config", {})).items():  # what Invoke has read by now
        if name in SECTIONS and not hasattr(value, "keys"):
            message = f"section {name} of ~/.invoke.yaml or /etc/invoke.yaml must be `key: value` lines"
            raise Exit(f"error: {message}", 2)
    for suffix in ("yaml", "yml"):  # Invoke reads this file as soon as tasks.py is loaded
        if (file := ROOT / f"invoke.{suffix}").exists():
            read_project(file, named=False)
    main.program.__class__ = ProjectProgram
