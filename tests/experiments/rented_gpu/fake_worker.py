"""Tasks that end in every way, in a process as light as can be; called as `worker` is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def save(path: Path, figures: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(figures))
    temporary.replace(path)


def main(call: str, arguments: str, figures: str, _: str) -> None:
    given, path = json.loads(arguments), Path(figures)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if "diary" in given:  # when it began and ended
        with Path(given["diary"]).open("a", encoding="utf-8") as diary:
            diary.write(f"begin {given['me']}\n")
    if call == "crash":
        print("Traceback …\nValueError: no such tile", file=sys.stderr)
        sys.exit(1)
    if call == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if call == "nothing to do":
        print("not installed (fla)")
        sys.exit(3)
    if call == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        save(path, {"so far": 1 + (earlier or {"so far": 0})["so far"]})
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        if "child" in given:
            Path(given["child"]).write_text(str(child.pid), encoding="utf-8")
        time.sleep(60)
    time.sleep(given.get("seconds", 0.0))
    save(path, {"earlier": earlier, "me": given.get("me")})
    print(f"said by {given.get('me')}")
    if "diary" in given:
        with Path(given["diary"]).open("a", encoding="utf-8") as diary:
            diary.write(f"end {given['me']}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
