"""The process that answers cells: one JSON line in, one out. ``python -m corgi_opt.study.child PATHS``.

``PATHS`` is JSON: where the process that started it finds modules. It may hang, run out of memory or die with its cell:
whoever started it (study/worker.py) sees to that.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a user's model prints does not go between the replies
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]
    from corgi_opt.study.answer import reply

    print(json.dumps({"ready": os.getpid()}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line))), file=replies, flush=True)


def _end_with(parent: int) -> None:
    """Ends this process in the middle of a cell when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
