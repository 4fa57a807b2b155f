"""deploy/ as files: each is read by the program it is for, and compared with what it repeats."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
BINARY, WORK = sys.argv[1], pathlib.Path(sys.argv[2])
TOOLS = WORK / "venv/bin"
DEFAULTS = tomllib.loads((ROOT / "config.toml").read_text())
DATA = "/var/lib/mmapd"
# Of systemd-analyze, from 0 (locked up) to 10 (exposed), times ten.
EXPOSURE = 15
KUBERNETES = "1.31"


def fail(what):
    sys.exit(f"deploy: {what}")


def need(holds, what):
    if not holds:
        fail(what)


def run(*command):
    """Its output; ends everything when it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        print(done.stdout, end="")
    need(done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|min|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600}[unit]


DRAIN = seconds(DEFAULTS["http"]["drain_timeout"])


def settings(env):
    """What mmapd makes of an environment that it would start with."""
    for way in ("--check-config", "--print-config"):
        done = subprocess.run([BINARY, way], env={**os.environ, **env}, capture_output=True, text=True)
        need(done.returncode == 0, f"mmapd does not take {env}: {done.stderr}")
    return tomllib.loads(done.stdout)


def credentials():
    """A directory with what nodes that others reach need: deploy/tokens.toml and a secret."""
    folder = WORK / "credentials"
    if not folder.exists():
        folder.mkdir()
        token = run(BINARY, "token", "--name", "me", "--role", "admin")
        [table] = re.findall(r"(?ms)^\[\[tokens\]\].*", token)
        (folder / "tokens.toml").write_text((DEPLOY / "tokens.toml").read_text() + "\n" + table)
        (folder / "secret").write_text(run(BINARY, "token", "--peer"))
    return folder


# systemd

def unit_of(path):
    """Settings of [Service], each with all its values in order."""
    values = {}
    for line in path.read_text().split("[Service]")[1].split("[Install]")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            values.setdefault(name, []).append(value)
    return values


def systemd():
    folder = DEPLOY / "systemd"
    units = WORK / "units"
    (units / "mmapd.service.d").mkdir(parents=True)
    text = (folder / "mmapd.service").read_text()
    need("/usr/local/bin/mmapd" in text, "mmapd.service starts another program")
    (units / "mmapd.service").write_text(text.replace("/usr/local/bin/mmapd", BINARY))
    (units / "mmapd.service.d/cluster.conf").write_text((folder / "cluster.conf").read_text())
    # What it does not know it tells, and ends well.
    told = run("systemd-analyze", "verify", "--man=no", units / "mmapd.service")
    need(not told, f"systemd-analyze verify: {told}")
    score = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager",
                units / "mmapd.service")
    print(score.strip().splitlines()[-1])
    run("systemd-sysusers", "--dry-run", folder / "mmapd.sysusers")

    unit = unit_of(folder / "mmapd.service")
    last = {name: values[-1] for name, values in unit.items()}
    need({"65", "77", "78"} <= set(last["RestartPreventExitStatus"].split()), "a restart does not cure 65, 77, 78")
    need(seconds(last["TimeoutStopSec"]) >= 2 * DRAIN, "TimeoutStopSec leaves no time after http.drain_timeout")
    need(int(last["LimitNOFILE"]) > DEFAULTS["limits"]["connections"], "LimitNOFILE is below limits.connections")
    need(last["StateDirectory"] == "mmapd" and last["StateDirectoryMode"] == "0700", "StateDirectory is not closed")

    # As it is, and with the lines that make it one of three.
    alone = (folder / "mmapd.toml").read_text()
    three = re.sub(r"(?m)^listen = .*$", "", alone)
    three = re.sub(r"(?m)^# ?(\[\[|listen = |name = |id = |url = |tokens = |peer_secret = )", r"\1", three)
    three = three.replace("/etc/mmapd/", f"{credentials()}/")
    for name, text, members in (("alone", alone, 0), ("three", three, 3)):
        path = WORK / f"{name}.toml"
        path.write_text(text)
        run(BINARY, "--config", path, "--check-config")
        config = tomllib.loads(text)
        need(len(config["cluster"].get("peers", [])) == members, f"mmapd.toml: {name} has not {members} members")
        for key in ("db", "log"):
            need(config["storage"][key].startswith(DATA + "/"), f"mmapd.toml: {key} is outside of StateDirectory")


# Containers

