"""The comparison with the guide's way: its rows, its arithmetic, what it leaves behind; never its times."""

import contextlib
import http.server
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

import cold_start
import measure
import prepare
import report
import servers
import serving
from scripted_server import reply, scripted
from support import ROOT

pytestmark = [
    pytest.mark.timeout(900),  # one run of everything, on a machine that may be busy
    pytest.mark.xdist_group("bench_serving"),  # on one worker, so that the run is made once
]


def processes_of(folder: Path) -> list[list[str]]:
    """The command lines of processes that work in or on a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if any(str(folder) in word for word in command) and process.pid != os.getpid():
            found.append(command)
    return found


@pytest.fixture(scope="module")
def train(project, tmp_path_factory):
    """The project's training with a few validation pictures, which is enough to package it in less time."""
    folder = tmp_path_factory.mktemp("few") / "train"
    shutil.copytree(project / "train", folder)
    for name, keep in (("validation", 8), ("split", 16)):
        entries = json.loads((folder / f"{name}.json").read_text())
        few = entries[:keep] if name == "validation" else entries | {"valid": entries["valid"][:keep]}
        (folder / f"{name}.json").write_text(json.dumps(few))
    return folder


@pytest.fixture(scope="module")
def comparison(train, tmp_path_factory):
    """One short run as on a machine without Java: (its result, its folder)."""
    out = tmp_path_factory.mktemp("bench") / "out"
    # An empty folder stands for a machine without Java; every program that is needed runs by its whole path.
    empty = {"PATH": str(out.parent), "JAVA_HOME": str(out.parent)}
    words = ["--train", train, "--out", out, "--chart", out / "chart.png", "--quick", "--json"]
    words += ["--stacks", "bare,plain,torchserve"]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "serving.py", *words],
        cwd="/",
        env=os.environ | empty,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), out


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    file.write_bytes(prepare.encode(prepare.noise_photo(320, 240), 100_000))
    return file


# One run


def test_every_way_has_its_rows(comparison):
    rows = comparison[0]["rows"]
    assert [(row["way"], row["stack"]) for row in rows] == [
        (way, stack) for stack in ("bare", "plain") for way in ("guide", "exact", "fast")
    ]
    for row in rows:
        numbers = ["cold_start_s", "p50_ms", "p99_ms", "memory_mb", "archive_mb", "large_ms"]
        numbers += (
            ["model_ms", "theoretical_minimum_ms"]
            if row["stack"] == "bare"
            else ["per_second_4", "per_second_16"]
        )
        assert all(row[key] > 0 for key in numbers), row
        assert row["p99_ms"] >= row["p50_ms"]
        assert row["refused"] == 0
        assert (row["shrunk_ms"] is not None) == (row["stack"] == "plain" and row["way"] != "guide")


def test_every_ratio_is_a_number_above_zero(comparison):
    measures = {
        "latency",
        "throughput",
        "cold_start",
        "memory",
        "photo",
        "photo_shrunk",
        "theoretical_minimum",
    }
    for kind in ("ratios", "ratios_strict"):
        assert set(comparison[0][kind]) == {"exact", "fast"}
        for ratios in comparison[0][kind].values():
            assert set(ratios) == measures
            assert all(math.isfinite(value) and value > 0 for value in ratios.values())


def test_all_servers_of_a_way_give_the_same_answer_and_exact_the_guides(comparison):
    answers = {(row["way"], row["stack"]): row["answer"] for row in comparison[0]["rows"]}
    for way in ("guide", "exact", "fast"):
        assert answers[way, "bare"] == answers[way, "plain"]
    guide, ours = answers["guide", "bare"], answers["exact", "bare"]
    assert guide["class"] == ours["class"]
    assert abs(guide["confidence"] - ours["confidence"]) < 1e-3


def test_without_java_the_guides_handlers_are_on_a_plain_server_with_a_note(comparison):
    assert any("Java" in note for note in comparison[0]["notes"])
    assert comparison[0]["baseline"] == "plain server"


def test_the_result_has_machine_date_versions_pictures_and_price(comparison):
    result = comparison[0]
    assert result["machine"]["processor"]
    assert result["machine"]["cores"] >= 1
    assert result["when"].startswith("20")
    assert {"python", "fastai", "torch", "openvino", "ray"} <= set(result["versions"])
    assert result["network"] == "resnet18 at 48 x 48"
    assert "4000 x 3000" in result["large"]
    assert len(result["others_percent"]) == result["rounds"] == 1
    assert set(result["dollars_per_million"]) == {"guide", "exact", "fast"}


