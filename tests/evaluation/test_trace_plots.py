"""Pictures show the numbers they are given, each token under its word."""

import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.evaluation.trace import Trace
from carve_jax.evaluation.trace_plots import plot_by_head, plot_gates, plot_states

LAYERS, TOKENS, HEADS, KEYS, VALUES = 2, 5, 3, 4, 6
LABELS = list("abcde")


def read(erase_scale=1.0, content=True):
    random = np.random.default_rng(0)

    def uniform(*channels):
        shape = (LAYERS, TOKENS, HEADS, *channels)
        return random.uniform(size=shape).astype(np.float32)

    erase = erase_scale * uniform(KEYS)
    return Trace(
        layers=("0 carve", "1 carve"),
        tokens=np.arange(TOKENS),
        query=uniform(KEYS),
        key=uniform(KEYS),
        value=uniform(VALUES),
        log_decay=-uniform(KEYS),
        erase=erase,
        blind_erase=erase,
        write=np.repeat(uniform(1), VALUES, axis=-1),
        content=(uniform(VALUES) - 0.5) * content,
        output=uniform(VALUES),
        state_norm=uniform(),
        state=uniform(KEYS, VALUES) - 0.5,
    )


def images(figure):
    """Title, values and scale of every heat map; drawing it first, as a notebook does."""
    figure.canvas.draw()
    return {
        axes.get_title(loc="left") or axes.get_title(): (
            np.asarray(axes.images[0].get_array()),
            axes.images[0].get_clim(),
        )
        for axes in figure.axes
        if axes.images
    }


def test_gates_of_a_head():
    trace = read()
    figure = plot_gates(trace, LABELS, layer=1, head=2)
    found = images(figure)
    kept, erase, write, content = found.values()
    np.testing.assert_allclose(kept[0], np.exp(trace.log_decay[1, :, 2]).T)
    np.testing.assert_array_equal(erase[0], trace.erase[1, :, 2].T)
    np.testing.assert_array_equal(write[0], trace.write[1, :, 2, :1].T)  # one per head: one row
    np.testing.assert_array_equal(content[0], trace.content[1, :, 2].T)
    assert erase[1] == (0, 1)
    assert content[1][0] == -content[1][1]
    bottom = next(axes for axes in figure.axes if axes.get_title(loc="left") == "content: m")
    assert [label.get_text() for label in bottom.get_xticklabels()] == LABELS
    assert images(plot_gates(read(erase_scale=2.0), LABELS))["erase gate: b"][1] == (0, 2)
    assert "content: m" not in images(plot_gates(read(content=False), LABELS))


def test_pictures_that_are_compared_tell_themselves_apart_and_share_their_scales():
    weak, strong = read(), read(erase_scale=1.5)
    strong = strong._replace(content=3 * strong.content)
    figures = [
        plot_gates(weak, LABELS, title="mode: replace", beside=(strong,)),
        plot_gates(strong, LABELS, title="mode: accumulate", beside=(weak,)),
    ]
    heads = [figure.get_suptitle() for figure in figures]
    assert heads == [f"mode: {mode}: layer 0 carve, head 0" for mode in ("replace", "accumulate")]
    scales = [{name: scale for name, (_, scale) in images(figure).items()} for figure in figures]
    assert scales[0] == scales[1]
    assert scales[0]["erase gate: b"] == (0, 2)
    assert scales[0]["content: m"][1] == np.abs(strong.content[0, :, 0]).max()
    states = weak.state[0, :, 0]
    assert {s for _, s in images(plot_states(states, LABELS, top=2)).values()} == {(-2, 2)}


def test_axes_and_rows_are_named():
    trace = read()
    gates = plot_gates(trace, LABELS)
    assert gates.axes[3].get_xlabel() == "token"
    names = [axes.get_ylabel() for axes in gates.axes[:4]]
    assert names == ["key channel", "key channel", "", "value channel"]
    assert [text.get_text() for text in gates.axes[2].get_yticklabels()] == ["all"]
    grid = plot_by_head(trace.erase, LABELS, layers=trace.layers, channels="key channel")
    names = [axes.get_ylabel() for axes in grid.axes[: LAYERS * HEADS]]
    assert names == ["key channel", "", ""] * LAYERS
    assert {axes.get_xlabel() for axes in grid.axes[HEADS : LAYERS * HEADS]} == {"token"}
    first = plot_states(trace.state[0, :, 0], LABELS).axes[0]
    assert (first.get_ylabel(), first.get_xlabel()) == ("key channel", "value channel")


def test_small_multiples_share_a_scale():
    trace = read()
    found = images(plot_by_head(trace.erase, LABELS, layers=trace.layers, top=1.0))
    assert len(found) == LAYERS * HEADS
    values, scale = found["layer 1 carve, head 2"]
    np.testing.assert_array_equal(values, trace.erase[1, :, 2].T)
    assert scale == (0, 1)
    change = trace.erase - trace.erase[::-1]
    scales = {s for _, s in images(plot_by_head(change, LABELS, layers=trace.layers)).values()}
    largest = float(np.abs(change).max())
    assert scales == {(-largest, largest)}


def test_states_after_chosen_tokens():
    states = read().state[0, :, 1]
    found = images(plot_states(states, LABELS, at=(0, 3)))
    assert list(found) == ["after token 0\na", "after token 3\nd"]
    np.testing.assert_array_equal(found["after token 3\nd"][0], states[3])
    titles = [f"after token {i}\n{word}" for i, word in enumerate(LABELS)]
    assert list(images(plot_states(states, LABELS))) == titles
    plot_states(0 * states, LABELS).canvas.draw()  # an empty memory is a picture too


def test_many_tokens_are_not_all_labelled():
    values = np.zeros((1, 200, 1, 2))
    figure = plot_by_head(values, ["x"] * 200, layers=("0 gdn",))
    assert len(figure.axes[0].get_xticks()) == 67


def test_what_cannot_be_drawn_says_so():
    trace = read()
    with pytest.raises(UserError, match="2 labels for 5 tokens"):
        plot_gates(trace, ["a", "b"])
    with pytest.raises(UserError, match="layers 0 to 1 and heads 0 to 2"):
        plot_gates(trace, LABELS, head=3)
    with pytest.raises(UserError, match="from 0 to 4"):
        plot_states(trace.state[0, :, 0], LABELS, at=(5,))
