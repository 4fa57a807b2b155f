#!/usr/bin/env python3
"""mmapd beside etcd and Redis: one command, all in one run.

    cargo build --release
    python3 benches/end_to_end/run.py target/release/mmapd              all of it, half an hour
    python3 benches/end_to_end/run.py target/release/mmapd --quick      all parts, shortened
    python3 benches/end_to_end/run.py target/release/mmapd --parts throughput,failover

Needs Debian's etcd-server, redis-server, redis-tools and wrk. Services take turns within each
repetition, so what else the machine does hits all of them: read the ratios. Prints Markdown, and
writes it with a plot below --out (benches/results).
"""

import argparse
import json
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import plot
from systems import DEADLINE, Etcd, EtcdJson, Mmapd, Redis, ask, await_that

HERE = pathlib.Path(__file__).resolve().parent
KEYS, SIZE = 10_000, 256
OPERATIONS = {"put": "PUT", "get": "linearizable GET", "local": "local GET"}


def device_bytes(device):
    """Bytes written to a disk so far, by all of the machine."""
    for line in pathlib.Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[2] == device:
            return 512 * int(fields[9])
    return 0


def device_of(folder):
    """The disk that holds a folder, as /proc/diskstats calls it."""
    source = subprocess.check_output(["df", "--output=source", folder], text=True).splitlines()[-1].strip()
    return pathlib.Path(source).resolve().name


class Sample:
    """One run of a load: a rate, and what it took."""

    def __init__(self, rate, p50, p99, errors, operations):
        self.rate, self.p50, self.p99, self.errors, self.operations = rate, p50, p99, errors, operations
        self.cpu = self.syncs = self.device = None


