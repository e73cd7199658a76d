"""SERVE_MODES: the modes that a machine is taken to support, whatever its processor reports."""

import json
from pathlib import Path

import numpy as np
import pytest

import engine
import inference

CPU_MODES = ("fp32", "bf16", "int8")


def spec_of(project: Path, *use: str) -> dict:
    """The project's model.json with another `use`."""
    spec = json.loads((project / "model" / "model.json").read_text())
    return spec | {"precision": spec["precision"] | {"use": list(use)}}


@pytest.mark.parametrize(
    ("value", "modes"),
    [("fp32", "fp32"), ("fp32 bf16", "fp32 bf16"), (" int8  bf16 ", "fp32 bf16 int8"), ("int8", "fp32 int8")],
)
def test_it_names_the_supported_modes_and_fp32_always_is(monkeypatch, value, modes):
    monkeypatch.setenv("SERVE_MODES", value)
    assert [mode for mode in CPU_MODES if engine.can(mode)] == modes.split()


@pytest.mark.parametrize("value", [None, "", "  "])
@pytest.mark.parametrize("flags", [{"avx2"}, {"avx512_vnni"}])
def test_unset_or_blank_the_processor_decides(monkeypatch, value, flags):
    if value is None:
        monkeypatch.delenv("SERVE_MODES", raising=False)
    else:
        monkeypatch.setenv("SERVE_MODES", value)
    monkeypatch.setattr(engine, "chip", lambda: flags)
    assert engine.can("fp32")
    assert engine.can("int8") is ("avx512_vnni" in flags)


@pytest.mark.parametrize("value", ["fp8", "fp32 fp8 bf16", "FP32", "fp32,bf16", "cuda-fp16"])
def test_another_name_is_an_error_when_the_model_is_loaded(project, monkeypatch, value):
    monkeypatch.setenv("SERVE_MODES", value)
    with pytest.raises(ValueError, match=r"^SERVE_MODES may name fp32, bf16 and int8, not '\S+': correct"):
        inference.model_fn(project / "model")


def test_the_engine_loads_the_first_supported_mode(project, monkeypatch):
    spec = spec_of(project, "int8", "bf16", "fp32")
    for value, mode in (("fp32", "fp32"), ("bf16", "bf16"), ("fp32 bf16", "bf16")):
        monkeypatch.setenv("SERVE_MODES", value)
        assert engine.load(project / "model", spec).mode == mode


def test_bf16_runs_on_every_processor(project, monkeypatch):
    """OpenVINO emulates it with AVX-512, and computes in fp32 on older processors."""
    monkeypatch.setenv("SERVE_MODES", "fp32 bf16")
    spec = spec_of(project, "fp32")
    height, width = spec["input"]["shape"][1:3]
    pictures = list(np.random.default_rng(0).integers(0, 255, (4, height, width, 3), np.uint8))
    fp32, bf16 = (engine.load(project / "model", spec, mode).run(pictures) for mode in ("fp32", "bf16"))
    assert abs(fp32 - bf16).max() < 0.1
