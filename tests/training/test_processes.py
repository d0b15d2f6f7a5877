"""One run in several real processes: the losses of one, one directory, and one sentence at the end.

They are started by the real command on one machine, with a device each. Starting is what costs, so
each start serves many assertions; and optimisations of compiled programs are off.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.placement import pipeline_bubble
from carve_jax.sharding import row_share
from carve_jax.training.processes.distributed import COMPLETION_INDEX, Peers, peers_of
from carve_jax.training.reports import whole_run
from carve_jax.training.reports.metrics import read_metrics
from carve_jax.training.run import build, load_trained, make_model
from experiments import train as command
from tests.devices import xla_flags
from tests.training.helpers import text_data, tiny_config, train

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
CHANGES = {
    "model__pattern": ("attention",),  # quick to compile; the rest does not see the mixer
    "steps": STEPS,
    "eval_every": STEPS,
    "optimizer__peak_learning_rate": 1e-3,
}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Processes:
    """So many processes of `experiments.train`; `own` gives flags of each."""

    def __init__(self, config, workdir, count, *flags, own=lambda index: (), started=None):
        file = workdir.with_name(f"{workdir.name}_config.py")
        file.write_text(
            "from ml_collections import ConfigDict\n\n\n"
            f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
        )
        environment = os.environ | {
            "XLA_FLAGS": xla_flags(1),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        shared = [
            f"--config={file}",
            f"--workdir={workdir}",
            f"--coordinator={free_address()}",
            f"--processes={count}",
            *flags,
        ]
        self.running = [
            subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *shared, f"--process={i}", *own(i)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count if started is None else started)
        ]

    def ends(self):
        """Exit codes, and of each process what it said: lines, and errors."""
        try:
            said = [process.communicate(timeout=500) for process in self.running]
        finally:
            for process in self.running:
                process.kill()
        lines = [[x for x in out.splitlines() if "[Gloo]" not in x] for out, _ in said]
        return [process.returncode for process in self.running], lines, [err for _, err in said]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where one process trained, and where four did until one got SIGTERM, and then two."""
    directory = tmp_path_factory.mktemp("processes")
    config = tiny_config(
        **CHANGES,
        model__vocab_size=257,
        data=text_data(directory / "tokens", extra="the state is the state. " * 40),
    )
    train(config, directory / "alone")
    config.mesh.fsdp = -1
    four = Processes(config, directory / "many", 4)
    metrics = directory / "many" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert four.running[0].poll() is None, four.ends()
        time.sleep(0.005)
    four.running[2].send_signal(signal.SIGTERM)
    stopped = four.ends()
    two = Processes(config, directory / "many", 2, "--config.sample_tokens=4").ends()
    return directory, stopped, two


# Seven processes and a run. Always tested: two that restore, vote and save together
# (test_remesh.py), and a mesh of eight (test_sharding.py).
@pytest.mark.slow
def test_sigterm_to_one_of_four_stops_and_saves_all(runs):
    directory, (codes, lines, errors), _ = runs
    assert codes == [143] * 4, errors
    for error in errors:
        assert error.splitlines()[-1].startswith("interrupted: the last good checkpoint is step ")
    assert lines[0][0].startswith(f"training from step 0 to {STEPS}: ")
    assert "4 × cpu" in lines[0][0]
    assert lines[0][0].endswith(f"; results go to {directory / 'many'}")
    assert lines[1:] == [[], [], []]


@pytest.mark.slow
def test_two_processes_go_on_to_the_losses_of_one(runs):
    directory, _, (codes, lines, errors) = runs
    assert codes == [0, 0], errors
    start = int(lines[0][0].split()[3])
    assert 0 < start < STEPS
    assert any(line.startswith("sample:") for line in lines[0])
    assert lines[1] == []
    alone, many = (read_metrics(directory / name) for name in ("alone", "many"))
    assert [line["step"] for line in many] == list(range(1, STEPS + 1))
    for name in ("loss", "bits_per_byte", "grad_norm", "tokens"):
        np.testing.assert_allclose([x[name] for x in many], [x[name] for x in alone], 1e-4)
    np.testing.assert_allclose(many[-1]["eval_loss"], alone[-1]["eval_loss"], 1e-5)


@pytest.mark.slow
def test_the_directory_is_that_of_one_run(runs):
    directory, _, _ = runs
    names = {path.name for path in (directory / "many").iterdir()}
    assert names == {path.name for path in (directory / "alone").iterdir()}
    facts = json.loads((directory / "many" / "provenance.json").read_text())
    assert (facts["processes"], facts["mesh"]["fsdp"]) == (2, 2)
    assert [(x["processes"], x["mesh"]["fsdp"]) for x in facts["earlier"]] == [(4, 4)]
    trained, alone = load_trained(directory / "many"), load_trained(directory / "alone")
    assert trained.step == STEPS
    np.testing.assert_allclose(
        trained.params["head"]["kernel"], alone.params["head"]["kernel"], atol=1e-4
    )


@pytest.mark.slow
def test_processes_that_disagree_all_say_so_and_write_nothing(tmp_path):
    config = tiny_config(**CHANGES, mesh__data=-1)
    own = (), ("--config.batch_size=8", "--config.seed=1")
    codes, _, errors = Processes(config, tmp_path / "run", 2, own=own.__getitem__).ends()
    assert codes == [2, 2], errors
    for error in errors:
        assert error.splitlines()[-1].startswith("error: process 2 of 2 (")
        assert "batch_size is 4 there and 8 here; seed is 0 there and 1 here; start all" in error
    assert not (tmp_path / "run").exists()