def image():
    run(TOOLS / "hadolint", DEPLOY / "Dockerfile")
    text = (DEPLOY / "Dockerfile").read_text()
    seen = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", text):
        for source in line.split()[:-1]:
            need((ROOT / source).exists() and source in seen, f"Dockerfile: {source} is not in the context")
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    need(f"FROM rust:{cargo['package']['rust-version']}-" in text, "Dockerfile: not the Rust of Cargo.toml")
    need("dist" in cargo["profile"], "Dockerfile: there is no profile dist")
    for crate in [*cargo.get("bench", []), *cargo["bin"]]:
        path = crate.get("path", f"benches/{crate['name']}")
        need(any(path.startswith(source) for source in seen), f"Dockerfile: cargo would miss {path}")
    env = dict(re.findall(r"(?m)^[^#\n]*\b(MMAPD_\w+__\w+)=(\S+)", text))
    user = re.search(r"(?m)^USER (\S+)", text).group(1)
    need(user == "65532:65532" and f"--chown={user} /out/data {DATA}" in text,
         "Dockerfile: the data is not the user's")
    return env


def compose(env):
    path = DEPLOY / "compose.yaml"
    # Not bin/docker-compose, which ends well whatever this one says.
    [program] = TOOLS.parent.glob("lib/python3*/site-packages/compose/docker-compose")
    config = json.loads(run(program, "-f", path, "config", "--format", "json"))
    nodes = config["services"]
    need(len(nodes) == 3, "compose.yaml: not three nodes")
    ids, lists = set(), []
    for name, node in nodes.items():
        got = settings({**env, **node["environment"]})
        ids.add(got["node"]["id"])
        lists.append(got["cluster"])
        need(got["node"]["advertise"] == f"http://{name}:3001", f"compose.yaml: {name} is not reached by its name")
        need(seconds(node["stop_grace_period"]) >= 2 * DRAIN, f"compose.yaml: {name} has no time to stop")
        need(all(port.get("host_ip") == "127.0.0.1" for port in node["ports"]), f"compose.yaml: {name} is open to all")
        need([volume["target"] for volume in node["volumes"]] == [DATA], f"compose.yaml: {name} keeps no data")
    need(ids == {1, 2, 3} and lists.count(lists[0]) == 3, "compose.yaml: the nodes do not form one cluster")
    need(len({node["volumes"][0]["source"] for node in nodes.values()}) == 3, "compose.yaml: a volume is shared")


def pod_environment(variables, index, mounted):
    """As Kubernetes fills it in for the pod of this index: references are to what stands before."""
    env = {}
    for variable in variables:
        value = variable.get("value")
        if value is None:
            field = variable["valueFrom"]["fieldRef"]["fieldPath"]
            need(field == "metadata.labels['apps.kubernetes.io/pod-index']", f"mmapd.yaml: {field}")
            value = str(index)
        value = re.sub(r"\$\((\w+)\)", lambda name: env.get(name[1], name[0]), value)
        env[variable["name"]] = value.replace(mounted, str(credentials()))
    return env


