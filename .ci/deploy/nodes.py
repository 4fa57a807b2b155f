"""deploy/ at work: three nodes, Prometheus and HAProxy as their files say, and nodes that die.

Runs in a network and a process namespace of its own. Nothing waits for a fixed time: conditions
are asked for until they hold, or until DEADLINE.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY, OUT = ROOT / "deploy", ROOT / "target/ci/deploy"
BINARY, WORK = sys.argv[1], pathlib.Path(sys.argv[2]) / "nodes"
DEADLINE = 120
PROMETHEUS = "http://127.0.0.1:9090"
ANY, LEADER = "http://127.0.0.1:3000", "http://127.0.0.1:3010"
NODES = {n: f"http://127.0.0.1:300{n}" for n in (1, 2, 3)}
# The one of the image and on Kubernetes.
USER = 65532
# Panels that are empty while nothing fails.
EMPTY = {"Requests that fail"}
# What a slow and busy machine may set off, with alerts that wait for seconds and not for minutes.
SLOW = {"MmapdSlowSync", "MmapdSlowCommits", "MmapdUnknownOutcomes", "MmapdLeaderChanges", "MmapdErrors"}
# Series that appear only when requests fail.
FAILURES = re.compile(r'status=~?"[45]')


def fail(what):
    for log in sorted(OUT.glob("*.log")):
        print(f"--- {log.name} ends with:\n" + "\n".join(log.read_text().splitlines()[-8:]))
    sys.exit(f"deploy: {what}; see {OUT}")


def need(holds, what):
    if not holds:
        fail(what)


def start(name, *command, cwd=None, env=None):
    log = open(OUT / f"{name}.log", "a")
    return subprocess.Popen([str(part) for part in command], cwd=cwd or WORK, stdout=log, stderr=log,
                            stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, umask=0o077)


def http(url, method="GET", body=None):
    """Status and text; status 0 when nobody answers."""
    request = urllib.request.Request(url, method=method, data=body)
    try:
        with DIRECT.open(request, timeout=5) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def await_that(what, condition, deadline=DEADLINE):
    """Until it returns something true, which is returned. Says what it returned else."""
    end = time.monotonic() + deadline
    while True:
        got = condition()
        if got:
            print(f"  {what}", flush=True)
            return got
        if time.monotonic() > end:
            fail(f"after {deadline} s not yet: {what}")
        time.sleep(0.05)


def query(expr):
    status, text = http(f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
    if status in (0, 503):
        return []
    need(status == 200, f"Prometheus refuses {expr}: {text}")
    return json.loads(text)["data"]["result"]


def alerts(state="firing"):
    """Names of alerts, with the instance where there is one."""
    status, text = http(f"{PROMETHEUS}/api/v1/alerts")
    if status != 200:
        return {}
    told = json.loads(text)["data"]["alerts"]
    return {(one["labels"]["alertname"], one["labels"].get("instance", "")): one["annotations"]
            for one in told if one["state"] == state}


def only(names):
    """No alerts fire but these, and those of slow machines."""
    return {name for name, _ in alerts()} <= names | SLOW


def ready(node):
    return http(f"{NODES[node]}/readyz")[0] == 200


def launch(node):
    """As deploy/README.md says, but that the data goes below WORK."""
    return start(f"node{node}", BINARY, "--config", DEPLOY / f"node{node}.toml")


# What the unit of systemd allows

def allowed_calls(unit):
    """System calls that its SystemCallFilter= lets through."""
    groups, current = {}, None
    listing = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True,
                             check=True)
    for line in listing.stdout.splitlines():
        if line.startswith("@"):
            current = groups.setdefault(line.strip(), [])
        elif current is not None and re.fullmatch(r"\s+@?\w[\w-]*", line):
            current.append(line.strip())

    def calls(name):
        return {name} if not name.startswith("@") else set().union(*(calls(part) for part in groups[name]))

    allowed = calls("@default")
    for value in re.findall(r"(?m)^SystemCallFilter=(.*)$", unit):
        named = set().union(*(calls(name) for name in value.removeprefix("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


def sandbox():
    """A node that is nobody does nothing that the unit forbids, and says READY=1 and STOPPING=1."""
    unit = (DEPLOY / "systemd/mmapd.service").read_text()
    # The home of the user, who can reach nothing else.
    home = WORK / "home"
    state = home / "state"
    state.mkdir(parents=True)
    shutil.copy(BINARY, home / "mmapd")
    supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    supervisor.bind(str(home / "notify"))
    supervisor.settimeout(DEADLINE)
    for path in (home, state, home / "notify"):
        os.chown(path, USER, USER)
        path.chmod(0o700)
    for folder in (WORK, WORK.parent):
        folder.chmod(0o711)
    trace = home / "trace"
    tracer = start("sandbox", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all",
                   "--bounding-set=-all", "--no-new-privs", "strace", "-f", "-qq", "-s", "256", "-o", trace,
                   home / "mmapd", cwd=state, env={"NOTIFY_SOCKET": str(home / "notify")})
    told = supervisor.recv(64)
    need(told == b"READY=1", f"the supervisor was told {told}")
    await_that("the node under strace is ready", lambda: ready(1))
    work(NODES[1])
    node = int(re.match(r"\d+", trace.read_text()).group())
    os.kill(node, signal.SIGTERM)
    told = supervisor.recv(64)
    need(told == b"STOPPING=1", f"the supervisor was told {told}")
    need(tracer.wait(DEADLINE) == 0, "the node under strace did not end well")

    seen = [path for path in state.rglob("*") if path.stat().st_mode & 0o077]
    need(any(state.rglob("*")) and not seen, f"others can read {seen}")

    text = trace.read_text()
    called = set(re.findall(r"(?m)^\d+ +(\w+)\(", text))
    denied = called - allowed_calls(unit)
    need(len(called) > 30 and not denied, f"mmapd.service forbids {', '.join(sorted(denied))}, which mmapd calls")
    executable = re.search(r"PROT_WRITE\|PROT_EXEC|mprotect\([^)]*PROT_EXEC", text)
    need(not executable, "MemoryDenyWriteExecute= would stop it")
    families = set(re.findall(r"\bsocket\((AF_\w+)", text))
    permitted = set(re.search(r"(?m)^RestrictAddressFamilies=(.*)$", unit).group(1).split())
    need(families <= permitted, f"mmapd.service forbids sockets of {families - permitted}")
    for path, flags in re.findall(r'openat\(AT_FDCWD, "([^"]*)", ([\w|]+)', text):
        inside = (state / path).resolve().is_relative_to(state)
        need(inside or not re.search("O_RDWR|O_WRONLY|O_CREAT", flags), f"ProtectSystem= would not let it write {path}")
    print(f"  {len(called)} system calls, all allowed; READY=1 and STOPPING=1 were told")


def work(base):
    """A bit of everything, so that everything has numbers."""
    for n in range(50):
        status, text = http(f"{base}/v1/keys/load/{n}", "PUT", b"x" * 100)
        need(status in (200, 201), f"a write was answered {status}: {text}")
    for path in ("/v1/keys/load/1", "/v1/keys?prefix=load/", "/v1/cluster", "/metrics", "/v1/backup"):
        need(http(base + path)[0] == 200, f"GET {path} failed")
    for path in ("/v1/admin/compact", "/v1/admin/scrub"):
        status, text = http(base + path, "POST", b"")
        need(status == 200, f"POST {path} was answered {status}: {text}")


def through_haproxy():
    """The longest key, all of it escaped, with the largest value; and a watch, which does not end."""
    key, value = "%01" * 4094 + "%2F%00", bytes(8 << 20)
    status, text = http(f"{ANY}/v1/keys/{key}", "PUT", value)
    need(status == 201, f"HAProxy: the longest key was answered {status}: {text}")
    need(http(NODES[1] + f"/v1/keys/{key}") == (200, value.decode()), "HAProxy changed a key or its value")
    with DIRECT.open(f"{ANY}/v1/watch?prefix=watched/&from_revision=1", timeout=DEADLINE) as watch:
        status, text = http(f"{ANY}/v1/keys/watched/1", "PUT", b"x")
        need(status == 201, f"a write was answered {status}: {text}")
        lines = iter(watch.readline, b"")
        need(any(line == b"event: change\n" for line in lines), "HAProxy: the watch told nothing")
    print("  HAProxy passes the longest key, the largest value and a watch", flush=True)
    with DIRECT.open(f"{ANY}/v1/status", timeout=DEADLINE) as answer:
        need("set-cookie" not in answer.headers, "HAProxy gives cookies to those who open no page")
    with DIRECT.open(f"{ANY}/ui", timeout=DEADLINE) as answer:
        cookie = answer.headers["set-cookie"].split(";")[0]
    asked = [urllib.request.Request(ANY + path, headers={"cookie": cookie})
             for path in 10 * ["/v1/status", "/v1/cluster", "/metrics"]]
    told = set()
    for request in asked:
        with DIRECT.open(request, timeout=DEADLINE) as answer:
            told.add(answer.headers["mmapd-node"])
    need(len(told) == 1, f"HAProxy shows a page of nodes {told}")
    print("  HAProxy keeps a page at one node", flush=True)


# Prometheus

def configure():
    """Its files as they are, but that alerts do not wait for minutes."""
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    (WORK / "alerts.yml").write_text(re.sub(r"(?m)^( +for:) \S+$", r"\1 2s", rules))
    (WORK / "prometheus.yml").write_text((DEPLOY / "prometheus/prometheus.yml").read_text())
    start("prometheus", "prometheus", "--config.file", WORK / "prometheus.yml", "--storage.tsdb.path", WORK / "tsdb",
          "--web.listen-address", "127.0.0.1:9090")


def targets_are_up():
    status, text = http(f"{PROMETHEUS}/api/v1/targets")
    up = [one for one in json.loads(text)["data"]["activeTargets"] if one["health"] == "up"] if status == 200 else []
    return len(up) == 3


def rules_are_well():
    status, text = http(f"{PROMETHEUS}/api/v1/rules")
    rules = [rule for group in json.loads(text)["data"]["groups"] for rule in group["rules"]] if status == 200 else []
    errors = [rule["lastError"] for rule in rules if rule["health"] == "err"]
    need(not errors, f"rules fail: {errors}")
    return rules and all(rule["health"] == "ok" for rule in rules)


def selectors_have_data():
    """Whatever an alert looks at is there: names and labels are those of real nodes."""
    text = yaml.safe_load((WORK / "alerts.yml").read_text())
    exprs = " ".join(rule["expr"] for group in text["groups"] for rule in group["rules"])
    selectors = set(re.findall(r"\b(?:mmapd_\w+|up)\{[^}]*(?:\{[^}]*\}[^}]*)*\}", exprs))
    need(len(selectors) > 25, f"only {len(selectors)} selectors were found")
    usual = sorted(one for one in selectors if not FAILURES.search(one))
    await_that("what alerts look at is there", lambda: all(query(selector) for selector in usual))


def panels_have_data():
    board = json.loads((DEPLOY / "grafana/mmapd.json").read_text())
    asked = 0
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in (("$__rate_interval", "1m"), ("$cluster", "loopback"), ("$instance", ".*")):
                expr = expr.replace(name, value)
            end = time.monotonic() + DEADLINE
            while not query(expr) and panel["title"] not in EMPTY:
                need(time.monotonic() < end, f"the panel {panel['title']!r} has no data: {expr}")
                time.sleep(0.2)
            asked += 1
    print(f"  {asked} queries of the dashboard have data")


# Failures

def leader():
    """Who answers at the leader's port, if that is always the same node, and it leads."""
    told = set()
    for _ in range(4 * len(NODES)):
        status, text = http(f"{LEADER}/v1/status")
        one = json.loads(text) if status == 200 else {}
        told.add((one.get("role"), one.get("id")))
    [(role, node), *others] = told
    return node if role == "leader" and not others else None


