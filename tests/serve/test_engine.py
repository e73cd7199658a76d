"""The engine: how many threads it uses, which mode, and which files it refuses to load."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import engine
from support import ROOT

HOST = 8  # CPUs of the host in these tests
INTEL = "fpu sse2 avx512f avx512_vnni avx512_bf16"
LAPTOP = "fpu sse2 avx2 avx_vnni"
OLD = "fpu sse2 avx2 avx512f"


def test_importing_openvino_sends_and_writes_nothing(tmp_path):
    """Its telemetry would write an id into the user's home and report to Google Analytics."""
    code = "import engine, sys; engine.openvino_core(); print(sys.modules['openvino_telemetry'])"
    given = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "serve")}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(HOST)), raising=False)


def written(folder: Path, files: dict[str, str]) -> Path:
    """A made-up /sys/fs/cgroup."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.fixture(autouse=True)
def no_serve_modes(monkeypatch):
    """These tests are about the processor itself; test_modes.py has SERVE_MODES."""
    monkeypatch.delenv("SERVE_MODES", raising=False)


# --- threads


@pytest.mark.usefixtures("processors")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000", 1), ("50000", 1), ("1000", 1), ("150000", 2), ("400000", 4), ("1600000", HOST)],
)
def test_threads_are_the_quota_rounded_up_and_at_most_the_cpus(tmp_path, quota, cores):
    second = written(tmp_path / "v2", {"cpu.max": f"{quota} 100000"})
    first = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert engine.cpus(second) == engine.cpus(written(tmp_path / "v1", first)) == cores


@pytest.mark.usefixtures("processors")
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000"},
        {"cpu.max": ""},
        {"cpu.max": "100000 0"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        {"cpu/cpu.cfs_quota_us": "100000"},
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"},
    ],
)
def test_without_a_quota_there_are_as_many_threads_as_cpus(tmp_path, files):
    assert engine.cpus(written(tmp_path, files)) == HOST


@pytest.mark.parametrize("threads", [1, 2])
def test_the_engine_runs_with_as_many_threads(project, monkeypatch, threads):
    monkeypatch.setattr(engine, "cpus", lambda: threads)
    run = engine.load(project / "model", spec_of(project), "fp32").run
    compiled = inspect.getclosurevars(run).nonlocals["request"].get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("NUM_STREAMS") == 1


# --- the chip


@pytest.mark.parametrize(
    ("flags", "int8"), [(INTEL, True), (LAPTOP, True), ("fpu amx_int8", True), (OLD, False), ("", False)]
)
def test_int8_needs_vnni_instructions(tmp_path, monkeypatch, flags, int8):
    text = f"processor\t: 0\nmodel name\t: Made-up avx512_vnni\nflags\t\t: {flags}\nbugs\t\t: spectre\n"
    (tmp_path / "cpuinfo").write_text(text)
    found = engine.chip(tmp_path / "cpuinfo")
    assert found - {"flags", ":"} == set(flags.split())
    monkeypatch.setattr(engine, "chip", lambda: found)
    assert engine.can("int8") == int8


def test_without_cpuinfo_no_instruction_sets_are_known(tmp_path):
    assert engine.chip(tmp_path / "none") == set()


def test_every_chip_supports_fp32_and_one_with_bf16_instructions_supports_bf16():
    assert engine.can("fp32")
    assert engine.can("bf16") or not {"avx512_bf16", "amx_bf16"} & engine.chip()


# --- loading


def spec_of(project: Path, *use: str) -> dict:
    """The project's model.json, with another `use` if one is given."""
    spec = json.loads((project / "model" / "model.json").read_text())
    return spec | {"precision": spec["precision"] | {"use": list(use)}} if use else spec


@pytest.fixture
def pictures(project) -> list[np.ndarray]:
    height, width = spec_of(project)["input"]["shape"][1:3]
    return list(np.random.default_rng(0).integers(0, 255, (12, height, width, 3), np.uint8))


def test_the_first_supported_mode_is_used(project, monkeypatch):
    monkeypatch.setattr(engine, "can", lambda mode: mode == "fp32")
    assert engine.load(project / "model", spec_of(project, "int8", "bf16", "fp32")).mode == "fp32"
    monkeypatch.setattr(engine, "can", lambda mode: mode != "int8")
    assert engine.load(project / "model", spec_of(project, "int8", "bf16", "fp32")).mode == "bf16"


def test_a_given_mode_is_used_or_raises(project, monkeypatch):
    assert engine.load(project / "model", spec_of(project, "bf16", "fp32"), "fp32").mode == "fp32"
    monkeypatch.setattr(engine, "can", lambda mode: mode == "fp32")
    with pytest.raises(RuntimeError, match="does not support bf16"):
        engine.load(project / "model", spec_of(project), "bf16")
    with pytest.raises(RuntimeError, match="does not support int8 or bf16"):
        engine.load(project / "model", spec_of(project, "int8", "bf16"))


@pytest.mark.parametrize("missing", ["library", "gpu"])
def test_without_a_gpu_or_its_library_the_cpu_is_used_with_one_warning(project, monkeypatch, caplog, missing):
    if missing == "library":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    elif "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this machine may have a GPU")
    assert engine.load(project / "model", spec_of(project, "cuda-fp32", "fp32")).mode == "fp32"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the CPU takes over" in caplog.text


@pytest.mark.parametrize("how", ["a byte more", "a byte changed", "not in model.json"])
def test_a_graph_that_is_not_the_packaged_one_is_refused(project, tmp_path, how):
    model = Path(shutil.copytree(project / "model", tmp_path / "model"))
    spec, graph = spec_of(project), bytearray((model / "model.onnx").read_bytes())
    if how == "not in model.json":
        spec["sha256"] = {"other.onnx": spec["sha256"]["model.onnx"]}
    elif how == "a byte more":
        graph += b"x"
    else:
        graph[len(graph) // 2] ^= 1
    (model / "model.onnx").write_bytes(graph)
    with pytest.raises(ValueError, match=r"model\.onnx .*package it again"):
        engine.load(model, spec)


# --- predicting


def test_a_batch_gives_each_pictures_own_probabilities_in_order(project, pictures):
    run = engine.load(project / "model", spec_of(project)).run
    alone = np.concatenate([run([picture]) for picture in pictures])
    assert (alone.dtype, alone.shape) == (np.float32, (len(pictures), len(spec_of(project)["labels"])))
    assert len(np.unique(alone, axis=0)) == len(pictures)
    np.testing.assert_array_equal(run(pictures), alone)
    np.testing.assert_array_equal(run(pictures[::-1]), alone[::-1])


def test_predictions_from_many_threads_are_not_mixed_up(project, pictures):
    run = engine.load(project / "model", spec_of(project)).run
    alone = run(pictures)
    with ThreadPoolExecutor(len(pictures)) as pool:
        for _ in range(10):
            answers = list(pool.map(lambda picture: run([picture])[0], pictures))
            np.testing.assert_array_equal(answers, alone)


DROPPED = """
import json, signal, sys, threading
from pathlib import Path
import engine

folder = Path(sys.argv[1])
models = [engine.load(folder, json.loads((folder / "model.json").read_text()), "fp32")]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("handled")
"""


def test_ctrl_c_is_handled_after_another_thread_dropped_a_model(project):
    """OpenVINO's plugin, destroyed by another thread, leaves an unmapped signal stack behind."""
    given = os.environ | {"PYTHONPATH": str(ROOT / "serve")}
    command = [sys.executable, "-c", DROPPED, str(project / "model")]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
