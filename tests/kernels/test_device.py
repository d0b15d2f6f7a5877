"""Where the kernels say they can run, and why not elsewhere."""

import types

import jax
import pytest

from pallas_kernels import device


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch):
    """Makes JAX's first device a GPU of some compute capability."""

    def pretend(capability: str | None, kind: str = "NVIDIA H100 80GB HBM3") -> None:
        facts = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda: [facts])

    monkeypatch.delenv(device.SWITCH, raising=False)
    return pretend


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])
def test_gpus_are_taken_by_capability(on_gpu, capability: str) -> None:
    on_gpu(capability)
    assert device.unsupported_reason() is None
    assert device.capability() == float(capability)


@pytest.mark.parametrize(
    ("capability", "kind", "said"),
    [
        ("7.5", "Tesla T4", "8.0, 8.6, 8.9, 9.0, 10.0, 12.0, and this Tesla T4 has 7.5"),
        ("7.0", "Tesla V100", "this Tesla V100 has 7.0"),
        ("gfx942", "AMD Instinct MI300X", "this AMD Instinct MI300X has none"),
        (None, "something else", "this something else has none"),
    ],
)
def test_others_are_refused_by_name(on_gpu, capability, kind: str, said: str) -> None:
    on_gpu(capability, kind)
    assert said in device.unsupported_reason()


def test_no_gpu(on_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert device.unsupported_reason() == "the kernels need an NVIDIA GPU, and JAX runs on tpu here"


@pytest.mark.parametrize("version", [(0, 9, 1), (0, 13, 0)])
def test_jax_outside_the_range(monkeypatch: pytest.MonkeyPatch, version: tuple) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))
    said = f"the kernels support JAX 0.10 to 0.12, and this is {jax.__version__}"
    assert device.unsupported_reason() == said
