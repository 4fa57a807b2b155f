"""What drives the services: wrk as fast as they answer, requests at a steady rate, and all keys at once."""

import array
import base64
import concurrent.futures
import http.client
import json
import pathlib
import re
import subprocess
import sys
import time
import urllib.parse

from figures import device_bytes, quantile
from systems import Mmapd, Redis

HERE = pathlib.Path(__file__).resolve().parent
KEYS, SIZE = 10_000, 256
OPERATIONS = {"put": "PUT", "get": "linearizable GET", "local": "local GET"}


class Sample:
    """One run of a load: a rate, and what it took."""

    def __init__(self, rate, p50, p99, errors, operations):
        self.rate, self.p50, self.p99, self.errors, self.operations = rate, p50, p99, errors, operations
        self.cpu = self.syncs = self.device = None


def wrk(service, what, connections, seconds, size=SIZE, keys=KEYS, node=None, below=None):
    """All keys are equally likely. With `below`, those that `put_many` wrote, and each request is made anew."""
    base, (method, before, after, kind, headers) = service.requests(what, node or service.leader())
    kind = kind or "none"
    if below:
        before, kind = f"{below}/", f"padded-{kind}"
    command = ["wrk", "-t", min(2, connections), "-c", connections, "-d", f"{seconds}s", "--timeout", "10s", "--latency",
               "-s", HERE / "wrk.lua", base, "--", kind, method, before, after or "", keys, size,
               *(f"{name}={value}" for name, value in headers.items())]
    text = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", text)
    if not found:
        raise SystemExit(f"wrk said: {text}")
    requests, micros, broken, refused, p50, p99, _ = map(int, found.groups())
    return Sample(requests * 1e6 / micros, p50 / 1000, p99 / 1000, broken + refused, requests)


def redis_benchmark(service, what, connections, seconds, rate):
    """Redis speaks no HTTP, so its own tool drives it, for about as long."""
    requests = max(1000, int(rate * seconds))
    text = subprocess.run(["redis-benchmark", "-p", str(service.port), "-t", {"put": "set"}.get(what, "get"), "-c",
                           str(connections), "-n", str(requests), "-d", str(SIZE), "-r", str(KEYS), "--csv"],
                          capture_output=True, text=True, check=True).stdout
    row = [part.strip('"') for part in text.strip().splitlines()[-1].split(",")]
    return Sample(float(row[1]), float(row[4]), float(row[6]), 0, requests)


def measured(service, device, drive):
    """A sample with what it cost: processor, syncs and bytes on the disk for each operation."""
    cpu, syncs, written = service.processor_seconds(), service.syncs(), device_bytes(device)
    sample = drive()
    if sample.operations:
        sample.cpu = (service.processor_seconds() - cpu) * 1e6 / sample.operations
        sample.device = (device_bytes(device) - written) / sample.operations
        if syncs is not None:
            sample.syncs = (service.syncs() - syncs) / sample.operations
    return sample


class Answers:
    """When each of some requests was due and answered."""

    def __init__(self, times, errors=0):
        self.times, self.errors = times, errors

    def within(self, windows):
        """Those that were on their way in one of some spans of time."""
        return Answers([one for one in self.times if any(one[0] < end and one[1] > start for start, end in windows)])

    def beyond(self, windows):
        return Answers([one for one in self.times if not any(one[0] < end and one[1] > start for start, end in windows)])

    def milliseconds(self, part):
        return 1000 * quantile([end - start for start, end in self.times], part)

    def __len__(self):
        return len(self.times)


class Child:
    """A process of ours, started by whoever is one, that does not outlive its block."""

    def output(self, what):
        """All that it wrote, when it has ended as it should."""
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"{what} ended early")
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Paced(Child):
    """PUTs by a process of its own: so many a second, or as fast as they are answered with a rate of 0."""

    def __init__(self, service, rate, connections=16, keys=1000, size=SIZE, count=0, below="paced"):
        """Keys by chance, or each once and in turn if there are 0 of them; for ever, or `count` requests."""
        base, (method, before, after, kind, headers) = service.requests("put", service.leader())
        url = urllib.parse.urlsplit(base)
        order = {"host": url.hostname, "port": url.port, "method": method, "before": before.replace("bench", below),
                 "after": after, "kind": kind, "headers": headers, "keys": keys, "size": size, "connections": connections,
                 "rate": rate, "count": count}
        self.process = subprocess.Popen([sys.executable, HERE / "paced.py", json.dumps(order)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self):
        """The answers, when the last has come; ends a load that would go on."""
        head, _, rest = self.output("the steady load").partition(b"\n")
        said, flat = json.loads(head), array.array("d", rest)
        self.processor = said["processor"]
        return Answers(list(zip(flat[::2], flat[1::2])), said["errors"])


def fill(service):
    """All keys that are read later, written once."""
    if isinstance(service, Redis):
        subprocess.run(["redis-benchmark", "-p", str(service.port), "-t", "set", "-c", "64", "-n", str(3 * KEYS), "-d",
                        str(SIZE), "-r", str(KEYS), "-q"], stdout=subprocess.DEVNULL, check=True)
        return
    # wrk chooses at random: a few times as many as there are keys leave few out.
    while True:
        wrk(service, "put", 64, 4)
        sample = wrk(service, "get", 16, 1)
        if sample.errors <= sample.operations // 100:
            return


def put_many(service, number, node=1):
    """So many different keys, many at once, some requests beside each other. Returns the seconds it took."""
    size, url, one, wrap, said = (2000, "/v1/batch", line, "\n".join, batch_said) if isinstance(service, Mmapd) else (
        100, "/v3/kv/txn", put_of_v3, lambda puts: '{"success":[' + ",".join(puts) + "]}", lambda body, lines: True)
    address = urllib.parse.urlsplit(service.bases[node])
    firsts = iter(range(0, number, size))

    def write(_):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        # Shared: each takes what nobody took yet.
        for first in firsts:
            lines = [one(n) for n in range(first, min(first + size, number))]
            connection.request("POST", url, wrap(lines), {"Content-Type": "application/x-ndjson"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or not said(body, lines):
                raise SystemExit(f"{url} was answered {answer.status}: {body[:300]}")
        connection.close()

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(write, range(4)):
            pass
    return time.monotonic() - start


def line(n, value="v" * SIZE):
    return f'{{"put":{{"key":"many/{n:08}","value":"{value}"}}}}'


def batch_said(body, lines):
    """What is wrong with a line is said in an answer that begins with 200."""
    return json.loads(body.splitlines()[-1]).get("applied") == len(lines)


def put_of_v3(n, value=base64.b64encode(b"v" * SIZE).decode()):
    return json.dumps({"requestPut": {"key": base64.b64encode(f"many/{n:08}".encode()).decode(), "value": value}})