def kubernetes():
    path = DEPLOY / "kubernetes/mmapd.yaml"
    for version in (KUBERNETES, "1.37"):
        run(TOOLS / "kubernetes-validate", "--strict", "--quiet", "-k", version, path)
    things = {(thing["kind"], thing["metadata"]["name"]): thing["spec"]
              for thing in yaml.safe_load_all(path.read_text())}
    nodes = things["StatefulSet", "mmapd"]
    pod = nodes["template"]["spec"]
    labels = nodes["template"]["metadata"]["labels"]
    selectors = {"StatefulSet": "selector", "PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}
    for kind, selector in selectors.items():
        need(things[kind, "mmapd"][selector]["matchLabels"] == labels, f"mmapd.yaml: {kind} selects others")
    for service in ("mmapd", "mmapd-client"):
        need(things["Service", service]["selector"] == labels, f"mmapd.yaml: Service {service} selects others")
    headless = things["Service", nodes["serviceName"]]
    early = headless.get("clusterIP") == "None" and headless.get("publishNotReadyAddresses")
    need(early, "mmapd.yaml: pods that are not ready have no names")
    need(things["PodDisruptionBudget", "mmapd"]["maxUnavailable"] == 1, "mmapd.yaml: more than one may go")
    [node] = pod["containers"]
    pause = node["lifecycle"]["preStop"]["sleep"]["seconds"]
    need(pause > 0 and pod["terminationGracePeriodSeconds"] >= pause + 2 * DRAIN,
         "mmapd.yaml: a node has no time to stop")
    need(things["Service", "mmapd-client"]["sessionAffinity"] == "ClientIP", "mmapd.yaml: a dashboard of many nodes")
    probes = {name: node[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    need(probes == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}, f"mmapd.yaml: probes {probes}")
    mount, access = node["volumeMounts"]
    [secret] = pod["volumes"]
    need(access["name"] == secret["name"] and access["mountPath"] == "/etc/mmapd", "mmapd.yaml: no secret is mounted")
    need([mount["name"]] == [claim["metadata"]["name"] for claim in nodes["volumeClaimTemplates"]]
         and mount["mountPath"] == DATA, "mmapd.yaml: the data is in no volume")

    # What the pods are told, as it is and as its comment says for later: to found a cluster, and to
    # join it, one more pod than before.
    def pods(several, variables):
        for index in range(nodes["ordinals"]["start"], nodes["ordinals"]["start"] + several):
            got = settings(pod_environment(variables, index, access["mountPath"]))
            need(got["node"]["id"] == index, f"mmapd.yaml: pod {index} is node {got['node']['id']}")
            name = f"http://mmapd-{index}.{nodes['serviceName']}:3001"
            need(got["node"]["advertise"] == name, f"mmapd.yaml: pod {index} is not reached at {name}")
            yield got["cluster"]

    founded = list(pods(nodes["replicas"], node["env"]))
    need(founded.count(founded[0]) == nodes["replicas"] == 3 and not founded[0]["join"],
         "mmapd.yaml: the nodes do not form one cluster")
    [join] = [yaml.safe_load(line) for line in re.findall(r"(?m)^ *# +- (\{name: MMAPD_CLUSTER__JOIN,.*\})$",
                                                          path.read_text())]
    later = [join if variable["name"] == "MMAPD_PEERS" else variable for variable in node["env"]]
    for cluster in pods(nodes["replicas"] + 1, later):
        need(not cluster["peers"] and cluster["join"], "mmapd.yaml: a new pod would not join")
        need(("Service", cluster["join"].split("/")[2].split(":")[0]) in things, "mmapd.yaml: joins what is not there")


def style():
    rules = ("{extends: default, rules: {line-length: disable, document-start: disable, comments: disable, "
             "braces: {max-spaces-inside: 0}}}")
    run(TOOLS / "yamllint", "--strict", "-d", rules, DEPLOY)


# Metrics

SUFFIXES = ("_bucket", "_sum", "_count")


def declared():
    source = (ROOT / "src/metrics/mod.rs").read_text()
    return set(re.findall(r'"(mmapd_\w+)"', source))


def metrics_in(text):
    """Names of metrics that queries use, without what histograms add to them."""
    for name in re.findall(r"\bmmapd_\w+", text):
        known = [name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)]
        yield known[0] if known else name


def only_declared(where, names):
    for name in names:
        need(name in METRICS, f"{where}: src/metrics/mod.rs declares no {name}")


METRICS = declared()


def prometheus():
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "config", folder / "prometheus.yml")
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", folder / "alerts.yml")
    rules = [rule for group in yaml.safe_load((folder / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    tests = yaml.safe_load((folder / "alerts_test.yml").read_text())["tests"]
    for rule in rules:
        name = rule["alert"]
        only_declared(f"alert {name}", metrics_in(rule["expr"]))
        need(rule["labels"]["severity"] in ("page", "ticket"), f"alert {name}: what severity?")
        need({"summary", "description"} <= set(rule["annotations"]), f"alert {name} does not say what to do")
        # Its own test: fires at one time, and at another nothing does.
        mine = [test for test in tests if test["name"] == name]
        need(len(mine) == 1, f"alerts_test.yml: {len(mine)} tests of {name}")
        only_declared(f"test of {name}", metrics_in("".join(one["series"] for one in mine[0]["input_series"])))
        told = [json.dumps(step.get("exp_samples", [])) for step in mine[0]["promql_expr_test"]]
        need(any(f'alertname=\\"{name}\\"' in text for text in told), f"alerts_test.yml: {name} never fires")
        need("[]" in told, f"alerts_test.yml: {name} is never silent")
    need(len({rule["alert"] for rule in rules}) == len(rules), "alerts.yml: two alerts have one name")
    run("promtool", "test", "rules", folder / "alerts_test.yml")
    numbers = {
        "MmapdQuotaNear": ("2GiB" == DEFAULTS["storage"]["quota"], "2 * 1024 * 1024 * 1024"),
        "MmapdWatchesNear": (True, str(DEFAULTS["limits"]["watches"])),
        "MmapdNotScrubbed": (DEFAULTS["storage"]["scrub_interval"] == "24h", "[3d]"),
    }
    for rule in rules:
        holds, number = numbers.get(rule["alert"], (True, ""))
        need(holds and number in rule["expr"], f"alert {rule['alert']} repeats another number than config.toml")
    print(f"{len(rules)} alerts, all tested")


def grafana():
    path = DEPLOY / "grafana/mmapd.json"
    need(run(sys.executable, DEPLOY / "grafana/mmapd.py") == path.read_text(),
         "grafana/mmapd.json is not what grafana/mmapd.py prints")
    board = json.loads(path.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in board["panels"]]
    need(len(ids) == len(set(ids)), "grafana: two panels have one id")
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        need(not cells & taken and at["x"] + at["w"] <= 24, f"grafana: {panel['title']} lies on another panel")
        taken |= cells
    rules = []
    for panel in panels:
        title = panel["title"]
        need(panel["fieldConfig"]["defaults"].get("unit"), f"grafana: {title} has no unit")
        need(panel["description"] and panel["targets"], f"grafana: {title} says or asks nothing")
        for target in panel["targets"]:
            only_declared(f"grafana: {title}", metrics_in(target["expr"]))
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$cluster", "c").replace("$instance", ".*")
            need("$" not in expr, f"grafana: {title} uses an unknown variable: {expr}")
            rules.append({"record": "query", "expr": expr, "labels": {"number": str(len(rules))}})
    shown = set(metrics_in(" ".join(target["expr"] for panel in panels for target in panel["targets"])))
    need(shown == METRICS, f"grafana: no panel shows {', '.join(METRICS - shown)}")
    queries = WORK / "queries.yml"
    queries.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    run("promtool", "check", "rules", queries)
    print(f"{len(panels)} panels with {len(rules)} queries show all {len(METRICS)} metrics")


def haproxy():
    path = DEPLOY / "haproxy/haproxy.cfg"
    run("haproxy", "-c", "-f", path)
    text = path.read_text()
    # Whoever waits as long as the settings allow must not be cut off on the way.
    longest = max(seconds(DEFAULTS["limits"]["max_timeout"]), 2 * seconds(DEFAULTS["watch"]["progress"]))
    for side in ("client", "server"):
        held = seconds(re.search(rf"timeout {side} +(\S+)", text).group(1))
        need(held > longest, f"haproxy.cfg: timeout {side} is not above limits.max_timeout")
    size, spare = (int(re.search(rf"tune.{name} (\d+)", text).group(1)) for name in ("bufsize", "maxrewrite"))
    headers = 1024 * int(DEFAULTS["limits"]["header_bytes"].removesuffix("KiB"))
    need(size - spare > headers, "haproxy.cfg: tune.bufsize is below limits.header_bytes")
    backends = dict(re.findall(r"(?ms)^backend (\w+)$(.*?)(?=^\S|\Z)", text))
    need(set(backends) == {"ready", "leader", "dashboard"}, f"haproxy.cfg: backends {', '.join(backends)}")
    most = 0
    for name, lines in backends.items():
        servers = re.findall(r"(?m)^    server (\w+) 127\.0\.0\.1:300(\d)( cookie \1)?$", lines)
        need([number for _, number, _ in servers] == ["1", "2", "3"], f"haproxy.cfg: {name} has not all nodes")
        need(all(bool(cookie) == (name == "dashboard") for *_, cookie in servers), f"haproxy.cfg: cookies of {name}")
        most += int(re.search(r"(?m)^    default-server maxconn (\d+)$", lines).group(1))
    # All of them are one client to a node.
    allowed = DEFAULTS["limits"]["connections_per_address"]
    need(most < allowed, f"haproxy.cfg: {most} connections to a node, which takes {allowed} of an address")


def readme():
    text = (DEPLOY / "README.md").read_text()
    need(len(text.splitlines()) <= 100, "deploy/README.md is longer than 100 lines")
    for path in sorted(DEPLOY.rglob("*")):
        name = str(path.relative_to(DEPLOY))
        if path.is_file() and name != "README.md" and not name.startswith("node"):
            need(name in text, f"deploy/README.md does not name {name}")
    above = (ROOT / "README.md").read_text()
    unnamed = [name for name in METRICS if name not in above]
    need(not unnamed, f"README.md does not name {', '.join(unnamed)}")
    for name in re.findall(r"deploy/([\w./-]*\w)", text + above):
        need((DEPLOY / name).exists(), f"deploy/README.md names deploy/{name}, which is not there")


def main():
    stages = {"systemd": systemd, "image": lambda: compose(image()), "kubernetes": kubernetes, "yaml": style,
              "prometheus": prometheus, "grafana": grafana, "haproxy": haproxy, "readme": readme}
    for name, stage in stages.items():
        print(f"deploy: {name}", flush=True)
        try:
            stage()
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            fail(f"{name}: something is missing: {error!r} in {error.__traceback__.tb_next.tb_frame.f_code.co_name}")


main()
