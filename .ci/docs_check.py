#!/usr/bin/env python3
"""Are the documents true?  python3 .ci/docs_check.py [--write] PATH_TO_MMAPD

1. Every relative link and #anchor in the Markdown files resolves, and every alert has its chapter
   in docs/operations.md.
2. The examples are run, in their order, and print what the documents say they print.

Examples are ```console blocks: `$ ` begins a command of bash, `> ` continues it, everything else up
to the next command or the end of the block is what it prints, on standard output and standard
error. Empty lines before a command do not count. What varies is written as

    ...     in a line: anything, within that line
    ...     alone in a line: any number of lines

docs/api.md runs whole. Every chapter (##) begins with a fresh node, in an empty directory, which
the document knows as localhost:3001; a chapter marked `<!-- docs_check: cluster -->` with three,
localhost:3001 to 3003, whose settings are node1.toml to node3.toml in the current directory.
In docs/operations.md only blocks below `<!-- docs_check: run -->` run, and there these marks do
something first, several words for several nodes:

    <!-- docs_check: node -->       ends what runs and starts a fresh node
    <!-- docs_check: cluster -->    ends what runs and starts three fresh nodes
    <!-- docs_check: stop 1 2 -->   kill -9
    <!-- docs_check: start 1 -->    starts them again, and waits until they serve

The ports are free ones, which are put in the place of 3001 to 3003 in commands, and back in
what they print. --write puts what was printed into the documents where it is something else;
look at the difference before you believe it, and write `...` again where it was.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["", "docs", "deploy", "benches", "fuzz"]
ALERTS = "deploy/prometheus/alerts.yml"
RUNBOOK = "docs/operations.md"
MARK = re.compile(r"<!-- docs_check: ([a-z]+)((?: \d+)*) -->$")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)")
PATIENCE = 15.0
PORTS = [3001, 3002, 3003]


# --- links


def prose(text):
    """The lines outside of code, each with its number; code spans are blanked."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
        else:
            yield number, re.sub(r"`+[^`]*`+", lambda span: "x" * len(span[0]), line), line


def slug(heading):
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    text = re.sub(r"[^\w\- ]", "", text.strip().lower())
    return text.replace(" ", "-")


def anchors(text):
    found = {}
    for _, _, line in prose(text):
        heading = re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            name = slug(heading[1])
            found[name] = found.get(name, -1) + 1
            if found[name]:
                found[f"{name}-{found[name]}"] = 0
        for explicit in re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line):
            found.setdefault(explicit, 0)
    return set(found)


def links(complain):
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
    known = {}

    def resolves(target, place):
        path, _, anchor = target.partition("#")
        to = place.parent / path if path else place
        if not to.exists():
            return f"there is no {path}"
        if anchor and to.suffix == ".md":
            to = to.resolve()
            if to not in known:
                known[to] = anchors(to.read_text(encoding="utf-8"))
            if anchor not in known[to]:
                return f"{path or 'this file'} has no heading #{anchor}"
        return None

    count = 0
    for file in files:
        for number, line, _ in prose(file.read_text(encoding="utf-8")):
            targets = LINK.findall(line) + DEFINITION.findall(line)
            for target in targets:
                if re.match(r"[a-z][a-z0-9+.-]*:", target):
                    continue
                count += 1
                why = resolves(target, file)
                if why:
                    complain(f"{file.relative_to(ROOT)}:{number}: {target}: {why}")
    alerts(complain)
    return len(files), count


def alerts(complain):
    """Each alert has a chapter that says what to do about it, and each such chapter an alert."""
    named = set(re.findall(r"- alert: (\w+)", (ROOT / ALERTS).read_text(encoding="utf-8")))
    runbook = (ROOT / RUNBOOK).read_text(encoding="utf-8")
    told = set(re.findall(r"^### (Mmapd\w+)$", runbook, re.MULTILINE))
    for name in sorted(named - told):
        complain(f"{RUNBOOK}: nothing about the alert {name}")
    for name in sorted(told - named):
        complain(f"{RUNBOOK}: there is no alert {name}")


