"""``python -m mxm_kernels``: what it says is so, and it fails when a backend is wrong."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import mxm_kernels
from mxm_kernels import __main__, backends
from mxm_kernels.backends import blocked, native
from mxm_kernels.environment import report, self_check

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def facts():
    """The report without its check."""
    return report.gather(check=False)


def test_versions(facts):
    versions = facts["versions"]
    assert versions["mxm_kernels"] == mxm_kernels.__version__
    assert versions["python"].split(".")[0] == str(sys.version_info.major)
    assert versions["torch"] and versions["numpy"]


def test_the_cpu_comes_first(facts):
    assert facts["devices"][0]["device"] == "cpu"
    assert facts["devices"][0]["cores"] >= 1


def test_backends_are_as_they_say(facts):
    for row in facts["backends"]:
        for dtype in report.DTYPES:
            name = str(dtype).removeprefix("torch.")
            reason = backends.load(row["backend"]).unavailable(torch.device(row["device"]), dtype)
            assert (name in row["dtypes"]) == (reason is None)
            assert row["unavailable"].get(name) == reason


def test_the_choice_is_that_of_the_public_functions(facts):
    for row in facts["chosen"]:
        for dtype, name in row["backends"].items():
            device = torch.device(row["device"])
            assert name == backends.choose(None, device, getattr(torch, dtype))


def test_launches_are_those_of_the_table(facts):
    settings = pytest.importorskip("mxm_kernels.backends.triton.settings")
    row = facts["triton"][0]
    assert row["row"] in row["rows"] == list(settings.SETTINGS)
    for entry in row["launches"]:
        shipped = settings.SETTINGS[row["row"]][entry["kind"]].pick(entry["teacher"])
        assert entry.items() >= vars(shipped).items()


def test_without_measured_settings_it_says_how_to_get_them(facts):
    measured = facts["triton"][0]["measured"]
    if measured is None:
        pytest.skip("triton cannot run on the CPU here")
    assert measured["digest"] is None and measured["launches"] == []
    assert "none measured on this GPU" in report.text(facts)
    assert "`python -m mxm_kernels tune` measures them" in report.text(facts)


def test_the_native_level_is_the_one_that_runs(facts):
    if native.cpp is None:
        assert facts["native"] is None
    else:
        assert facts["native"]["level"] == native.backend.level


def test_every_backend_passes_its_check(backend):
    outcomes = self_check.run([(backend.name, backend.device, d) for d in backend.dtypes])
    assert {outcome.dtype for outcome in outcomes} >= {"float32", "bfloat16", "float16"}
    assert [outcome.failure for outcome in outcomes if not outcome.passed] == []


@pytest.mark.parametrize("part", ["x", "y", "scale"])
def test_a_wrong_gradient_fails_the_check(monkeypatch, part):
    right = blocked._Blocked.backward

    def wrong(self, *arguments):
        gradients = right(self, *arguments)
        return gradients._replace(**{part: getattr(gradients, part) * 1.0001})

    monkeypatch.setattr(blocked._Blocked, "backward", wrong)
    outcomes = self_check.run([("blocked", CPU, torch.float32)])
    failures = [o.failure for o in outcomes if o.batch != "sigmoid"]
    for failure in failures:
        (error,) = re.findall(r"gradient: error (\S+), allowed 1e-05", failure)
        assert float(error) == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("part", ["x", "y", "scale", "bias"])
def test_a_wrong_gradient_of_the_sigmoid_loss_fails_the_check(monkeypatch, part):
    right = blocked._Blocked.sigmoid_backward

    def wrong(self, *arguments):
        gradients = right(self, *arguments)
        return gradients._replace(**{part: getattr(gradients, part) * 1.01})

    monkeypatch.setattr(blocked._Blocked, "sigmoid_backward", wrong)
    outcomes = self_check.run([("blocked", CPU, torch.float32)])
    (failure,) = [o.failure for o in outcomes if o.failure]
    named = {"x": "image", "y": "text", "scale": "scale", "bias": "bias"}[part]
    assert f"{named} gradient: error 0.0" in failure


def test_a_loss_that_is_not_finite_fails_the_check_and_is_still_json(monkeypatch):
    right = blocked._Blocked.forward

    def wrong(self, *arguments):
        result = right(self, *arguments)
        return result._replace(neg_lse=result.neg_lse * torch.nan)

    monkeypatch.setattr(blocked._Blocked, "forward", wrong)
    (first, *_) = self_check.run([("blocked", CPU, torch.float64)])
    assert first.failure.startswith("loss: error inf")
    assert json.loads(json.dumps(first.as_dict(), allow_nan=False))["errors"]["loss"] is None


def test_an_error_in_a_backend_is_a_failure_with_its_words(monkeypatch, capsys):
    def broken(self, *arguments):
        raise RuntimeError("no more tiles")

    monkeypatch.setattr(blocked._Blocked, "forward", broken)
    monkeypatch.setattr(report.backends, "REGISTRY", {"blocked": None})
    assert __main__.main([]) == 1
    printed = capsys.readouterr().out
    assert "blocked on cpu, float32" in printed
    assert "FAILED: RuntimeError: no more tiles" in printed
    assert "20 of 24 FAILED" in printed


def test_a_backend_that_does_not_load_is_unavailable(monkeypatch):
    def broken(device, dtype):
        raise ImportError("libcuda.so.1")

    monkeypatch.setattr(backends, "load", lambda name: SimpleNamespace(unavailable=broken))
    reason = report.unavailable("triton", CPU, torch.float32)
    assert reason == "ImportError: libcuda.so.1"


def test_a_missing_backend_is_reported_with_its_reason(monkeypatch):
    monkeypatch.setattr(native, "cpp", None)
    monkeypatch.setattr(native, "MISSING", "no module named _native")
    facts = report.gather(check=False)
    assert facts["native"] is None
    printed = report.text(facts)
    assert "built without a C++ compiler (no module named _native)" in printed
    assert "native on cpu" in printed


def test_an_accelerator_is_described(monkeypatch):
    """No GPU is needed to word one."""
    launch = pytest.importorskip("mxm_kernels.backends.triton.launch")
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda", 5)  # targets are cached by device
    assert report._describe(report._device(device)) == "NVIDIA H100, 80 GiB, capability 9.0"
    try:
        assert report._launches(device)["row"] == "sm_90"
    finally:
        launch.target.cache_clear()


def test_json_on_the_command_line():
    command = [sys.executable, "-m", "mxm_kernels", "--json", "--no-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    assert read["ok"] is True
    assert read["self_check"] is None
    assert read["versions"]["mxm_kernels"] == mxm_kernels.__version__


def test_text_on_the_command_line(capsys):
    assert __main__.main(["--no-check"]) == 0
    printed = capsys.readouterr().out
    for title in ("versions", "devices", "backends", "chosen by backend=None", "triton"):
        assert f"{title}\n  " in printed
    assert "self-check\n  left out" in printed
