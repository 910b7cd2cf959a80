"""A server of a few lines: it answers /health at the port of its file of flags, and can be made to misbehave.

usage: small_server.py [deaf | late | fails | sick] FILE
"""

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import yaml

MANNERS = sys.argv[1:-1]
FLAGS = yaml.safe_load(Path(sys.argv[-1]).read_text())


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response((503 if "sick" in MANNERS else 200) if self.path == "/health" else 404)
        self.end_headers()


print("loading", FLAGS.get("model"), "in process", os.getpid(), flush=True)
if "fails" in MANNERS:
    sys.exit("No such model.")
if "deaf" in MANNERS:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "late" in MANNERS:
    time.sleep(60)
HTTPServer(("127.0.0.1", FLAGS["port"]), Answer).serve_forever()