def flip_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_wrong_checksum_found_by_one_before_training(tmp_path):
    data = text_data(tmp_path / "tokens")
    data.verify = True
    flip_byte(tmp_path / "tokens" / "eval-00000.bin", 4)  # the second process's to verify
    config = tiny_config(**CHANGES, mesh__data=-1, model__vocab_size=257, data=data)
    codes, _, errors = Processes(config, tmp_path / "run", 2).ends()
    assert codes == [2, 2], errors
    for error in errors:
        assert error.splitlines()[-1].startswith("error: process 2 of 2 (")
        assert "eval-00000.bin was changed after it was written" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_wrong_checksum_found_by_one_while_training(tmp_path):
    data = text_data(tmp_path / "tokens", extra="the state is the state. " * 400)
    flip_byte(tmp_path / "tokens" / "train-00000.bin", -2)
    config = tiny_config(
        **CHANGES, mesh__data=-1, model__vocab_size=257, data=data, checkpoint_every=1, seed=5
    )
    codes, _, errors = Processes(config, tmp_path / "run", 2).ends()
    assert codes == [2, 2], errors
    last = [error.splitlines()[-1] for error in errors]
    assert all("train-00000.bin was changed after it was written" in line for line in last)
    assert last[0].startswith("error: process 2 of 2 (")
    assert " stopped: " in last[0]
    # With this seed it is in step 5; what was saved before is whole.
    assert load_trained(tmp_path / "run").step == 4
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4


def test_a_missing_peer(tmp_path):
    config = tiny_config(**CHANGES, mesh__data=-1)
    one = Processes(config, tmp_path / "run", 2, "--peer_timeout=2", started=1)
    codes, _, errors = one.ends()
    assert codes == [2]
    assert errors[0].splitlines()[-1].startswith("error: not all 2 processes came together at 127.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((None, 2, None, False, 9), "--processes and --process need --coordinator"),
        (("node:1", 2, 0, True, 9), "not both"),
        (("node", 2, 0, False, 9), "give HOST:PORT"),
        (("node:1", 2, 2, False, 9), "--processes=2 --process=2"),
        (("node:1", None, 0, False, 9), "--processes=None"),
        (("node:1", 2, None, False, 9), "needs --process"),
        ((None, None, None, True, 0), "--peer_timeout is 0"),
    ],
)
def test_flags_that_do_not_fit(given, said, monkeypatch):
    monkeypatch.delenv(COMPLETION_INDEX, raising=False)
    with pytest.raises(UserError, match=said):
        peers_of(*given)


def test_flags_that_fit(monkeypatch):
    assert peers_of(None, None, None, False, 300) is None
    assert peers_of(None, None, None, True, 300) == Peers()
    monkeypatch.setenv(COMPLETION_INDEX, "3")
    assert peers_of("node:1", 4, None, False, 9) == Peers("node:1", 4, 3, 9)


def devices(mesh, each):
    """Those of a mesh, so many of each process in turn."""
    flat = np.empty(np.prod(mesh), object)
    flat[:] = [SimpleNamespace(process_index=i // each) for i in range(flat.size)]
    return flat.reshape(mesh)


@pytest.mark.parametrize(
    ("mesh", "each", "shares"),
    [
        ((4, 1, 1, 1), 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 4, 1, 1), 4, [(0, 2), (1, 2)]),
        ((2, 1, 2, 1), 1, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # heads over two processes
        ((1, 2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # and tokens
        ((1, 1, 2, 2), 2, [(0, 1), (0, 1)]),
    ],
)
def test_rows_of_each_process(mesh, each, shares):
    grid = devices(mesh, each)
    assert [row_share(grid, process) for process in range(len(shares))] == shares


@pytest.mark.parametrize(("mesh", "each"), [((3, 1, 2, 1), 3), ((4, 1, 1, 1), 3)])
def test_unequal_shares_of_the_rows_are_refused(mesh, each):
    with pytest.raises(ValueError, match="unequal shares of the rows"):
        row_share(devices(mesh, each), 0)


def test_a_run_says_how_idle_its_pipeline_is():
    config = tiny_config(model__vocab_size=64, mesh__sequence=2, optimizer__accumulate_steps=2)
    facts = whole_run.describe_mesh(build(config))
    assert facts["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 2}
    assert facts["pipeline_bubble"] == pytest.approx(1 / 3)  # two rows at a time
    config.model.pattern = ("kda",)
    assert pipeline_bubble(make_model(config).config, facts["mesh"], 2) is None


def flags_of(text):
    """The flags of the training command in a launch file."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [word for line in lines for word in shlex.split(line, comments=True)]
    return [word for word in words if word.startswith("--")]


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_launch_files_give_flags_that_exist(name, monkeypatch, tmp_path):
    monkeypatch.setenv(COMPLETION_INDEX, "1")
    text = (ROOT / "experiments" / "launch" / name).read_text()
    begin = text.index("experiments.train")
    end = text.find("\ncode=") if name.endswith(".sh") else text.find("resources:")
    flags = flags_of(text[begin:end])
    given = {}

    def joined(peers):
        given["peers"] = peers
        return contextlib.nullcontext()

    monkeypatch.setattr(command.distributed, "joined", joined)
    monkeypatch.setattr(command, "train", lambda *arguments: given.update(run=arguments))
    command.main(["train", *flags])
    config, _ = given["run"]
    assert config.mesh.fsdp == -1
    assert config.data.source == "token_files"
    if name == "slurm.sh":
        assert given["peers"] == Peers()
        subprocess.run(["bash", "-n", ROOT / "experiments" / "launch" / name], check=True)
    else:
        assert given["peers"] == Peers("carve-0.carve:8476", 4, 1)
