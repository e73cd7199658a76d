"""The comparison with the guide's way: its structure, arithmetic and what it leaves behind; never times."""

import http.server
import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

import prepare
import probe
import report
import stacks
from support import ROOT

pytestmark = pytest.mark.timeout(900)  # one run of everything, on a machine that may be busy


def mine(folder: Path) -> list[list[str]]:
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


def alive(leader: int) -> list[psutil.Process]:
    """The processes of a session that are more than an entry in the table."""
    return [one for one in stacks.session(leader) if one.status() != psutil.STATUS_ZOMBIE]


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
def quick(train, tmp_path_factory):
    """One quick run as on a machine without Java: (what it printed, its folder, its stderr)."""
    out = tmp_path_factory.mktemp("bench") / "out"
    # A place with nothing in it stands for a machine without Java; programs run by their whole path.
    places = {"PATH": str(out.parent), "JAVA_HOME": str(out.parent)}
    words = ["--train", train, "--out", out, "--chart", out / "chart.png", "--quick", "--json"]
    words += ["--stacks", "bare,plain,torchserve"]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "serving.py", *words],
        cwd="/",
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), out, done.stderr


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    file.write_bytes(prepare.encode(prepare.clouds(320, 240), 100_000))
    return file


def test_every_way_has_its_rows(quick):
    rows = quick[0]["rows"]
    assert [(row["way"], row["stack"]) for row in rows] == [
        (way, stack) for stack in ("bare", "plain") for way in ("guide", "exact", "fast")
    ]
    for row in rows:
        numbers = ["wake_s", "p50_ms", "p99_ms", "memory_mb", "archive_mb", "large_ms"]
        numbers += ["model_ms", "floor_ms"] if row["stack"] == "bare" else ["per_second_4", "per_second_16"]
        assert all(row[key] > 0 for key in numbers), row
        assert row["p99_ms"] >= row["p50_ms"]
        assert row["refused"] == 0
        assert (row["shrunk_ms"] is not None) == (row["stack"] == "plain" and row["way"] != "guide")


def test_every_ratio_is_a_number_above_zero(quick):
    measures = {"latency", "throughput", "wake", "memory", "photo", "photo_shrunk", "floor"}
    for kind in ("ratios", "ratios_strict"):
        assert set(quick[0][kind]) == {"exact", "fast"}
        for ratios in quick[0][kind].values():
            assert set(ratios) == measures
            assert all(math.isfinite(value) and value > 0 for value in ratios.values())


def test_all_servers_of_a_way_answer_alike_and_exact_as_the_guide(quick):
    answers = {(row["way"], row["stack"]): row["answer"] for row in quick[0]["rows"]}
    for way in ("guide", "exact", "fast"):
        assert answers[way, "bare"] == answers[way, "plain"]
    guides, ours = answers["guide", "bare"], answers["exact", "bare"]
    assert guides["class"] == ours["class"]
    assert abs(guides["confidence"] - ours["confidence"]) < 1e-3


def test_without_java_the_guides_handlers_are_on_a_plain_server_and_it_says_so(quick):
    assert any("Java" in note for note in quick[0]["notes"])
    assert quick[0]["baseline"] == "plain server"


def test_it_says_machine_date_versions_pictures_and_price(quick):
    result = quick[0]
    assert result["machine"]["processor"]
    assert result["machine"]["cores"] >= 1
    assert result["when"].startswith("20")
    assert {"python", "fastai", "torch", "openvino", "ray"} <= set(result["versions"])
    assert result["network"] == "resnet18 at 48 x 48"
    assert "4000 x 3000" in result["large"]
    assert len(result["others_percent"]) == result["rounds"] == 1
    assert set(result["dollars_per_million"]) == {"guide", "exact", "fast"}


def test_the_toolkit_is_named_with_its_versions():
    assert {"torchserve==0.12.0", "sagemaker-pytorch-inference==2.0.25"} <= set(prepare.toolkit_packages())


def test_people_get_every_row_and_every_ratio(quick):
    page = io.StringIO()
    report.show(quick[0], Console(file=page, width=130))
    for row in quick[0]["rows"]:
        assert row["name"] in page.getvalue()
    for ratios in quick[0]["ratios"].values():
        assert all(f"{value:.2f}" in page.getvalue() for value in ratios.values())
    assert max(map(len, page.getvalue().splitlines())) <= 130


def test_the_chart_is_a_picture(quick):
    with Image.open(quick[1] / "chart.png") as chart:
        assert chart.format == "PNG"
        assert len(chart.convert("RGB").getcolors(10**6)) > 10


def test_it_leaves_no_process(quick):
    assert mine(quick[1]) == []


def test_a_server_that_is_left_by_an_error_leaves_no_process(project, photo, tmp_path):
    shutil.copytree(project / "model", tmp_path / "model")  # its bytecode is not to lie in the tests' own
    row = stacks.Row("exact", "plain", tmp_path / "model")

    def use() -> None:
        with stacks.server(row, Path()) as server:
            seen.append(server.process.pid)
            assert stacks.first_answer(server, photo.read_bytes())[1]["class"]
            with stacks.peak_memory(server.process.pid) as peak:
                pass
            assert peak() > 20  # megabytes, for numpy and an engine
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        use()
    assert alive(seen[0]) == []


def test_a_server_that_cannot_start_is_an_error_with_its_log(project, tmp_path):
    shutil.copytree(project / "model", tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"x")
    row = stacks.Row("exact", "plain", tmp_path / "model")
    with stacks.server(row, Path()) as server, pytest.raises(stacks.BenchError, match=r"model\.onnx"):
        stacks.first_answer(server, b"")


