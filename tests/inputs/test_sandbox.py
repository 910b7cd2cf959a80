"""Work on untrusted text, in a process that can do nothing else."""

import json
import subprocess
import sys

from tilewise.inputs.prepared_schema import find_faults
from tilewise.inputs.sandbox import run_confined


def test_results_come_in_order_and_those_that_are_missing_are_marked():
    assert run_confined(json.loads, "[1, 2]", 3, "missing", seconds=2) == [1, 2, "missing"]


def test_work_that_does_not_end_is_ended_and_what_it_came_to_stays():
    endless = [{"pattern": "^(a+)+$"}, json.dumps("a" * 99 + "b")]
    found = run_confined(find_faults, [[{"type": "string"}, "1"], endless], 2, ["too long"], seconds=1)
    assert found == [["$: 1 is not of type 'string'"], ["too long"]]


def test_the_process_can_open_nothing_and_start_nothing():
    code = (
        "import os, socket; from tilewise.inputs.sandbox import confine_this_process; confine_this_process(2)\n"
        "def refused(action):\n"
        "    try: action()\n"
        "    except OSError: return True\n"
        "actions = [lambda: open('/etc/passwd'), lambda: open('new', 'w'), socket.socket, os.pipe]\n"
        "raise SystemExit(not all(map(refused, actions)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
