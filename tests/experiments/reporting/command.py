"""The command, and a sweep whose report has all there is to say."""

from experiments import cli, report

TITLES = {"gdn2": "GDN-2", "carve": "CARVE", "kda": "KDA | *the* third", "gla": "GLA"}
DOWN = "error: training <b>diverged</b> at step 100: NaN | in `loss`"
BROKEN = {
    "text.gla.s1": {"state": "diverged", "message": DOWN},
    "text.gla.s2": {"state": "running"},
    "text.gla.s3": {"state": "waiting", "attempts": 0},
    "text.carve.s0": {"jobs": 2},
}


def run(*flags):
    return cli.call(report.main, ["report", *map(str, flags)])


def mistake(capsys, *flags):
    """Exit code 2 and one sentence; the sentence."""
    assert run(*flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]
