"""bench/load.py: what it sends, what it counts, when it stops, and its question before it costs money."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import load
from scripted_server import aws_error, model_error, reply, scripted
from support import ROOT

BUSY = {"error": "busy", "message": "too many requests wait already: try again in a second"}
SHORT = ("--concurrency", "1,2", "--seconds", "0.3")
STEP = {"concurrency", "seconds", "requests", "pictures_per_second", "p50_ms", "p90_ms", "p99_ms", "errors"}


def run(capsys, *words):
    """The exit code, stdout and stderr of a command line."""
    code = load.main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 60).save(path)
    return path


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Set false credentials; returns a function that points sagemaker-runtime at an address."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return lambda url: monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)


# Against a real server


def test_a_real_endpoint_is_loaded_and_the_result_is_shown_and_written(endpoint, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    code, shown, err = run(capsys, "--url", endpoint.url, *SHORT, "--p99", "none", "--out", out)
    assert code == 0
    assert re.search(r"^ +1 +[\d.]+ +━+╸? +[\d.]+ +[\d.]+ +[\d.]+ *$", shown, re.MULTILINE)
    assert re.search(r"^best: concurrency \d, [\d.]+ pictures/s, p99 [\d.]+ ms$", shown, re.MULTILINE)
    assert re.search(r"^concurrency 2: [\d.]+ pictures/s, p99 [\d.]+ ms$", err, re.MULTILINE)

    result = json.loads(out.read_text())
    assert list(out.parent.iterdir()) == [out]
    assert result["endpoint"] == endpoint.url
    assert result["picture"]["from"] == "generated"
    assert 80_000 < result["picture"]["bytes"] <= 100_000
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00", result["when"])
    assert result["limit"] == {"p99_ms": None, "errors": 0.05}
    assert [step["concurrency"] for step in result["steps"]] == [1, 2]
    for step in result["steps"]:
        assert set(step) == STEP
        assert step["errors"] == {}
        assert 0 < step["p50_ms"] <= step["p90_ms"] <= step["p99_ms"] <= 1000 * step["seconds"]
        assert step["pictures_per_second"] == pytest.approx(step["requests"] / step["seconds"], rel=0.1)
    assert result["best"] in [{key: step[key] for key in result["best"]} for step in result["steps"]]


def test_a_real_endpoint_that_is_too_slow_is_exit_1_after_the_first_step(endpoint, capsys):
    code, out, err = run(capsys, "--url", endpoint.url, *SHORT, "--p99", "0.001ms", "--json")
    result = json.loads(out)
    assert (code, result["best"], len(result["steps"])) == (1, None, 1)
    assert re.search(r"last step: p99 of [\d.]+ ms is over 0\.001 ms", err)


def test_a_real_endpoint_on_sagemaker_is_loaded_by_name(endpoint, aws, capsys):
    aws(endpoint.url)
    code, out, _ = run(capsys, "--endpoint", "pets", "--yes", *SHORT, "--p99", "none", "--json")
    result = json.loads(out)
    assert (code, result["endpoint"]) == (0, "pets")
    assert [step["errors"] for step in result["steps"]] == [{}, {}]


# What it counts


def flaky(share, refusal=BUSY, status=503):
    """Answers of which one in `share` fails, but not among the first eight: they warm up."""
    count = iter(range(10**9))
    return lambda _: reply() if (n := next(count)) < 8 or n % share else reply(status, refusal)


@pytest.mark.parametrize(
    "answer",
    [
        {"values": [1.5]},
        {"points": [[1, 2], [3, 4]]},
        {"classes": [{"class": "cat", "share": 1.0}], "mask": "iVBO" * 100_000, "width": 3, "height": 2},
    ],
    ids=["values", "points", "mask"],
)
def test_answers_of_every_task_count(photo, capsys, answer):
    with scripted(reply(body=answer)) as server:
        code, out, _ = run(capsys, "--url", server.url, "--pictures", photo, *SHORT, "--json")
    result = json.loads(out)
    assert code == 0
    assert [step["errors"] for step in result["steps"]] == [{}, {}]
    assert len(server.requests) == 1 + load.WARM_UPS + 1 + 2 + sum(s["requests"] for s in result["steps"])


def test_what_failed_is_counted_by_status_and_code_and_not_retried(photo, capsys):
    words = ("--pictures", photo, "--concurrency", "4", "--seconds", "0.3", "--json")
    with scripted(answer=flaky(10)) as server:
        _, out, _ = run(capsys, "--url", server.url, *words)
    (step,) = json.loads(out)["steps"]
    assert set(step["errors"]) == {"503 busy"}
    before = 1 + load.WARM_UPS + 4  # each of the four opens its connection
    assert len(server.requests) == before + step["requests"]
    assert step["errors"]["503 busy"] == sum(n % 10 == 0 for n in range(before, len(server.requests)))


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (reply(503, BUSY), "503 busy"),
        (reply(500, "oops"), "500 unexpected"),
        (reply(200, "<html>It works</html>"), "200 unexpected"),
        (reply(200, "[" * 100_000), "200 unexpected"),
        (reply(200, '["cat"]'), "200 unexpected"),
        (reply(302, "", Location="/elsewhere"), "302 unexpected"),
        (reply(cut=True), "unreachable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_with_too_many_failures_is_the_last(photo, capsys, answer, name):
    steps = [reply()] * (1 + load.WARM_UPS + 1)
    with scripted(*steps, answer) as server:
        code, out, err = run(capsys, "--url", server.url, "--pictures", photo, *SHORT, "--json")
    result = json.loads(out)
    (step,) = result["steps"]
    assert (code, result["best"]) == (1, None)
    assert (step["errors"], step["p99_ms"]) == ({name: step["requests"]}, None)
    assert f"last step: 100 % of the requests failed ({name})" in err


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (model_error(503, BUSY), "503 busy"),
        (aws_error(400, "ThrottlingException", "Rate exceeded"), "400 ThrottlingException"),
        (aws_error(503, "ServiceUnavailable", "Try later"), "503 ServiceUnavailable"),
    ],
    ids=["the container", "AWS", "AWS is down"],
)
def test_what_sagemaker_refuses_is_counted_once_and_not_retried(photo, aws, capsys, answer, name):
    before = 1 + load.WARM_UPS + 1
    with scripted(*[reply()] * before, answer) as server:
        aws(server.url)
        words = ("--endpoint", "pets", "--yes", "--pictures", photo, *SHORT, "--json")
        code, out, _ = run(capsys, *words)
    (step,) = json.loads(out)["steps"]
    assert (code, step["errors"]) == (1, {name: step["requests"]})
    assert len(server.requests) == before + step["requests"]


def test_as_many_requests_are_in_flight_as_the_step_says(photo, capsys):
    count, in_flight, highest = iter(range(10**9)), [0], []
    lock, five = threading.Lock(), threading.Barrier(5)

    def answer(_):
        with lock:
            number = next(count) - 1 - load.WARM_UPS
            in_flight[0] += 1
            highest.append(in_flight[0])
        if 0 <= number < 10:  # five open their connections, then five count: each waits for the other four
            five.wait(60)
        with lock:
            in_flight[0] -= 1
        return reply()

    with scripted(answer=answer) as server:
        run(capsys, "--url", server.url, "--pictures", photo, "--concurrency", "5", "--seconds", "0.1")
    assert max(highest) == 5


def test_the_best_step_is_the_first_near_the_highest_throughput():
    steps = [
        {"concurrency": n, "pictures_per_second": rate, "p99_ms": 9.0}
        for n, rate in ((1, 50), (2, 98), (4, 100), (8, 99.5))
    ]
    assert load.find_best(steps)["concurrency"] == 2
    assert load.find_best(steps[:1]) == steps[0]
    assert load.find_best([]) is None


def test_pictures_are_sent_in_turn_from_files_and_folders(photo, tmp_path, capsys):
    (tmp_path / "more/deep").mkdir(parents=True)
    Image.effect_noise((20, 20), 9).save(tmp_path / "more/deep/a.PNG")
    (tmp_path / "more/notes.txt").write_text("no picture")
    with scripted(reply()) as server:
        words = ("--pictures", photo, tmp_path / "more", *SHORT, "--json")
        _, out, _ = run(capsys, "--url", server.url, *words)
    sent = {request.body for request in server.requests}
    assert sent == {photo.read_bytes(), (tmp_path / "more/deep/a.PNG").read_bytes()}
    picture = json.loads(out)["picture"]
    assert (picture["from"], picture["files"]) == (f"{photo}, {tmp_path / 'more'}", 2)


# Before money is spent


@pytest.fixture
def fake_sagemaker(aws):
    with scripted(reply()) as server:
        aws(server.url)
        yield server


def test_without_a_terminal_no_money_is_spent(fake_sagemaker, photo, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, out, err = run(capsys, "--endpoint", "pets", "--pictures", photo, *SHORT)
    assert (code, out, fake_sagemaker.requests) == (2, "", [])
    assert err == "error: this load may cost money, and stdin is not a terminal: pass --yes to confirm\n"


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_on_a_terminal_it_asks_first(fake_sagemaker, photo, monkeypatch, capsys, typed, code):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def readline(self):
            assert fake_sagemaker.requests == []
            return super().readline()

    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    found, out, err = run(capsys, "--endpoint", "pets", "--pictures", photo, *SHORT, "--json")
    assert "pets on SageMaker will have up to 2 requests in flight" in err
    assert "Continue? [y/N]\n" in err
    assert found == code
    assert bool(fake_sagemaker.requests) == (code == 0)
    assert (
        json.loads(out)["best"] if code == 0 else err.endswith("error: not confirmed: no request was sent\n")
    )


def test_a_real_terminal_is_one(fake_sagemaker, photo):
    ours, theirs = pty.openpty()
    words = ["--endpoint", "pets", "--pictures", photo, *SHORT, "--json"]
    command = [sys.executable, ROOT / "bench/load.py", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        question = b"".join(process.stderr.readline() for _ in range(2)).decode()
        assert fake_sagemaker.requests == []
        os.write(ours, b"y\n")
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert question.endswith("Continue? [y/N]\n")
    assert process.returncode == 0
    assert json.loads(out)["best"]


# What goes wrong


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            ["--url", "http://127.0.0.1:1"],
            3,
            "http://127.0.0.1:1 does not answer a picture (unreachable): check",
        ),
        (["--url", "127.0.0.1:1"], 2, "an address starts with http:// or https://, not like '127.0.0.1:1'"),
        (["--url", "http://x", "--pictures", "none.jpg"], 2, "none.jpg: No such file or directory: name"),
        (["--url", "http://x", "--pictures", "empty"], 2, "there is no picture in empty"),
        (["--url", "http://x", "--out", "photo.jpg/b.json"], 2, "photo.jpg: "),
    ],
)
def test_what_goes_wrong_is_one_sentence(photo, monkeypatch, capsys, words, code, sentence):
    monkeypatch.chdir(photo.parent)
    Path("empty").mkdir()
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, "")
    assert err.splitlines()[-1].startswith(f"error: {sentence}")


def test_a_server_that_refuses_the_first_picture_is_not_loaded(photo, capsys):
    with scripted(reply(415, {"error": "unsupported_type", "message": "no"})) as server:
        code, _, err = run(capsys, "--url", server.url, "--pictures", photo)
    assert (code, len(server.requests)) == (3, 1)
    assert "(415 unsupported_type)" in err


def test_what_was_written_before_stays_when_there_is_nothing_new(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("of yesterday")
    assert run(capsys, "--url", "http://127.0.0.1:1", "--out", tmp_path / "bench.json")[0] == 3
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of yesterday"]


def test_a_result_that_cannot_be_written_is_a_sentence_and_leaves_nothing(photo, tmp_path, capsys):
    (tmp_path / "bench.json").mkdir()
    with scripted(reply()) as server:
        words = ("--pictures", photo, *SHORT, "--out", tmp_path / "bench.json")
        code, _, err = run(capsys, "--url", server.url, *words)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "photo.jpg"]


@pytest.mark.parametrize(
    "words",
    [[], ["--url", "http://x", "--endpoint", "x"], ["--url", "http://x", "--p99", "200"]]
    + [["--url", "http://x", "--concurrency", text] for text in ("0", "1,,2", "many", "1,-2")],
)
def test_argparse_refuses_what_makes_no_sense(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        load.main(words)
    assert "error: " in capsys.readouterr().err


def test_durations():
    assert [load.milliseconds(text) for text in ("200ms", "1.5s", "none")] == [200, 1500, None]
