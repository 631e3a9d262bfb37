"""The process that answers cells: one JSON line in, one out. ``python -m corgi_opt.study.child PATHS``.

Before the line with a cell's answer another one says when its question was asked, once its network was there.

``PATHS`` is JSON: where the process that started it finds modules. It may hang, run out of memory or die with its cell:
whoever started it (study/worker.py) sees to that.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a user's model prints does not go between the replies
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]
    from corgi_opt.study.answer import reply

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=replies, flush=True)

    say({"ready": os.getpid()})
    for line in sys.stdin:
        say(reply(json.loads(line), lambda: say({"asked": True})))


def _end_with(parent: int) -> None:
    """Ends this process in the middle of a cell when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
