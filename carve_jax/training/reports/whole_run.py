"""What is told of a run as a whole: its facts at the start, its curve and a sample at the end."""

import collections
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from carve_jax.data import Tokenizer
from carve_jax.generate import generate
from carve_jax.model import count_parameters
from carve_jax.placement import pipeline_bubble
from carve_jax.training.processes.messages import Say, held_by_first, is_first, together
from carve_jax.training.reports import plot, provenance, spelled
from carve_jax.training.reports.metrics import TENSORBOARD, read_metrics
from carve_jax.training.reports.utilisation import ideal_step_seconds
from carve_jax.training.run import Run, Start
from carve_jax.training.step import TrainState


def begin(run: Run, workdir: Path, start: Start, say: Say) -> None:
    """Writes provenance.json and says what is worth knowing before the first step."""
    facts = describe(run, start.state, start.step)
    if is_first():
        provenance.write_provenance(workdir, facts, say)
    if facts.get("pipeline_bubble"):
        say(
            f"CARVE's pipeline along the sequence leaves {facts['pipeline_bubble']:.0%} of the "
            "time of its rule idle; the more rows a device has, the less"
        )
    devices = collections.Counter(device.device_kind for device in devices_of(run))
    say(
        f"training from step {start.step} to {run.settings.steps}: "
        f"{facts['parameters']['total']:,} parameters on "
        f"{', '.join(f'{count} × {kind}' for kind, count in devices.items())}, "
        f"the rule's implementation is {run.implementation}; results go to {workdir}"
    )


def describe(run: Run, state: TrainState, start: int) -> dict[str, Any]:
    """Facts for provenance.json."""
    return {
        **provenance.describe_environment(),
        "implementation": run.implementation,
        "start_step": start,
        **describe_mesh(run),
        "parameters": count_parameters(state.params),
        "data": run.pipeline.describe(),
    }


def describe_mesh(run: Run) -> dict[str, Any]:
    """Processes, mesh, and the share of time that it leaves CARVE's layers idle (see `bubble`)."""
    facts: dict[str, Any] = {"processes": jax.process_count(), "mesh": None}
    if run.mesh is not None:
        facts["mesh"] = dict(run.mesh.shape)
        rows = run.settings.rows
        facts["pipeline_bubble"] = pipeline_bubble(run.model.config, run.mesh.shape, rows)
    return facts


def ideal_seconds(run: Run) -> float | None:
    """Seconds of a step at the peak of the devices it runs on; None where that is not known."""
    return ideal_step_seconds(
        run.model.config,
        run.settings.batch_size * run.settings.sequence_length,
        run.settings.sequence_length,
        [device.device_kind for device in devices_of(run)],
    )


def devices_of(run: Run) -> list[jax.Device]:
    """The devices that a run computes on."""
    return jax.devices()[:1] if run.mesh is None else list(run.mesh.devices.flat)


def finish(run: Run, workdir: Path, state: TrainState, say: Say) -> None:
    """Completes provenance.json, draws the loss curve, prints a sample, says what comes next.

    There is a sample if the data is text. Of several processes the first does.
    """
    if is_first():
        provenance.add_provenance(workdir, {"device_peak_bytes": provenance.device_peak_bytes()})
    tokenizer = None if run.settings.sample_tokens == 0 else run.pipeline.tokenizer
    params = None if tokenizer is None else held_by_first(state.params)
    with together():
        if not is_first():
            return
        say(f"loss curve: {plot.plot_loss(read_metrics(workdir, say), workdir / plot.FILE_NAME)}")
        if tokenizer is not None:
            say(f"sample:\n{sample(run, params, tokenizer)}")
        say(next_commands(run, workdir))


def next_commands(run: Run, workdir: Path) -> str:
    """What can be done with a run that has ended: a command in each line."""
    directory = shlex.quote(str(workdir))
    prompt = shlex.quote(run.settings.sample_prompt)
    commands = [f"{spelled.command('evaluate')} --workdir={directory}"]
    if run.pipeline.tokenizer is not None:
        commands.insert(0, f"{spelled.command('generate')} --workdir={directory} --prompt={prompt}")
    tensorboard = spelled.program("tensorboard")
    missing = "" if tensorboard else "  # after pip install tensorboard"
    logs = shlex.quote(str(workdir / TENSORBOARD))
    commands.append(f"{tensorboard or 'tensorboard'} --logdir={logs}{missing}")
    return "\n  ".join(["next:", *commands])


def sample(run: Run, params: Any, tokenizer: Tokenizer) -> str:
    """The config's prompt, continued."""
    prompt = run.settings.sample_prompt
    tokens = generate(
        run.model,
        params,
        [[tokenizer.separator, *tokenizer.encode(prompt)]],
        max_new_tokens=run.settings.sample_tokens,
        rng=jax.random.key(run.settings.seed),
        temperature=0.8,
        stop_tokens=(tokenizer.separator,),
    )
    return prompt + tokenizer.decode(np.asarray(tokens)[0])  # JAX would compile an iteration
