"""Time by kernel: a recorded trace, and one made here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from experiments.measuring import profiling
from experiments.measuring.timing import LeftOut, contender

# As the GPU's profiler writes it: two streams, a kernel under two numbers, host and other planes.
TRACE = """
planes {
  id: 1 name: "/device:GPU:0"
  event_metadata { key: 1 value { id: 1 name: "score_3" } }
  event_metadata { key: 2 value { id: 2 name: "score_14" } }
  event_metadata { key: 3 value { id: 3 name: "walk" } }
  event_metadata { key: 4 value { id: 4 name: "XLA module" } }
  lines {
    id: 1 name: "Stream #13(compute)"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 3000000000 }
    events { metadata_id: 2 offset_ps: 4000000000 duration_ps: 1000000000 }
  }
  lines {
    id: 2 name: "Stream #14(compute)"
    events { metadata_id: 3 offset_ps: 0 duration_ps: 500000000 }
    events { metadata_id: 3 offset_ps: 600000000 duration_ps: 500000000 }
  }
  lines { id: 3 name: "XLA Modules" events { metadata_id: 4 duration_ps: 9000000000 } }
}
planes {
  id: 2 name: "/host:CPU"
  event_metadata { key: 1 value { id: 1 name: "score" } }
  lines { id: 1 name: "Stream" events { metadata_id: 1 duration_ps: 9000000000 } }
}
"""


def test_kernels_are_summed_over_streams_and_numbers() -> None:
    found = profiling.sum_by_kernel(ProfileData.from_text_proto(TRACE), calls=2)
    assert list(found) == ["score", "walk"]  # the longest first
    assert found["score"] == {"seconds": pytest.approx(0.002), "launches": 1.0}
    assert found["walk"] == {"seconds": pytest.approx(0.0005), "launches": 1.0}


@pytest.mark.filterwarnings("ignore")
def test_a_trace_made_here_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = contender(lambda x: jnp.sin(x @ x).sum(), jnp.ones((64, 64)))
    monkeypatch.setattr(profiling, "PLANE", "/host:CPU")
    read = profiling.sum_by_kernel
    monkeypatch.setattr(profiling, "sum_by_kernel", lambda t, c: read(t, c, "/host:CPU", ""))
    found = profiling.kernel_times(entry, calls=2)
    assert any(kernel["seconds"] > 0 for kernel in found.values())


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU here")
@pytest.mark.filterwarnings("ignore")
def test_without_a_kernel_in_the_trace_it_says_so() -> None:
    with pytest.raises(LeftOut, match="the profiler saw no kernel"):
        profiling.kernel_times(contender(lambda x: x + 1, jnp.ones(3)), calls=1)