# --- servers


class Nodes:
    """One node or three in a directory of their own. Ends only what it started."""

    def __init__(self, binary):
        self.binary = binary
        self.running = {}
        self.home = None

    def fresh(self, size):
        self.close()
        self.home = Path(tempfile.mkdtemp(prefix="mmapd-docs-"))
        (self.home / "bin").mkdir()
        for name in ("mmapd", "mmapctl"):
            (self.home / "bin" / name).symlink_to(Path(self.binary).with_name(name))
        (self.home / "work").mkdir()
        holds = [socket.socket() for _ in PORTS]
        for hold in holds:
            hold.bind(("127.0.0.1", 0))
        self.ports = [hold.getsockname()[1] for hold in holds]
        for hold in holds:
            hold.close()
        if size == 1:
            self.start([1], alone=True)
        else:
            for node in range(1, size + 1):
                (self.home / f"work/node{node}.toml").write_text(self.settings(node))
            self.start(range(1, size + 1))

    def settings(self, node):
        text = f'[node]\nid = {node}\nlisten = "127.0.0.1:{self.ports[node - 1]}"\n\n'
        text += f'[storage]\ndb = "node{node}/db.mmapd"\nlog = "node{node}/log"\n'
        for peer, port in enumerate(self.ports, 1):
            text += f'\n[[cluster.peers]]\nid = {peer}\nurl = "http://127.0.0.1:{port}"\n'
        return text

    def environment(self):
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith("MMAPD_") and name.lower() not in ("port", "http_proxy")}
        path = f"{self.home / 'bin'}:{clean.get('PATH', '/usr/bin:/bin')}"
        node = f"http://127.0.0.1:{self.ports[0]}"
        return {**clean, "PATH": path, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.home),
                "MMAPD_ENDPOINTS": node}

    def start(self, nodes, alone=False):
        for node in nodes:
            args = ["--port", str(self.ports[0])] if alone else ["--config", f"node{node}.toml"]
            log = open(self.home / f"node{node}.err", "ab")
            self.running[node] = subprocess.Popen(
                [self.binary, *args], cwd=self.home / "work", env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            log.close()
        for node in nodes:
            self.wait_ready(node)

    def wait_ready(self, node):
        end = time.monotonic() + PATIENCE
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                opener.open(f"http://127.0.0.1:{self.ports[node - 1]}/readyz", timeout=1).read()
                return
            except (urllib.error.URLError, OSError):
                if self.running[node].poll() is not None or time.monotonic() > end:
                    text = (self.home / f"node{node}.err").read_text(errors="replace")
                    sys.exit(f"docs_check: node {node} does not serve:\n{text[-3000:]}")
                time.sleep(0.01)

    def stop(self, nodes):
        for node in nodes:
            process = self.running.pop(node, None)
            if process and process.poll() is None:
                process.kill()
            if process:
                process.wait()

    def close(self):
        self.stop(list(self.running))
        if self.home:
            shutil.rmtree(self.home, ignore_errors=True)
        self.home = None

    def run(self, command):
        for port, real in zip(PORTS, self.ports):
            command = re.sub(rf"(localhost|127\.0\.0\.1):{port}\b", f"127.0.0.1:{real}", command)
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=self.home / "work", env=self.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            # It and what it started, which have a process group of their own.
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            out += b"\n(it did not end)"
        text = out.decode("utf-8", "backslashreplace").replace("\r", "")
        for port, real in zip(PORTS, self.ports):
            text = re.sub(rf"127\.0\.0\.1:{real}\b", f"127.0.0.1:{port}", text)
        return [line.rstrip() for line in text.rstrip("\n").split("\n")] if text.strip() else []


# --- examples


class Example:
    def __init__(self, number, command):
        self.number, self.command, self.output = number, command, []
        self.end = number


def blocks(lines):
    """What a document wants done, in its order: ("chapter", line), ("mark", line, word, nodes),
    ("block", line, examples)."""
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        mark = MARK.match(line.strip())
        if line.startswith("## "):
            yield ("chapter", at)
        elif mark:
            yield ("mark", at, mark[1], [int(node) for node in mark[2].split()])
        elif "docs_check:" in line and line.startswith("<!--"):
            yield ("mark", at, line.strip(), [])
        elif line.startswith("```"):
            begin, wanted = at, line.strip() == "```console"
            while at < len(lines) and not lines[at].startswith("```"):
                at += 1
            if wanted:
                yield ("block", begin, examples(lines, begin, at))
            at += 1


def examples(lines, begin, end):
    found = []
    for number in range(begin, end):
        line = lines[number]
        if line.startswith("$ "):
            found.append(Example(number + 1, line[2:]))
        elif not found:
            sys.exit(f"docs_check: line {number + 1}: a console block begins with a command")
        elif line.startswith("> ") and not found[-1].output:
            found[-1].command += "\n" + line[2:]
        else:
            found[-1].output.append(line.rstrip())
            continue
        found[-1].end = number + 1
    for example in found:
        while example.output and not example.output[-1]:
            example.output.pop()
    return found


def matches(wanted, got):
    pattern = ""
    for line in wanted:
        if line == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.split("...")) + r"\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in got)) is not None


