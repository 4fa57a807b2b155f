#!/usr/bin/env python3
"""How many instructions a request takes, beside the figures that were committed.

    python3 .ci/instructions.py target/release/mmapd            compares
    python3 .ci/instructions.py target/release/mmapd --write    makes the figures of now the committed ones

A node alone runs under valgrind's cachegrind, which counts what its processor does and knows no
time: the same requests take the same instructions, whatever else the machine does. One run sends
some of each kind of request on one connection, which warms caches and tables, and every other run
many more of one kind; the difference is theirs. A figure above the committed one by more than the
tolerance is a regression; one below it by as much is good news that should be committed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
FIGURES = HERE.parent / "benches" / "instructions.json"
# The clock of the node ticks on while valgrind is slow, and threads take turns as they like.
TOLERANCE = 0.15
WARM, COUNTED, KEYS = 100, 1000, 100
DEADLINE = 120
VALUE = b"v" * 256


def request(kind, number):
    key = f"/v1/keys/bench/{number % KEYS}"
    if kind == "put":
        head = f"PUT {key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(VALUE)}\r\n\r\n"
        return head.encode() + VALUE
    query = "?consistency=stale" if kind == "local get" else ""
    return f"GET {key}{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


KINDS = ("put", "linearizable get", "local get")


class Connection:
    """Requests one after the other, each answered before the next."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.rest = b""

    def ask(self, sent):
        self.socket.sendall(sent)
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.receive()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        length = int(length.group(1)) if length else 0
        while len(self.rest) < length:
            self.rest += self.receive()
        self.rest = self.rest[length:]
        return int(head.split()[1])

    def receive(self):
        got = self.socket.recv(65536)
        if not got:
            sys.exit("the node closed the connection")
        return got


def instructions(binary, requests):
    """What a node's whole life takes, with these requests in it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        log = pathlib.Path(folder) / "log"
        with open(log, "wb") as errors:
            process = subprocess.Popen(
                ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", binary, "--port",
                 str(port), "--log-level", "error"], cwd=folder, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                # valgrind has less room for maps than a process has alone.
                env={**os.environ, "MMAPD_STORAGE__MAP_MAX": "1GiB", "MMAPD_STORAGE__QUOTA": "256MiB"})
            try:
                drive(process, port, requests)
                process.terminate()
                code = process.wait(DEADLINE)
            finally:
                process.kill()
                process.wait()
        said = log.read_text(errors="replace")
        found = re.search(r"I +refs: +([\d,]+)", said)
        if code or not found:
            sys.exit(f"the node ended with {code} under valgrind: {said[-2000:]}")
        return int(found.group(1).replace(",", ""))


def drive(process, port, requests):
    connection, end = None, time.monotonic() + DEADLINE
    while connection is None:
        if process.poll() is not None or time.monotonic() > end:
            sys.exit("the node did not start under valgrind")
        try:
            connection = Connection(port)
        except OSError:
            time.sleep(0.2)
    for kind, number in requests:
        status = connection.ask(request(kind, number))
        if status >= 300:
            sys.exit(f"{kind}: {status}")


def measure(binary):
    warm = [(kind, number) for kind in KINDS for number in range(WARM)]
    least = instructions(binary, warm)
    more = {kind: instructions(binary, warm + [(kind, number) for number in range(COUNTED)]) for kind in KINDS}
    return {kind: (all_of_it - least) // COUNTED for kind, all_of_it in more.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing: apt-get install valgrind")
    figures = measure(arguments.binary.resolve())
    if arguments.write:
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    committed = json.loads(FIGURES.read_text())
    worse = False
    for kind, now in figures.items():
        ratio = now / committed[kind]
        word = "ok"
        if ratio > 1 + TOLERANCE:
            word, worse = "REGRESSION", True
        elif ratio < 1 - TOLERANCE:
            word = "better: commit it with --write"
        print(f"{kind}: {now} instructions, {ratio:.2f} of {committed[kind]}: {word}")
    if worse:
        sys.exit("requests take more instructions than they did")


if __name__ == "__main__":
    main()
