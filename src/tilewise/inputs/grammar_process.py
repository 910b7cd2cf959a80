"""The process that compiles one untrusted grammar for `grammar.py`; nothing else imports this file.

llguidance overflows its stack on long chains of references, and may take minutes to intersect patterns. Here that ends
a process that nobody misses.

Standard input is JSON `{"form", "text", "options", "seconds"}`; standard output is one line of JSON,
`{"source", "unenforced"}` or `{"error"}`.
"""

from __future__ import annotations

import json
import sys
import threading

from tilewise.inputs.grammar_source import check, translate
from tilewise.inputs.sandbox import confine_this_process

_STACK_BYTES = 2 * 2**20  # less than any thread has that compiles the same again


def main() -> None:
    threading.stack_size(_STACK_BYTES)
    worker = threading.Thread(target=_work, args=(json.load(sys.stdin),))
    worker.start()
    worker.join()


def _work(job: dict[str, str]) -> None:
    confine_this_process(int(job["seconds"]))
    try:
        source = translate(job["form"], job["text"], json.loads(job["options"]))
        problem, lacks = check(source)
    except Exception as error:  # whatever an untrusted grammar makes the library raise is its result
        source, problem, lacks = "", str(error) or type(error).__name__, []
    print(json.dumps({"error": problem} if problem else {"source": source, "unenforced": lacks}), flush=True)


if __name__ == "__main__":
    main()
