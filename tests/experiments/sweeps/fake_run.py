"""Stands in for a training run: figures step by step, resumed where they end, stopped by SIGTERM.

  python fake_run.py DIRECTORY STEPS SECONDS_A_STEP [EXIT_CODE [TIMES]]

With an exit code it ends so in the middle, the first TIMES times (always if not given). Where
FAKE_BEST_RATE is set, its accuracy is the higher the nearer its learning rate is to that.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

directory, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
code, times = int((sys.argv[4:5] or ["0"])[0]), int((sys.argv[5:6] or ["1000"])[0])
accuracy = 0.25
if best := os.environ.get("FAKE_BEST_RATE"):
    rate = json.loads((directory / "config.json").read_text())["optimizer"]["peak_learning_rate"]
    accuracy = 1 / (1 + abs(math.log(rate / float(best))))
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
alone = directory / "alone"
try:
    os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    (directory / "clash").touch()
with (directory / "starts").open("a") as starts:
    starts.write(f"{time.time()}\n")
count = len((directory / "starts").read_text().splitlines())
figures = directory / "metrics.jsonl"
before = len(figures.read_text().splitlines()) if figures.exists() else 0
with figures.open("a", buffering=1) as file:
    for step in range(before + 1, steps + 1):
        time.sleep(pause)
        line = {"step": step, "eval_accuracy": accuracy, "eval_loss": 1.5}
        file.write(json.dumps(line) + "\n")
        if code and count <= times and step >= steps // 2:
            print("error: something broke", flush=True)
            alone.unlink()
            sys.exit(code)
        if asked and step < steps:
            break
alone.unlink()
sys.exit(128 + signal.SIGTERM if asked else 0)
