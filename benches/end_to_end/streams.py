"""Many watches in one process that does as little as it can: it counts one mark in what arrives.

Takes one object in JSON as its argument, says `ready` when all streams are open, and ends when all
of them saw all changes, when none is left, or when nothing came for `patience` seconds. Every change
has the mark once, in its value. Prints a line of JSON: when the last stream saw each change (null
where some did not), how many were delivered and when the last was, how many streams the service
ended, how many of the others did not see all, and the processor time it took itself.
"""

import gc
import json
import os
import select
import socket
import sys
import time


def open_streams(order, poll):
    """By descriptor; each has said that changes are told from now on."""
    request = f"GET {order['path']} HTTP/1.1\r\nHost: {order['host']}:{order['port']}\r\n\r\n".encode()
    streams = {}
    for _ in range(order["streams"]):
        stream = socket.create_connection((order["host"], order["port"]), timeout=30)
        stream.sendall(request)
        streams[stream.fileno()] = stream
    for number, stream in streams.items():
        heard = b""
        while order["opened"].encode() not in heard:
            part = stream.recv(65536)
            if not part or (len(heard) > 12 and not heard.startswith(b"HTTP/1.1 200")):
                sys.exit(f"a watch was refused: {heard[:300]}")
            heard += part
        stream.setblocking(False)
        poll.register(number, select.EPOLLIN)
    return streams


def follow(order, streams, poll):
    changes, total = order["changes"], len(streams)
    counts = dict.fromkeys(streams, 0)
    seen, last = [0] * changes, [None] * changes
    delivered, ended, behind, latest = 0, 0, total, time.monotonic()
    while behind:
        ready = poll.poll(1)
        if not ready and time.monotonic() - latest > order["patience"]:
            break
        for number, _ in ready:
            try:
                part = streams[number].recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part:
                poll.unregister(number)
                streams[number].close()
                if counts[number] < changes:
                    ended += 1
                    behind -= 1
                continue
            fresh = part.count(b"~")
            if not fresh:
                continue
            before = counts[number]
            after = counts[number] = before + fresh
            if after > changes:
                sys.exit(f"a stream was told of {after} changes where {changes} were made")
            latest = time.monotonic()
            delivered += fresh
            behind -= after == changes
            for change in range(before, after):
                seen[change] += 1
                if seen[change] == total:
                    last[change] = latest
    return {"last": last, "delivered": delivered, "latest": latest, "ended": ended, "behind": behind}


def main():
    gc.disable()
    order = json.loads(sys.argv[1])
    poll = select.epoll()
    streams = open_streams(order, poll)
    print("ready", flush=True)
    before = os.times()
    result = follow(order, streams, poll)
    usage = os.times()
    result["processor"] = usage.user + usage.system - before.user - before.system
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