def execute(document, whole, nodes, complain, write):
    path = ROOT / document
    lines = path.read_text(encoding="utf-8").splitlines()
    due, ran, replaced = whole, 0, []
    wants = list(blocks(lines))
    for position, want in enumerate(wants):
        kind, number = want[0], want[1]
        if kind == "chapter":
            if whole:
                # Its mark may say otherwise; a chapter without examples needs no node.
                rest = wants[position + 1:]
                of_chapter = rest[:next((n for n, w in enumerate(rest) if w[0] == "chapter"), len(rest))]
                if any(w[0] == "block" for w in of_chapter):
                    if not any(w[0] == "mark" for w in of_chapter):
                        nodes.fresh(1)
        elif kind == "mark":
            word, which = want[2], want[3]
            if word == "cluster":
                nodes.fresh(3)
            elif word == "node":
                nodes.fresh(1)
            elif word == "stop" and which:
                nodes.stop(which)
            elif word == "start" and which:
                nodes.start(which)
            elif word == "run":
                due = True
            else:
                complain(f"{document}:{number}: what is {word}?")
        elif due:
            for example in want[2]:
                got = nodes.run(example.command)
                ran += 1
                if not matches(example.output, got):
                    replaced.append((example, got))
                    text = "\n    ".join(["it says:", *example.output, "and there came:", *got])
                    complain(f"{document}:{example.number}: {example.command}\n    {text}")
            due = whole
    if write and replaced:
        for example, got in reversed(replaced):
            lines[example.end:example.end + len(example.output)] = got
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ran


def main():
    arguments = sys.argv[1:]
    write = "--write" in arguments
    arguments = [argument for argument in arguments if argument != "--write"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    binary = Path(arguments[0]).resolve()
    if not os.access(binary, os.X_OK):
        sys.exit(f"docs_check: {binary} cannot be run")
    complaints = []
    start = time.monotonic()
    files, count = links(complaints.append)
    print(f"{count} links in {files} files")
    nodes = Nodes(str(binary))
    try:
        for document, whole in [("docs/api.md", True), ("docs/operations.md", False)]:
            ran = execute(document, whole, nodes, complaints.append, write)
            print(f"{document}: ran {ran} examples")
            if ran == 0:
                complaints.append(f"{document}: no example was run")
    finally:
        nodes.close()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"{len(complaints)} complaints after {time.monotonic() - start:.1f} s")
    return 1 if complaints else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