def test_the_result_is_kept_in_a_file(comparison):
    assert json.loads((comparison[1] / "result.json").read_text()) == comparison[0]


def test_the_toolkits_packages_are_listed_with_their_versions():
    assert {"torchserve==0.12.0", "sagemaker-pytorch-inference==2.0.25"} <= set(prepare.toolkit_packages())


def test_the_page_has_every_row_and_every_ratio(comparison):
    page = io.StringIO()
    report.show(comparison[0], Console(file=page, width=130))
    for row in comparison[0]["rows"]:
        assert row["name"] in page.getvalue()
    for ratios in comparison[0]["ratios"].values():
        assert all(f"{value:.2f}" in page.getvalue() for value in ratios.values())
    assert max(map(len, page.getvalue().splitlines())) <= 130


def test_the_chart_is_a_picture(comparison):
    with Image.open(comparison[1] / "chart.png") as chart:
        assert chart.format == "PNG"
        assert len(chart.convert("RGB").getcolors(10**6)) > 10


def test_no_process_is_left(comparison):
    assert processes_of(comparison[1]) == []


# Servers


def test_an_error_while_a_server_runs_leaves_no_process(project, photo):
    row = servers.Row("exact", "plain", project / "model")
    pids = []

    def use() -> None:
        with servers.server(row, Path()) as server:
            pids.append(server.process.pid)
            assert servers.first_answer(server, photo.read_bytes())[1]["class"]
            environment = psutil.Process(pids[0]).environ()
            assert environment.items() >= servers.server_environment(row.model).items()
            with servers.peak_memory(pids[0]) as peak:
                pass
            assert peak() > 20  # megabytes, for numpy and an engine
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert servers.session(pids[0]) == []


