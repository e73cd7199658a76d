"""client/cli.py: which pictures it sends, what it prints, and its exit codes."""

import base64
import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import cli
import predictor
from scripted_server import ANSWER, aws_error, reply, scripted

CLI = Path(cli.__file__)
PETS = Path(__file__).parents[3] / "shared/pets/images"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(predictor, "FIRST_WAIT", 0.01)


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures, with a sub-folder, a hidden one, and a file that is not a picture."""
    for name in ("b.png", "a.jpg", "more/c.JPEG", ".hidden.png", ".cache/d.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(path)
    (tmp_path / "photos/notes.txt").write_text("not a picture")
    return tmp_path / "photos"


def by_size(body):
    """Answer by the body: b"bad..." is rejected, everything else is a cat."""
    if body.startswith(b"bad"):
        return reply(
            400, {"error": "not_a_picture", "message": "these bytes are not a picture [that] can be read"}
        )
    return reply()


def run(capsys, *arguments):
    """The exit code, stdout and stderr of a command line."""
    code = cli.main([str(word) for word in arguments])
    return code, *capsys.readouterr()


def validation(folder, *entries):
    """A validation.json beside the pictures that it names."""
    (folder / "pictures").mkdir()
    for entry in entries:
        Image.new("RGB", (8, 6)).save(folder / entry["file"])
    (folder / "validation.json").write_text(json.dumps(entries))
    return folder / "validation.json"


def entry(number, predicted="cat", label="cat", confidence=0.9, **margin):
    return {
        "file": f"pictures/{number:03}.png",
        "labels": [label],
        "predicted": [predicted],
        "confidence": confidence,
        **margin,
    }


# Which pictures


def test_folders_are_expanded_sorted_and_without_hidden_files(photos):
    assert cli.find_pictures([str(photos)]) == [
        str(photos / name) for name in ("a.jpg", "b.png", "more/c.JPEG")
    ]


def test_arguments_are_files_globs_and_addresses_each_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    Path("[x].png").touch()
    arguments = ["[x].png", "*.png", "https://example.org/d.jpg", "notes.txt", "**/*.JPEG", "b.png"]
    found = ["[x].png", "b.png", "https://example.org/d.jpg", "notes.txt", "more/c.JPEG"]
    assert cli.find_pictures(arguments) == found


# What it prints


def test_the_table_shows_every_answer_and_the_summary(photos, capsys):
    (photos / "broken.jpg").write_bytes(b"bad")
    with scripted(answer=by_size) as server:
        code, out, _ = run(capsys, photos, "--url", server.url)
    assert code == 1
    assert re.search(r"a\.jpg +cat +━+ +90\.0 % +dog 10 % +\d+", out)
    assert re.search(r"broken\.jpg +these bytes are not a picture \[that\] can", out)
    assert re.search(r"^4 pictures, 1 failed; p50 \d+ ms, p99 \d+ ms; [\d.]+ pictures/s$", out, re.MULTILINE)


def test_json_is_the_only_output_on_stdout(photos, capsys):
    (photos / "broken.jpg").write_bytes(b"bad")
    with scripted(answer=by_size) as server:
        code, out, _ = run(capsys, photos, "--url", server.url, "--json", "--top-k", "2")
    result = json.loads(out)
    assert code == 1
    assert [Path(row["file"]).name for row in result["pictures"]] == [
        "a.jpg",
        "b.png",
        "broken.jpg",
        "c.JPEG",
    ]
    first, broken = result["pictures"][0], result["pictures"][2]
    assert {key: first[key] for key in ANSWER} == ANSWER
    assert (broken["error"], broken["message"]) == (
        "not_a_picture",
        "these bytes are not a picture [that] can be read",
    )
    assert first["latency_ms"] > 0
    assert {key: result["summary"][key] for key in ("pictures", "failed")} == {"pictures": 4, "failed": 1}
    assert result["summary"]["p99_ms"] == max(r["latency_ms"] for r in result["pictures"] if "class" in r)
    assert server.requests[0].headers["X-Amzn-SageMaker-Custom-Attributes"] == "top_k=2"


def test_several_labels_are_shown_together(photos, capsys):
    with scripted(reply(body={**ANSWER, "classes": ["cat", "dog"]})) as server:
        _, out, _ = run(capsys, photos / "a.jpg", "--url", server.url)
    assert re.search(r"a\.jpg +cat, dog +━+ +90\.0 %", out)
    with scripted(reply(body={**ANSWER, "classes": []})) as server:
        _, out, _ = run(capsys, photos / "a.jpg", "--url", server.url)
    assert re.search(r"a\.jpg +none +━+ +90\.0 %", out)


def on_terminal(*arguments, **env):
    """What a terminal of 120 columns with all colours displays, and the exit code."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "120", **env}
    with subprocess.Popen(
        [sys.executable, CLI, *arguments], stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        received = b""
        while chunk := read(ours):
            received += chunk
    os.close(ours)
    return received.decode(), process.returncode


def read(terminal):
    """The next output; empty at the end, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_terminal_with_colours_shows_thumbnails(photos):
    with scripted(reply()) as server:
        painted, code = on_terminal(photos / "a.jpg", "--url", server.url)
        assert code == 0
        assert "\x1b[38;2;254;0;0;48;2;254;0;0m▀" in painted
        for arguments, env in [(["--no-thumbnails"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})]:
            plain, _ = on_terminal(photos / "a.jpg", "--url", server.url, *arguments, **env)
            assert "cat" in plain
            assert "▀" not in plain


@pytest.mark.skipif(not PETS.exists(), reason="needs real photographs")
def test_many_photographs_get_one_line_each(capsys):
    with scripted(reply()) as server:
        code, out, _ = run(capsys, PETS, "--url", server.url, "--concurrency", "8")
    assert code == 0
    assert len(out.splitlines()) == len(list(PETS.glob("*.jpg"))) + 5


# Compared with training


def test_answers_that_agree_with_training_pass(tmp_path, capsys):
    file = validation(tmp_path, entry(0), entry(1, label="dog", confidence=0.9003))
    with scripted(reply()) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
    assert code == 0
    assert out.splitlines()[-1] == (
        "passed: 2 of 2 answers agree with training; largest difference in confidence 3.0e-04; "
        "1 of 2 (50 %) match the label"
    )
    assert re.search(r"001\.png .* ✓ 90\.0 % +dog ", out)


def test_answers_that_differ_from_training_fail(tmp_path, capsys):
    file = validation(tmp_path, entry(0), entry(1, predicted="dog"))
    with scripted(reply()) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
        assert code == 1
        assert out.splitlines()[-1].startswith("failed: 1 of 2 answers agree with training; ")
        assert re.search(r"001\.png +cat .* ✗ dog 90\.0 %", out)
        code, out, _ = run(capsys, "--url", server.url, "--expect", file, "--json")
    assert code == 1
    result = json.loads(out)
    assert [row["training"]["agrees"] for row in result["pictures"]] == [True, False]
    assert result["summary"]["verdict"]["passed"] is False


@pytest.mark.parametrize(
    ("ties", "sentence"),
    [(1, "; 1 other was a near tie; largest"), (2, "; 2 others were near ties; largest")],
)
def test_near_ties_are_shown_but_do_not_fail(tmp_path, capsys, ties, sentence):
    unsure = [entry(number, predicted="dog", margin=0.19) for number in range(ties)]
    file = validation(tmp_path, *unsure, entry(2, margin=0.2), entry(3))
    with scripted(reply()) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
        assert code == 0
        assert out.splitlines()[-1].startswith(
            f"passed: 2 of {2 + ties} answers agree with training{sentence}"
        )
        assert re.search(r"000\.png +cat .* ✗ dog 90\.0 %", out)
        _, out, _ = run(capsys, "--url", server.url, "--expect", file, "--json")
    verdict = json.loads(out)["summary"]["verdict"]
    assert {key: verdict[key] for key in ("passed", "compared", "sure", "agree", "near_ties")} == {
        "passed": True, "compared": 2 + ties, "sure": 2, "agree": 2, "near_ties": ties,
    }  # fmt: skip


@pytest.mark.parametrize(("sure", "code"), [(100, 0), (99, 1)])
def test_one_percent_of_the_sure_answers_may_differ(tmp_path, capsys, sure, code):
    entries = [entry(number, margin=0.9) for number in range(1, sure)]
    file = validation(tmp_path, entry(0, predicted="dog", margin=0.9), *entries, entry(100, margin=0.1))
    with scripted(reply()) as server:
        assert run(capsys, "--url", server.url, "--expect", file)[0] == code


@pytest.mark.parametrize(("predicted", "code"), [("cat", 0), ("dog", 1)])
def test_if_training_was_never_sure_every_answer_counts(tmp_path, capsys, predicted, code):
    file = validation(tmp_path, entry(0, margin=0.1), entry(1, predicted=predicted, margin=0.1))
    with scripted(reply()) as server:
        found, out, _ = run(capsys, "--url", server.url, "--expect", file)
    assert found == code
    assert "near tie" not in out


def test_a_picture_without_an_answer_does_not_agree(tmp_path, capsys):
    file = validation(tmp_path, entry(0), entry(1))
    (tmp_path / "pictures/001.png").write_bytes(b"bad")
    with scripted(answer=by_size) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
    assert code == 1
    assert out.splitlines()[-1].startswith("failed: 1 of 2 answers agree")


def test_a_picture_without_an_answer_fails_however_unsure_training_was(tmp_path, capsys):
    file = validation(tmp_path, entry(0), entry(1, margin=0.1))
    (tmp_path / "pictures/001.png").write_bytes(b"bad")
    with scripted(answer=by_size) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
    assert code == 1
    assert out.splitlines()[-1].startswith("failed: 1 of 2 answers agree with training; largest")


def test_large_pictures_are_scaled_down_but_not_to_compare_with_training(tmp_path, capsys):
    file = validation(tmp_path, entry(0))
    large = tmp_path / "pictures/000.png"
    Image.effect_noise((1600, 1200), 50).save(large)
    with scripted(reply()) as server:
        for arguments in ([large], [large, "--shrink", 100], [large, "--shrink", 0], ["--expect", file]):
            assert run(capsys, "--url", server.url, *arguments)[0] == 0
    sizes = [Image.open(io.BytesIO(request.body)).size for request in server.requests]
    assert sizes == [(1280, 960), (100, 75), (1600, 1200), (1600, 1200)]


def test_given_pictures_are_matched_by_name_and_others_are_only_shown(tmp_path, photos, capsys):
    file = validation(tmp_path, entry(0), entry(1))
    with scripted(reply()) as server:
        code, out, _ = run(
            capsys, photos, tmp_path / "pictures/001.png", "--url", server.url, "--expect", file
        )
        assert code == 0
        assert "passed: 1 of 1 answers agree" in out
        code, _, err = run(capsys, photos, "--url", server.url, "--expect", file)
    assert (code, err.splitlines()[-1]) == (2, f"error: none of these pictures is in {file}")


def test_several_labels_are_compared_as_a_set(tmp_path, capsys):
    both = {"file": "pictures/0.png", "labels": ["dog"], "predicted": ["dog", "cat"], "confidence": 0.9}
    none = {"file": "pictures/1.png", "labels": [], "predicted": [], "confidence": 0.9}
    file = validation(tmp_path, both, none)
    with scripted(reply(body={**ANSWER, "classes": ["cat", "dog"]})) as server:
        code, out, _ = run(capsys, "--url", server.url, "--expect", file)
    assert code == 1
    assert "failed: 1 of 2 answers agree" in out
    assert "0 of 2 (0 %) match the label" in out


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["a.jpg"],
            "error: no endpoint given: pass --endpoint NAME for one on SageMaker, or start one on this ",
        ),
        (["--url", "http://127.0.0.1:1"], "error: no pictures given: pass files, folders or addresses"),
        (["nothing.jpg", "--url", "http://127.0.0.1:1"], "error: there is no file nothing.jpg"),
        (["no*thing", "--url", "http://127.0.0.1:1"], "error: there is no file no*thing"),
        ([".cache/empty", "--url", "http://127.0.0.1:1"], "error: there is no picture in .cache/empty"),
        (
            ["a.jpg", "--url", "127.0.0.1:1"],
            "error: an address starts with http:// or https://, unlike '127",
        ),
        (
            ["--expect", "none.json", "--url", "http://x"],
            "error: cannot read none.json: No such file or directory",
        ),
        (
            ["--expect", "notes.txt", "--url", "http://x"],
            "error: notes.txt is not a validation.json that training",
        ),
        (
            ["--expect", "odd.json", "--url", "http://x"],
            "error: odd.json is not a validation.json that training",
        ),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(photos, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(photos)
    Path(".cache/empty").mkdir()
    Path("odd.json").write_text('[{"file": "a.jpg"}]')
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://x", "--endpoint", "x"],
        ["--top-k", "0"],
        ["--concurrency", "many"],
        ["--shrink", "-1"],
    ],
)
def test_argparse_rejects_wrong_values(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "error: argument" in capsys.readouterr().err


def test_an_unreachable_endpoint_is_exit_code_3_without_trying_every_picture(photos, capsys):
    for number in range(40):
        (photos / f"{number}.jpg").write_bytes(b"x")
    code, out, err = run(capsys, photos, "--url", "http://127.0.0.1:1")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("error: http://127.0.0.1:1/invocations cannot be reached")


def test_an_error_of_aws_for_every_picture_is_exit_code_3(photos, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with scripted(aws_error(400, "ValidationError", "Endpoint pets of account 1 not found.")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.url)
        code, out, err = run(capsys, photos, "--endpoint", "pets")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("error: Endpoint pets of account 1 not found; `aws sagemaker list")


def test_help_imports_nothing_heavy_and_lists_every_option():
    done = subprocess.run([sys.executable, "-X", "importtime", CLI, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in (
        "PICTURE",
        "--endpoint",
        "--url",
        "--top-k",
        "--concurrency",
        "--shrink",
        "--json",
        "--expect",
    ):
        assert word in done.stdout
    assert not re.search(r"\b(rich|requests|boto3|PIL|numpy)\b", done.stderr)


# A real endpoint


def test_the_endpoint_agrees_with_training(endpoint, capsys):
    code, out, err = run(
        capsys, "--url", endpoint.url, "--expect", endpoint.project / "train/validation.json"
    )
    assert code == 0, out + err
    assert "passed: " in out.splitlines()[-1]


# A hostile endpoint, and odd names


EVIL = "\x1b]52;c;aGk=\x07\x9b2J\u202eeno\x7f\u2066\U000e0041"
ESCAPED = "\\x1b]52;c;aGk=\\x07\\x9b2J\\u202eeno\\x7f\\u2066\\U000e0041"
RAW = re.compile("\x1b\\]|[\x07\x7f-\x9f\u202e\u2066\U000e0041]")


def evil_mask():
    """A segmentation's answer with an evil class."""
    file = io.BytesIO()
    Image.new("L", (8, 6)).save(file, "PNG")
    mask = base64.b64encode(file.getvalue()).decode()
    return {"classes": [{"class": EVIL, "share": 1}], "mask": mask, "width": 8, "height": 6}


def evil_ranking():
    return {"class": EVIL, "confidence": 0.9, "predictions": [{"class": EVIL, "confidence": 0.9}] * 2}


@pytest.mark.parametrize(
    "step",
    [
        reply(body=evil_ranking()),
        reply(body=evil_ranking() | {"classes": [EVIL]}),
        reply(body=evil_mask()),
        reply(400, {"error": "internal", "message": EVIL}),
        reply(500, EVIL),
        reply(200, EVIL),
    ],
    ids=["one label", "several labels", "mask", "message", "not an error", "not an answer"],
)
@pytest.mark.parametrize("arguments", [[], ["--no-thumbnails"], ["--json"]], ids=str)
def test_no_control_character_of_an_endpoint_reaches_a_terminal(photos, step, arguments):
    with scripted(step) as server:
        painted, _ = on_terminal(photos / "a.jpg", "--url", server.url, *arguments)
    assert not RAW.search(painted)
    assert re.search(r"\\(x|u00)1b\]52", painted)


def test_json_is_the_same_as_the_answer_with_readable_letters_and_nothing_unsafe(photos, capsys):
    answer = evil_ranking() | {"classes": ["猫", "ñandú", EVIL], "more": {EVIL: "\ud800"}}
    with scripted(reply(body=answer)) as server:
        code, out, _ = run(capsys, photos / "a.jpg", "--url", server.url, "--json")
    (row,) = json.loads(out)["pictures"]
    assert (code, {key: row[key] for key in answer}) == (0, answer)
    assert '"猫"' in out
    assert '"ñandú"' in out
    assert "\\u001b]52;c;aGk=\\u0007\\u009b2J\\u202eeno\\u007f\\u2066\\udb40\\udc41" in out
    assert "\\ud800" in out
    assert not predictor.UNSAFE.search(out.replace("\n", ""))


def test_names_of_files_are_printed_safely(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (f"{EVIL}.jpg", "猫.jpg", os.fsdecode(b"\xff.jpg"), f"{EVIL}.txt"):
        Image.new("RGB", (8, 6)).save(folder / name, "JPEG")
    with scripted(reply()) as server:
        code, out, err = run(capsys, folder, "--url", server.url)
    assert code == 0
    assert ESCAPED + ".jpg" in out.replace("\n", "").replace(" ", "")
    assert "猫.jpg" in out
    assert "\\udcff.jpg" in out
    assert f"1 file passed over: {ESCAPED}.txt\n" in err
    for arguments in ([tmp_path / EVIL], [folder / f"{EVIL}.jpg", f"--{EVIL}"]):
        with pytest.raises(SystemExit) if len(arguments) > 1 else contextlib.nullcontext():
            run(capsys, *arguments, "--url", "http://127.0.0.1:1")
        out, err = capsys.readouterr()
        assert not RAW.search(out + err)


def test_a_picture_that_is_unreadable_is_named_safely(tmp_path, capsys):
    (tmp_path / f"{EVIL}.jpg").touch()
    (tmp_path / "b.jpg").write_bytes(b"x")
    with scripted(reply()) as server:
        code, out, err = run(capsys, tmp_path / "b.jpg", tmp_path / f"{EVIL}.jpg", "--url", server.url)
    assert code == 1
    assert "the picture is empty" in out
    assert not RAW.search(out + err)


def test_what_a_folder_has_besides_pictures_is_counted(photos, capsys):
    for name in ("d.jfif", "e.JPE", "f.heic", "g.hif"):
        Image.new("RGB", (8, 6)).save(photos / name, "JPEG")
    for name in ("a.txt", "b", "more/z.pdf"):
        (photos / name).touch()
    os.mkfifo(photos / "pipe.jpg")
    found = ["a.jpg", "b.png", "d.jfif", "e.JPE", "f.heic", "g.hif", "more/c.JPEG"]
    assert cli.find_pictures([str(photos)]) == [str(photos / name) for name in found]
    assert capsys.readouterr() == ("", "4 files passed over: a.txt, b, z.pdf, ...\n")
    for path in photos.iterdir():
        if path.suffix not in (".txt", ".pdf") and path.is_file():
            path.unlink()
    (photos / "more/c.JPEG").unlink()
    with pytest.raises(cli.CommandError, match="there is no picture in"):
        cli.find_pictures([str(photos)])
    assert capsys.readouterr().err == "3 files passed over: a.txt, z.pdf, notes.txt\n"


def test_control_c_ends_at_once(photos):
    with scripted(reply(wait=20)) as server:
        command = [sys.executable, CLI, photos, "--url", server.url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while not server.requests:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped")