def failures(nodes):
    first = await_that("HAProxy finds the leader", leader)
    nodes[first].kill()
    nodes[first].wait()
    instance = NODES[first].removeprefix("http://")
    down = ("MmapdMemberDown", instance)
    told = await_that(f"MmapdMemberDown fires for {instance}", lambda: alerts().get(down))
    need("error" not in told["summary"] and instance in told["summary"], f"the alert says {told['summary']!r}")
    await_that("and no other", lambda: only({"MmapdMemberDown", "MmapdFollowerLags"}))

    second = await_that("HAProxy finds the new leader", leader)
    need(second != first, "a dead node leads")
    for base in (ANY, LEADER):
        status, text = http(f"{base}/v1/keys/after", "PUT", b"x")
        need(status in (200, 201), f"a write to {base} was answered {status}: {text}")

    nodes[second].kill()
    nodes[second].wait()
    [third] = set(nodes) - {first, second}
    majority = {("MmapdNoMajority", ""), ("MmapdNoLeader", ""),
                ("MmapdNodeWithoutLeader", NODES[third].removeprefix("http://"))}
    await_that("no majority and no leader: alerts fire", lambda: majority <= set(alerts()))
    await_that("HAProxy has no node that is ready", lambda: http(f"{ANY}/livez")[0] == 503)

    for node in (first, second):
        nodes[node] = launch(node)
    await_that("all nodes are back", lambda: all(ready(node) for node in NODES))
    silent = {"MmapdMemberDown", "MmapdNoMajority", "MmapdNoLeader", "MmapdNodeWithoutLeader"}
    await_that("these alerts are over", lambda: targets_are_up() and not silent & {name for name, _ in alerts()})
    await_that("the write is still there", lambda: http(f"{ANY}/v1/keys/after") == (200, "x"))


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    WORK.mkdir()
    for log in OUT.glob("*.log"):
        if log.name != "apt.log":
            log.unlink()
    print("deploy: what the unit allows", flush=True)
    sandbox()

    print("deploy: three nodes", flush=True)
    nodes = {node: launch(node) for node in NODES}
    await_that("all nodes are ready", lambda: all(ready(node) for node in NODES))
    configure()
    start("haproxy", "haproxy", "-db", "-f", DEPLOY / "haproxy/haproxy.cfg")
    await_that("Prometheus scrapes all nodes", targets_are_up)
    for base in NODES.values():
        work(base)
    await_that("HAProxy finds a node", lambda: http(f"{ANY}/readyz")[0] == 200)
    through_haproxy()
    await_that("no rule fails", rules_are_well)
    selectors_have_data()
    panels_have_data()
    await_that("no alert fires", lambda: only(set()))

    print("deploy: failures", flush=True)
    failures(nodes)
    for node, process in nodes.items():
        process.terminate()
    for node, process in nodes.items():
        need(process.wait(DEADLINE) == 0, f"node {node} did not end well")


main()