def test_torchserve_with_sagemakers_toolkit_answers_as_the_bare_handlers(quick, tmp_path):
    if not stacks.java():
        pytest.skip("no Java on this machine")
    try:
        toolkit = prepare.install_toolkit(tmp_path)
    except stacks.BenchError:
        pytest.skip("no network to install TorchServe from")
    row = stacks.Row("guide", "torchserve-1", quick[1] / "guide" / "model")
    with stacks.server(row, toolkit) as server:
        answer = stacks.first_answer(server, (quick[1] / "photo.jpg").read_bytes())[1]
        names = [process.name() for process in stacks.session(server.process.pid)]
    expected = next(row["answer"] for row in quick[0]["rows"] if row["way"] == "guide")
    assert answer["class"] == expected["class"]
    assert answer["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
    assert any("java" in name for name in names)
    assert alive(server.process.pid) == []


def test_ratios_say_how_many_times_better(quick):
    """Two rounds of made-up measurements, where everything is known."""
    guide = {"p50_ms": 100, "per_second_4": 5, "wake_s": 10, "memory_mb": 2000, "large_ms": 300}
    one_worker = guide | {"p50_ms": 90, "per_second_4": 8}
    ours = {"p50_ms": 50, "per_second_4": 16, "wake_s": 1, "memory_mb": 250, "large_ms": 100, "shrunk_ms": 60}
    bare = {"model_ms": 40, "floor_ms": 32}
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
    middles = {key: values[0] for key, values in found.items() if key != "latency"}
    assert middles == {"throughput": 2, "wake": 10, "memory": 8, "photo": 3, "photo_shrunk": 5, "floor": 1.25}
    strict = report.ratios(rounds, "exact", dict.fromkeys(report.MEASURES, both))
    assert strict["latency"] == [2.7, 1.8, 3.6]


def test_a_million_pictures_cost_what_their_hours_cost():
    rows = [
        {"way": "guide", "stack": "torchserve", "per_second_4": 5, "per_second_16": 4},
        {"way": "guide", "stack": "torchserve-1", "per_second_4": 8, "per_second_16": 10},
        {"way": "exact", "stack": "plain", "per_second_4": 20, "per_second_16": 20},
        {"way": "exact", "stack": "ray", "per_second_4": 90, "per_second_16": 90},
    ]
    assert report.dollars(rows) == {"guide": 2.975, "exact": 1.488}  # at 36,000 and 72,000 for $0.1071


def test_load_counts_only_what_was_answered(photo):
    """A server that refuses every third request."""

    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        count = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            Server.count += 1
            self.send_response(503 if Server.count % 3 == 0 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/invocations"
    said = stacks.probe("load", url=url, photo=photo, concurrency=1, seconds=0.1)
    server.shutdown()
    server.server_close()
    assert len(said["ms"]) >= 9
    assert len(said["ms"]) + len(said["refused"]) == Server.count
    assert set(said["refused"]) == {503}
    assert said["rate"] > 0


def test_the_floor_is_measured_for_each_precision():
    said = stacks.probe("floor", code=ROOT / "serve", precision=["fp32", "int8"], seconds=0.01)
    assert set(said) == {"fp32", "int8"}
    assert all(rate > 0 for rate in said.values())


@pytest.mark.parametrize("kind", ["matrix_product", "convolution"])
def test_int8_kernels_are_int8(kind):
    import openvino

    made = {"matrix_product": (256,), "convolution": (64, 14, 3)}[kind]
    model, operations = getattr(probe, kind)(*made, "int8")
    assert operations == {"matrix_product": 4 * 256**3, "convolution": 4 * 2 * 14**2 * 64**2 * 9}[kind]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [dict(node.get_rt_info()) for node in compiled.get_runtime_model().get_ops()]
    heavy = [node for node in nodes if node["layerType"].value in ("Convolution", "FullyConnected", "MatMul")]
    assert heavy
    assert {node["runtimePrecision"].value for node in heavy} <= {"i8", "u8"}


def test_operations_are_counted_as_pytorch_counts_them():
    import torch

    layer = torch.nn.Conv2d(3, 8, 3, bias=False)
    assert probe.flops(lambda: layer(torch.zeros(1, 3, 10, 10))) == 2 * 3 * 8 * 9 * 8 * 8


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
    body = json.dumps({"url": f"http://127.0.0.1:{server.server_port}/photo.jpg"})
    pictures = [guide.input_fn(photo.read_bytes()), guide.input_fn(body, "application/json")]
    server.shutdown()
    server.server_close()
    assert np.array_equal(*map(np.asarray, pictures))
    with pytest.raises(ValueError, match="text/plain"):
        guide.input_fn(b"", "text/plain")


def test_photographs_are_the_same_everywhere_and_of_the_size_they_say(tmp_path):
    photo, large, *_ = prepare.photographs(None, tmp_path)
    first = photo.read_bytes()
    assert 80_000 < len(first) <= prepare.PHOTO_BYTES
    assert large.stat().st_size <= prepare.LARGE_BYTES
    with Image.open(large) as picture:
        assert picture.size == prepare.LARGE
    assert prepare.photographs(None, tmp_path)[0].read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stacks", "ray"], "bare and plain"),
        (["--stacks", "bare,plain,flask"], "bare and plain"),
        (["--train", "nowhere", "--quick"], "nowhere"),
        (["--photo", "nowhere.jpg", "--quick"], "nowhere.jpg"),
        (["--rounds", "0"], "rounds"),
    ],
)
def test_a_users_mistake_is_one_sentence(words, said, tmp_path):
    command = [sys.executable, ROOT / "bench" / "serving.py", "--out", tmp_path, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
