"""The services that are compared: how each is started, asked, measured and ended.

Every service is durable: it acknowledges a write when it is on the disk, of a majority where there
are several nodes. All that differs between nodes and services is on loopback and on one disk.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TICK = os.sysconf("SC_CLK_TCK")
# However slow the machine is: longer than that nothing takes.
DEADLINE = 120


def free_ports(number):
    """Different ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def ask(url, method="GET", body=None, headers=None, timeout=10):
    """Status and body; status 0 when nobody answers."""
    request = urllib.request.Request(url, method=method, data=body, headers=headers or {})
    try:
        with DIRECT.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def await_that(what, condition, pause=0.05):
    """Until it is true. Returns what it returned."""
    end = time.monotonic() + DEADLINE
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise SystemExit(f"after {DEADLINE} s not yet: {what}")
        time.sleep(pause)


def settled(service):
    """Until nothing is being synced from one look to the next: what was written is in a checkpoint, or waits for one."""
    looks = []

    def same():
        looks.append(service.syncs())
        return len(looks) > 2 and looks[-1] == looks[-2] == looks[-3]

    await_that(f"{service.name} is at rest", same, pause=1)


def process_figures(pid):
    """Processor seconds, and bytes of memory by kind, of one process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    memory = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile", "RssShmem"):
            memory[name] = int(value.split()[0]) * 1024
    return (int(fields[11]) + int(fields[12])) / TICK, memory


def written_bytes(pid):
    """What a process made the kernel write to disks so far: pages of maps count when they are changed."""
    return int(pathlib.Path(f"/proc/{pid}/io").read_text().split("\nwrite_bytes: ")[1].split()[0])


class Service:
    """Some nodes of one kind, running."""

    # Of the tables.
    name = ""

    def __init__(self, nodes, folder, settings=None):
        """`settings` are variables of the environment."""
        self.count, self.folder = nodes, pathlib.Path(folder) / f"{self.name}-{nodes}"
        self.settings = settings or {}
        self.folder.mkdir(parents=True)
        self.processes = {}

    def spawn(self, node, command, env=None):
        with open(self.folder / f"{node}.log", "ab") as log:
            self.processes[node] = subprocess.Popen(
                [str(part) for part in command], cwd=self.folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env={**os.environ, **self.settings, **(env or {})})

    def start(self):
        for node in range(1, self.count + 1):
            self.launch(node)
        await_that(f"{self.name} has a leader", lambda: self.all_run() and self.leader())

    def all_run(self):
        for node, process in self.processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {(self.folder / f'{node}.log').read_text()[-300:]}")
        return True

    def kill(self, node):
        process = self.processes.pop(node)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def signal(self, node, number):
        self.processes[node].send_signal(number)

    def stop(self):
        for process in self.processes.values():
            process.terminate()
            # One that stands still hears it only then.
            process.send_signal(signal.SIGCONT)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processor_seconds(self):
        return sum(process_figures(process.pid)[0] for process in self.processes.values())

    def processor_of(self, node):
        return process_figures(self.processes[node].pid)[0]

    def written(self, node):
        return written_bytes(self.processes[node].pid)

    def memory(self, node):
        return process_figures(self.processes[node].pid)[1]

    def bytes_on_disk(self):
        blocks = sum(path.stat().st_blocks for path in self.folder.rglob("*") if path.is_file())
        return 512 * blocks

    # What each kind says of itself.

    def launch(self, node):
        raise NotImplementedError

    def leader(self):
        """The node that leads, if any."""
        raise NotImplementedError

    def syncs(self):
        """How often all nodes made something durable so far; None where that is not told."""
        return None

    def put(self, key, value, node=None):
        raise NotImplementedError

    def get(self, key, node=None):
        raise NotImplementedError


class Clustered(Service):
    """Nodes that speak HTTP, say which of them leads and count their syncs."""

    # Where a node says what it is: path, field, and what a leader has there.
    role = ("", "", "")
    # The metric that counts syncs.
    counter = ""

    def leader(self):
        path, field, leads = self.role
        for node in self.processes:
            status, body = ask(f"{self.bases[node]}{path}", timeout=1)
            if status == 200 and json.loads(body)[field] == leads:
                return node
        return None

    def metrics(self, node):
        """All series by name with labels, summed by name as well. Nothing of a node that does not answer."""
        found = {}
        status, body = ask(f"{self.bases[node]}/metrics")
        for line in body.decode().splitlines() if status == 200 else []:
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            if series and not series.startswith("#"):
                for key in {series, name}:
                    found[key] = found.get(key, 0) + float(value)
        return found

    def syncs(self):
        return sum(self.syncs_of(node) for node in self.processes)

    def syncs_of(self, node):
        return self.metrics(node).get(self.counter, 0)

    def follower(self):
        """A node that does not lead."""
        leader = await_that(f"{self.name} has a leader", self.leader)
        return next(node for node in self.processes if node != leader)


class Mmapd(Clustered):
    name = "mmapd"
    role = ("/v1/status", "role", "leader")
    counter = "mmapd_mmap_msyncs_total"
    binary = None

    def __init__(self, nodes, folder, settings=None):
        super().__init__(nodes, folder, settings)
        self.ports = free_ports(nodes)
        self.bases = {n: f"http://127.0.0.1:{port}" for n, port in enumerate(self.ports, 1)}

    def launch(self, node):
        members = ",".join(f"{n}={base}" for n, base in self.bases.items())
        env = {"MMAPD_PEERS": members} if self.count > 1 else {}
        self.spawn(node, [self.binary, "--id", node, "--port", self.ports[node - 1], "--db", f"{node}/db",
                          "--log", f"{node}/log", "--log-level", "warn"], env)

    def status(self, node):
        status, body = ask(f"{self.bases[node]}/v1/status", timeout=1)
        return json.loads(body) if status == 200 else {}

    def caught_up(self, node):
        """Has it applied what the leader has committed?"""
        leader = self.leader()
        upto = self.status(leader).get("commit_index") if leader else None
        return bool(upto) and self.status(node).get("applied_index", 0) >= upto

    def put(self, key, value, node=None):
        status, _ = ask(f"{self.bases[node or self.leader() or 1]}/v1/keys/{key}", "PUT", value, timeout=2)
        return status in (200, 201)

    def get(self, key, node=None):
        status, body = ask(f"{self.bases[node or 1]}/v1/keys/{key}", timeout=2)
        return body if status == 200 else None

    def requests(self, what, node):
        """The base, and for wrk: method, path before and after the number, body, headers."""
        return self.routes(self.bases[node], what)

    @staticmethod
    def routes(base, what):
        return base, {
            "put": ("PUT", "/v1/keys/bench/", "", "raw", {}),
            "get": ("GET", "/v1/keys/bench/", "", None, {}),
            "local": ("GET", "/v1/keys/bench/", "?consistency=stale", None, {}),
        }[what]


class Etcd(Clustered):
    """etcd 3.4 with its REST API v2."""

    name = "etcd-v2"
    role = ("/v2/stats/self", "state", "StateLeader")
    counter = "etcd_disk_wal_fsync_duration_seconds_count"

    def __init__(self, nodes, folder, settings=None):
        super().__init__(nodes, folder, settings)
        ports = free_ports(2 * nodes)
        self.bases = {n: f"http://127.0.0.1:{port}" for n, port in enumerate(ports[:nodes], 1)}
        self.peers = {n: f"http://127.0.0.1:{port}" for n, port in enumerate(ports[nodes:], 1)}

    def launch(self, node):
        cluster = ",".join(f"n{n}={url}" for n, url in self.peers.items())
        self.spawn(node, ["etcd", "--name", f"n{node}", "--data-dir", f"{node}", "--enable-v2", "--logger", "zap",
                          "--log-level", "error", "--listen-client-urls", self.bases[node],
                          "--advertise-client-urls", self.bases[node], "--listen-peer-urls", self.peers[node],
                          "--initial-advertise-peer-urls", self.peers[node], "--initial-cluster", cluster],
                   {"ETCD_UNSUPPORTED_ARCH": ""})

    def put(self, key, value, node=None):
        url = f"{self.bases[node or self.leader() or 1]}/v2/keys/{key}"
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return ask(url, "PUT", b"value=" + value, headers, timeout=2)[0] in (200, 201)

    def caught_up(self, node):
        """A read that goes through the log is answered when the log before it was applied."""
        self.put("caught-up", b"x")
        return self.get("caught-up", node) is not None

    def get(self, key, node=None):
        status, body = ask(f"{self.bases[node or 1]}/v2/keys/{key}?quorum=true", timeout=2)
        return json.loads(body)["node"]["value"].encode() if status == 200 else None

    def requests(self, what, node):
        base = self.bases[node]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return base, {
            "put": ("PUT", "/v2/keys/bench/", "", "form", form),
            "get": ("GET", "/v2/keys/bench/", "?quorum=true", None, {}),
            "local": ("GET", "/v2/keys/bench/", "", None, {}),
        }[what]


class EtcdJson(Etcd):
    """etcd 3.4 with the JSON gateway of its API v3."""

    name = "etcd-v3-json"

    def requests(self, what, node):
        base = self.bases[node]
        json_type = {"Content-Type": "application/json"}
        return base, {
            "put": ("POST", "/v3/kv/put", None, "v3put", json_type),
            "get": ("POST", "/v3/kv/range", None, "v3get", json_type),
            "local": ("POST", "/v3/kv/range", None, "v3local", json_type),
        }[what]

    def put(self, key, value, node=None):
        import base64
        body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
        url = f"{self.bases[node or self.leader() or 1]}/v3/kv/put"
        return ask(url, "POST", json.dumps(body).encode(), timeout=2)[0] == 200


class Redis(Service):
    """Redis that syncs its file before it answers. One node: its replication loses writes."""

    name = "redis-always"

    def __init__(self, nodes, folder, settings=None):
        super().__init__(nodes, folder, settings)
        [self.port] = free_ports(1)

    def launch(self, node):
        self.spawn(node, ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
                          "--appendonly", "yes", "--appendfsync", "always"])

    def leader(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return 1 if connection.recv(7) == b"+PONG\r\n" else None
        except OSError:
            return None


class Bare(Service):
    """axum with the answers of mmapd and nothing behind them: benches/bare.rs. A control, not a peer."""

    name = "axum-alone"
    binary = None

    def __init__(self, nodes, folder, settings=None):
        super().__init__(nodes, folder, settings)
        [self.port] = free_ports(1)

    def launch(self, node):
        self.spawn(node, [self.binary, self.port])

    def leader(self):
        return 1 if ask(f"http://127.0.0.1:{self.port}/v1/keys/x", timeout=1)[0] == 200 else None

    def requests(self, what, node):
        return Mmapd.routes(f"http://127.0.0.1:{self.port}", what)