def test_our_servers_get_the_deployed_settings_and_the_guides_do_not(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    ours, guide = (servers.row_environment(servers.Row(way, "bare", tmp_path)) for way in ("exact", "guide"))
    assert ours["MALLOC_MMAP_THRESHOLD_"] == "4194304"
    assert ours["SM_MODEL_DIR"] == str(tmp_path)
    assert "AWS_PROFILE" not in ours
    assert "MALLOC_MMAP_THRESHOLD_" not in guide


STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the child inherits
subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]).wait()
"""


@pytest.mark.parametrize("interrupted", [False, True], ids=["time-out", "Ctrl-C"])
def test_what_ignores_sigterm_is_killed_with_its_children(monkeypatch, tmp_path, interrupted):
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.01)
    before = signal.getsignal(signal.SIGINT)
    command, environment = [sys.executable, "-c", STUBBORN], dict(os.environ)

    def interrupt(_: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def use() -> None:
        with servers.running(command, tmp_path, environment, subprocess.PIPE) as running:
            leaders.append(running.process.pid)
            assert running.process.stdout
            assert running.process.stdout.readline() == b"1\n"
            assert len(servers.session(leaders[0])) == 2
            if interrupted:
                monkeypatch.setattr(running.process, "wait", interrupt)

    leaders = []
    with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
        use()
    assert servers.session(leaders[0]) == []
    assert signal.getsignal(signal.SIGINT) == before


def test_a_server_that_cannot_start_is_an_error_with_its_log(project, tmp_path):
    shutil.copytree(project / "model", tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"x")
    row = servers.Row("exact", "plain", tmp_path / "model")
    with servers.server(row, Path()) as server, pytest.raises(servers.BenchError, match=r"model\.onnx"):
        servers.first_answer(server, b"")


def test_torchserve_with_sagemakers_toolkit_answers_as_the_bare_handlers(comparison, tmp_path):
    if not servers.has_java():
        pytest.skip("no Java on this machine")
    try:
        toolkit = prepare.install_toolkit(tmp_path)
    except servers.BenchError:
        pytest.skip("no network to install TorchServe from")
    row = servers.Row("guide", "torchserve-1", comparison[1] / "guide" / "model")
    with servers.server(row, toolkit) as server:
        answer = servers.first_answer(server, (comparison[1] / "photo.jpg").read_bytes())[1]
        names = [process.name() for process in servers.session(server.process.pid)]
    expected = next(row["answer"] for row in comparison[0]["rows"] if row["way"] == "guide")
    assert answer["class"] == expected["class"]
    assert answer["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
    assert any("java" in name for name in names)
    assert servers.session(server.process.pid) == []


# Arithmetic


def test_ratios_are_how_many_times_better():
    """Two rounds of made-up measurements, where everything is known."""
    guide = {"p50_ms": 100, "per_second_4": 5, "cold_start_s": 10, "memory_mb": 2000, "large_ms": 300}
    one_worker = guide | {"p50_ms": 90, "per_second_4": 8}
    ours = {
        "p50_ms": 50,
        "per_second_4": 16,
        "cold_start_s": 1,
        "memory_mb": 250,
        "large_ms": 100,
        "shrunk_ms": 60,
    }
    bare = {"model_ms": 40, "theoretical_minimum_ms": 32}
    rounds = [
        {
            ("guide", "torchserve"): guide,
            ("guide", "torchserve-1"): one_worker,
            ("exact", "plain"): ours | {"p50_ms": p50},
            ("exact", "bare"): bare,
        }
        for p50 in (50, 25)
    ]
    both = ["torchserve", "torchserve-1"]
    settings = {measure: ["torchserve"] for measure in report.MEASURES} | {"throughput": both}
    found = report.ratios(rounds, "exact", settings)
    assert found["latency"] == [3, 2, 4]  # the median of two rounds, the lowest and the highest
    medians = {key: values[0] for key, values in found.items() if key != "latency"}
    ours = {"throughput": 2, "cold_start": 10, "memory": 8, "photo": 3, "photo_shrunk": 5}
    assert medians == ours | {"theoretical_minimum": 1.25}
    strict = report.ratios(rounds, "exact", dict.fromkeys(report.MEASURES, both))
    assert strict["latency"] == [2.7, 1.8, 3.6]


def test_percentiles_are_by_nearest_rank():
    hundred = [float(n) for n in range(1, 101)]
    assert [measure.percentile(hundred, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert measure.percentile([1.0, 2.0, 3.0], 50) == 2
    assert [measure.percentile([7.0], percent) for percent in (1, 99)] == [7, 7]
    assert measure.percentile([], 99) is None


def test_p99_is_of_all_requests_of_all_rounds():
    bare = {"precision": "fp32", "ms": [1.0], "answer": {"class": "cat", "confidence": 1.0}}
    rounds = [
        {("exact", "bare"): bare, ("exact", "plain"): bare | {"ms": [float(n) for n in numbers]}}
        for numbers in (range(100, 50, -1), range(1, 51))
    ]
    row = report.summary(rounds, "exact", "plain")
    assert (row["p99_ms"], row["requests"]) == (99, 100)


def test_the_price_of_a_million_pictures_is_that_of_their_hours():
    rows = [
        {"way": "guide", "stack": "torchserve", "per_second_4": 5, "per_second_16": 4},
        {"way": "guide", "stack": "torchserve-1", "per_second_4": 8, "per_second_16": 10},
        {"way": "exact", "stack": "plain", "per_second_4": 20, "per_second_16": 20},
        {"way": "exact", "stack": "ray", "per_second_4": 90, "per_second_16": 90},
    ]
    assert report.dollars(rows) == {"guide": 2.975, "exact": 1.488}  # at 36,000 and 72,000 for $0.1071


# Measurements


def run_part(capsys, *words):
    """One part of measure.py in this process: what it prints last."""
    measure.main([str(word) for word in words])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_load_counts_only_what_was_answered(photo, capsys):
    """A server that refuses every third request."""
    statuses = (503 if n % 3 == 0 else 200 for n in range(1, 10**9))
    with scripted(answer=lambda _: reply(next(statuses), "")) as server:
        url = f"{server.url}/invocations"
        result = run_part(capsys, "load", "--url", url, "--photo", photo, "--seconds", 0.1)
    assert len(result["ms"]) >= 1 + measure.MIN_CALLS
    assert len(result["ms"]) + len(result["refused"]) == len(server.requests)
    assert set(result["refused"]) == {503}
    assert len(result["refused"]) == len(server.requests) // 3
    assert result["rate"] > 0


def test_the_fastest_kernel_is_measured_for_each_precision(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the part puts --code before it
    result = run_part(
        capsys, "kernels", "--code", ROOT / "serve", "--precision", "fp32", "int8", "--seconds", 0.01
    )
    assert set(result) == {"fp32", "int8"}
    assert all(rate > 0 for rate in result.values())


@pytest.mark.parametrize("kind", ["matrix_product", "convolution"])
def test_int8_kernels_are_int8(kind):
    import openvino

    shape = {"matrix_product": (256,), "convolution": (64, 14, 3)}[kind]
    model, operations = getattr(measure, kind)(*shape, "int8")
    assert operations == {"matrix_product": 4 * 256**3, "convolution": 4 * 2 * 14**2 * 64**2 * 9}[kind]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [dict(node.get_rt_info()) for node in compiled.get_runtime_model().get_ops()]
    heavy = [node for node in nodes if node["layerType"].value in ("Convolution", "FullyConnected", "MatMul")]
    assert heavy
    assert {node["runtimePrecision"].value for node in heavy} <= {"i8", "u8"}


def test_operations_are_counted_as_pytorch_counts_them():
    import torch

    layer = torch.nn.Conv2d(3, 8, 3, bias=False)
    assert measure.flops(lambda: layer(torch.zeros(1, 3, 10, 10))) == 2 * 3 * 8 * 9 * 8 * 8


def test_the_guides_handlers_read_bytes_and_addresses(photo):
    import guide

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    body = json.dumps({"url": f"http://127.0.0.1:{server.server_port}/photo.jpg"}).encode()
    pictures = [guide.input_fn(photo.read_bytes()), guide.input_fn(body, "application/json")]
    server.shutdown()
    server.server_close()
    assert np.array_equal(*map(np.asarray, pictures))
    with pytest.raises(ValueError, match="text/plain"):
        guide.input_fn(b"", "text/plain")


def test_photographs_are_the_same_in_each_run_and_of_the_size_they_should_be(tmp_path):
    photo, large, *_ = prepare.write_photos(None, tmp_path)
    first = photo.read_bytes()
    assert 80_000 < len(first) <= prepare.PHOTO_BYTES
    assert large.stat().st_size <= prepare.LARGE_BYTES
    with Image.open(large) as picture:
        assert picture.size == prepare.LARGE
    assert prepare.encode(prepare.noise_photo(*prepare.PHOTO), prepare.PHOTO_BYTES) == first


# Mistakes


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--stacks", "ray"], "bare and plain"),
        (["--stacks", "bare,plain,flask"], "bare and plain"),
        (["--train", "nowhere", "--quick"], "nowhere"),
        (["--photo", "nowhere.jpg", "--quick"], "nowhere.jpg"),
        (["--rounds", "0"], "rounds"),
    ],
)
def test_a_users_mistake_is_one_sentence(monkeypatch, capsys, tmp_path, words, named):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of pytest stay
    monkeypatch.chdir(tmp_path)
    try:
        code = serving.main(["--out", str(tmp_path), *words])
    except SystemExit as stop:  # argparse's
        code = stop.code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert code == 2
    assert len(errors) == 1
    assert named in errors[0]


@pytest.mark.parametrize("task", ["multi", "regression", "points", "segmentation"])
def test_a_model_that_the_guide_cannot_serve_is_refused_before_anything_is_made(tmp_path, capsys, task):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "export.pkl").touch()
    (tmp_path / "train" / "metrics.json").write_text(json.dumps({"task": task}))
    words = ["--train", str(tmp_path / "train"), "--out", str(tmp_path / "out"), "--quick"]
    assert serving.main(words) == 2
    assert f"has a model of the task {task}, which the guide's handlers cannot answer: " in (
        capsys.readouterr().err
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "nowhere"], "nowhere is not a packaged model"),
        (["--model", "nowhere", "--memory", "1024,0"], "list of positive numbers"),
        (["--model", "nowhere", "--rounds", "0"], "whole number from 1"),
    ],
)
def test_a_users_mistake_about_the_cold_start_is_one_sentence(capsys, words, named):
    try:
        code = cold_start.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert named in capsys.readouterr().err


def test_memory_of_a_container_is_in_megabytes(monkeypatch):
    used = iter(["512KiB / 1GiB", "306.5MiB / 1GiB", "1.5GiB / 2GiB"])
    monkeypatch.setattr(cold_start, "docker", lambda *_: next(used))
    assert [cold_start.memory_used("x") for _ in range(3)] == [1, 321, 1611]