def wrk(service, what, connections, seconds, size=SIZE, keys=KEYS, node=None):
    base, (method, before, after, kind, headers) = service.requests(what, node or service.leader())
    command = ["wrk", "-t", min(2, connections), "-c", connections, "-d", f"{seconds}s", "--timeout", "10s", "--latency",
               "-s", HERE / "wrk.lua", base, "--", kind or "none", method, before, after or "", keys, size,
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


def three(values, digits=0):
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def middle(values, digits):
    values = [value for value in values if value is not None]
    return f"{statistics.median(values):.{digits}f}" if values else "-"


def throughput(setup):
    """PUT, linearizable GET and local GET at several numbers of connections."""
    samples, rates = {}, {}
    for nodes, kinds in ((1, (Mmapd, Etcd, EtcdJson, Redis)), (3, (Mmapd, Etcd, EtcdJson))):
        services = [setup.start(kind, nodes) for kind in kinds]
        for service in services:
            fill(service)
        for repetition in range(setup.repetitions):
            for connections in setup.connections:
                for what in OPERATIONS:
                    # Not always the same one first.
                    turn = repetition % len(services)
                    for service in services[turn:] + services[:turn]:
                        if isinstance(service, Redis):
                            if what == "local":
                                continue
                            place = (what, connections)
                            sample = measured(service, setup.device, lambda s=service, r=rates.get(place, 5000):
                                              redis_benchmark(s, what, connections, setup.seconds, r))
                            rates[place] = sample.rate
                        else:
                            sample = measured(service, setup.device, lambda s=service:
                                              wrk(s, what, connections, setup.seconds))
                        key = (nodes, what, connections, service.name)
                        samples.setdefault(key, []).append(sample)
                        print(f"  {nodes} {what} {connections} {service.name}: {sample.rate:.0f}/s", file=sys.stderr)
        for service in services:
            service.stop()
    setup.samples = samples
    lines = []
    for nodes in (1, 3):
        for what, title in OPERATIONS.items():
            lines += ["", f"### {title}, {nodes} node{'s' if nodes > 1 else ''}", "",
                      "| connections | service | a second: min / median / max | mmapd to it: min / median / max | p50 ms "
                      "| p99 ms | CPU us | syncs | device bytes | errors |", "|---|---|---|---|---|---|---|---|---|---|"]
            for connections in setup.connections:
                ours = samples[nodes, what, connections, Mmapd.name]
                for (n, w, c, name), theirs in samples.items():
                    if (n, w, c) != (nodes, what, connections):
                        continue
                    ratios = [a.rate / b.rate for a, b in zip(ours, theirs)]
                    lines.append(f"| {connections} | {name} | {three([one.rate for one in theirs])} | "
                                 f"{'' if name == Mmapd.name else three(ratios, 2)} | "
                                 f"{middle([one.p50 for one in theirs], 2)} | {middle([one.p99 for one in theirs], 2)} | "
                                 f"{middle([one.cpu for one in theirs], 0)} | {middle([one.syncs for one in theirs], 2)} | "
                                 f"{middle([one.device for one in theirs], 0)} | {sum(one.errors for one in theirs)} |")
    return lines


def fill(service):
    """All keys that are read later, written once."""
    if isinstance(service, Redis):
        subprocess.run(["redis-benchmark", "-p", str(service.port), "-t", "set", "-c", "64", "-n", str(3 * KEYS), "-d",
                        str(SIZE), "-r", str(KEYS), "-q"], stdout=subprocess.DEVNULL, check=True)
        return
    base, (method, before, after, kind, headers) = service.requests("put", service.leader())
    # wrk chooses at random: a few times as many as there are keys leave few out.
    while True:
        wrk(service, "put", 64, 4)
        sample = wrk(service, "get", 16, 1)
        if sample.errors <= sample.operations // 100:
            return


def failover(setup):
    """From kill -9 of the leader to the first write that succeeds, asked of all other nodes at once."""
    taken = {}
    services = [setup.start(kind, 3) for kind in (Mmapd, Etcd)]
    for _ in range(setup.kills):
        for service in services:
            await_that("a write", lambda s=service: s.put("failover", b"x"))
            victim = service.leader()
            others = [node for node in service.processes if node != victim]
            first, done = [], threading.Event()

            def write(node, s=service, first=first, done=done):
                while not done.is_set():
                    if s.put("failover", b"x", node):
                        first.append(time.monotonic())
                        done.set()

            threads = [threading.Thread(target=write, args=(node,)) for node in others]
            start = time.monotonic()
            service.kill(victim)
            for thread in threads:
                thread.start()
            if not done.wait(DEADLINE):
                raise SystemExit(f"{service.name}: no write after the leader was killed")
            for thread in threads:
                thread.join()
            taken.setdefault(service.name, []).append(min(first) - start)
            service.launch(victim)
            await_that("the node is back", lambda s=service, n=victim: s.get("failover", n) is not None)
    for service in services:
        service.stop()
    lines = ["", "### First write after kill -9 of the leader, 3 nodes", "",
             f"| service | seconds: min / median / max of {setup.kills} |", "|---|---|"]
    return lines + [f"| {name} | {three(values, 3)} |" for name, values in taken.items()]


def put_many(service, number):
    """So many different keys, by many connections; the service's bulk way where it has one."""
    value = b"v" * SIZE
    if isinstance(service, Mmapd):
        for first in range(0, number, 2000):
            lines = [json.dumps({"put": {"key": f"many/{n:08}", "value": value.decode()}}) for n in
                     range(first, min(first + 2000, number))]
            status, body = ask(f"{service.bases[1]}/v1/batch", "POST", "\n".join(lines).encode(),
                               {"Content-Type": "application/x-ndjson"}, timeout=60)
            # What is wrong with a line is said in an answer that begins with 200.
            if status != 200 or json.loads(body.splitlines()[-1]).get("applied") != len(lines):
                raise SystemExit(f"a batch was answered {status}: {body[:300]}")
        return
    import base64
    for first in range(0, number, 100):
        puts = [{"requestPut": {"key": base64.b64encode(f"many/{n:08}".encode()).decode(),
                                "value": base64.b64encode(value).decode()}} for n in range(first, min(first + 100, number))]
        status, body = ask(f"{service.bases[1]}/v3/kv/txn", "POST", json.dumps({"success": puts}).encode(), timeout=60)
        if status != 200:
            raise SystemExit(f"a transaction was answered {status}: {body[:300]}")


def restart(setup):
    """A node with many keys: its memory, its files, and how long after kill -9 it answers again."""
    lines = ["", f"### One node with {setup.many} keys of {SIZE} bytes", "",
             "| service | RssAnon MB | RssFile MB | files MB | seconds from start to first read: min / median / max |",
             "|---|---|---|---|---|"]
    for kind in (Mmapd, EtcdJson):
        service = setup.start(kind, 1)
        put_many(service, setup.many)
        memory, disk, taken = service.memory(1), service.bytes_on_disk(), []
        for _ in range(setup.repetitions):
            service.kill(1)
            start = time.monotonic()
            service.launch(1)
            await_that("it answers", lambda: can_read(service), pause=0.002)
            taken.append(time.monotonic() - start)
        lines.append(f"| {service.name} | {memory['RssAnon'] / 1e6:.0f} | {memory['RssFile'] / 1e6:.0f} | {disk / 1e6:.0f} | "
                     f"{three(taken, 3)} |")
        service.stop()
    return lines


def can_read(service):
    if isinstance(service, Mmapd):
        return ask(f"{service.bases[1]}/v1/keys/many/00000001", timeout=1)[0] == 200
    body = json.dumps({"key": "bWFueS8wMDAwMDAwMQ=="}).encode()
    return ask(f"{service.bases[1]}/v3/kv/range", "POST", body, timeout=1)[0] == 200


def values(setup):
    """PUT and GET of larger values, one node, 16 connections."""
    lines = ["", "### Larger values, 1 node, 16 connections", "",
             "| bytes | service | PUT MB/s: min / median / max | GET MB/s: min / median / max |", "|---|---|---|---|"]
    services = [setup.start(kind, 1) for kind in (Mmapd, Etcd)]
    for size in (1 << 10, 16 << 10, 256 << 10):
        rates = {}
        for _ in range(setup.repetitions):
            for service in services:
                for what in ("put", "get"):
                    sample = wrk(service, what, 16, setup.seconds, size=size, keys=200)
                    rates.setdefault((service.name, what), []).append(sample.rate * size / 1e6)
        for service in services:
            lines.append(f"| {size} | {service.name} | {three(rates[service.name, 'put'], 1)} | "
                         f"{three(rates[service.name, 'get'], 1)} |")
    for service in services:
        service.stop()
    return lines


def sizes(setup):
    """Whether a tenfold store is slower: one node, 16 connections, all keys equally likely."""
    lines = ["", "### Larger stores, mmapd, 1 node, 16 connections", "",
             "| keys | PUT a second: min / median / max | GET a second: min / median / max |", "|---|---|---|"]
    stores = {}
    for number in setup.sizes:
        stores[number] = setup.start(Mmapd, 1)
        put_many(stores[number], number)
    rates = {}
    for _ in range(setup.repetitions):
        for number, service in stores.items():
            for what in ("put", "get"):
                request = service.requests

                def over_all(what, node, request=request):
                    base, (method, _, after, kind, headers) = request(what, node)
                    return base, (method, "/v1/keys/many/", after, "padded-" + (kind or "none"), headers)

                service.requests = over_all
                sample = wrk(service, what, 16, setup.seconds, keys=number)
                service.requests = request
                rates.setdefault((number, what), []).append(sample.rate)
    for number, service in stores.items():
        lines.append(f"| {number} | {three(rates[number, 'put'])} | {three(rates[number, 'get'])} |")
        service.stop()
    return lines


PARTS = {"throughput": throughput, "failover": failover, "restart": restart, "values": values, "sizes": sizes}


class Setup:
    """What was asked for, and where things are."""

    def __init__(self, arguments, folder):
        self.folder, self.device, self.samples, self.running = folder, device_of(folder), {}, []
        quick = arguments.quick
        self.connections = [int(number) for number in arguments.connections.split(",")]
        self.repetitions, self.seconds = (2, 2) if quick else (3, 5)
        self.kills = 3 if quick else 10
        self.many = 50_000 if quick else 1_000_000
        self.sizes = [10_000, 100_000] if quick else [100_000, 1_000_000]

    def start(self, kind, nodes):
        self.folder.mkdir(exist_ok=True)
        service = kind(nodes, tempfile.mkdtemp(dir=self.folder))
        self.running.append(service)
        service.start()
        return service

    def stop_all(self):
        """What a part that failed left running."""
        for service in self.running:
            service.stop()
        self.running.clear()


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    total = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1))
    cores = pathlib.Path("/proc/cpuinfo").read_text().count("processor\t")
    version = {name: subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0] for name, command in
               {"etcd": ["etcd", "--version"], "redis": ["redis-server", "--version"]}.items()}
    return [f"* {cores} cores of {model.group(1) if model else platform.machine()}, {total >> 20} GiB, Linux "
            f"{platform.release()}; load, services and kernel share them.",
            f"* {version['etcd']}; {' '.join(version['redis'].split()[:3])}.",
            f"* Values of {SIZE} bytes, {KEYS} keys where not said otherwise, all nodes on one disk."]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--connections", default="1,16,64,256")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "results")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("target/end_to_end"),
                        help="where the data goes: on a real disk")
    arguments = parser.parse_args()
    for program in ("etcd", "redis-server", "redis-benchmark", "wrk"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install etcd-server redis-server redis-tools wrk")
    Mmapd.binary = arguments.binary.resolve()
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(arguments, folder)
    lines = ["# mmapd beside etcd and Redis", "", *machine()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        for part in arguments.parts.split(","):
            print(f"{part} ...", file=sys.stderr)
            lines += PARTS[part](setup)
            # What was measured is kept whatever becomes of the next part.
            (arguments.out / "end_to_end.md").write_text("\n".join(lines) + "\n")
            if setup.samples:
                picture = plot.ratios(setup.samples, setup.connections)
                (arguments.out / "end_to_end.svg").write_text(picture)
    finally:
        setup.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
