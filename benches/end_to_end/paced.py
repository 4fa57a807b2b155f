"""A load as a process of its own: requests begin when they are due, also if earlier ones wait.

Takes one object in JSON as its argument and goes on until it has sent `count` requests or, if that is
0, until its input ends. A latency counts from when the request was due, so a service that stands still is
charged for all that would have come meanwhile. With a rate of 0 every connection sends its next
request as soon as it has an answer. Prints a line of JSON, then pairs of doubles on the clock that
all processes share: when each request was due, when it was answered.
"""

import array
import collections
import gc
import json
import os
import random
import select
import socket
import sys
import time


class Connection:
    """One request at a time."""

    def __init__(self, address):
        self.address = address
        self.open()

    def open(self):
        self.socket = socket.create_connection(self.address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""

    def fileno(self):
        return self.socket.fileno()

    def send(self, due, request):
        self.due = due
        self.socket.sendall(request)

    def receive(self):
        """The status, when the answer is whole; 0 when there will be none."""
        try:
            part = self.socket.recv(65536)
        except OSError:
            part = b""
        if not part:
            self.socket.close()
            self.open()
            return 0
        self.heard += part
        end = self.heard.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self.heard[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.heard) < end + 4 + length:
            return None
        self.heard = b""
        return int(head[9:12])


def requests(order):
    """Without end: one for each key in turn, or for keys by chance."""
    value = "v" * (order["size"] - 1) + "~"
    body = {"raw": value, "form": "value=" + value, None: ""}[order["kind"]].encode()
    rest = (f"{order['after']} HTTP/1.1\r\nHost: {order['host']}:{order['port']}\r\nContent-Length: {len(body)}\r\n" +
            "".join(f"{name}: {text}\r\n" for name, text in order["headers"].items()) + "\r\n").encode() + body
    before = f"{order['method']} {order['before']}".encode()
    number = 0
    while True:
        yield before + b"%08d" % (random.randrange(order["keys"]) if order["keys"] else number) + rest
        number += 1


def drive(order):
    free = collections.deque(Connection((order["host"], order["port"])) for _ in range(order["connections"]))
    busy, times, errors, sent = set(), array.array("d"), 0, 0
    rate, made = order["rate"], requests(order)
    count = order["count"] or float("inf")
    start, stopped = time.monotonic(), False
    while True:
        now = time.monotonic()
        due = start + sent / rate if rate else now
        while free and not stopped and sent < count and due <= now:
            connection = free.popleft()
            busy.add(connection)
            connection.send(due, next(made))
            sent += 1
            due = start + sent / rate if rate else now
        stopped = stopped or sent >= count
        if stopped and not busy:
            return times, errors
        wait = max(0, due - time.monotonic()) if free and not stopped else 1
        ready, _, _ = select.select([*busy, *([] if stopped or order["count"] else [sys.stdin])], [], [], wait)
        now = time.monotonic()
        for one in ready:
            if one is sys.stdin:
                stopped = True
                continue
            status = one.receive()
            if status is None:
                continue
            errors += not 200 <= status < 300
            times.extend((one.due, now))
            busy.remove(one)
            free.append(one)


def main():
    gc.disable()
    times, errors = drive(json.loads(sys.argv[1]))
    usage = os.times()
    print(json.dumps({"errors": errors, "processor": usage.user + usage.system}), flush=True)
    sys.stdout.buffer.write(times.tobytes())


if __name__ == "__main__":
    main()
