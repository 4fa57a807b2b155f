#!/usr/bin/env python3
"""mmapd beside etcd and Redis: one command, all in one run.

    cargo build --release
    python3 benches/end_to_end/run.py target/release/mmapd              all parts, about an hour
    python3 benches/end_to_end/run.py target/release/mmapd --quick      all parts, shortened
    python3 benches/end_to_end/run.py target/release/mmapd --parts throughput,failover

Needs Debian's etcd-server, redis-server, redis-tools and wrk. Services take turns within each
repetition, so what else the machine does hits all of them: read the ratios. Prints Markdown, and
puts it into the section of its part in --out/end_to_end.md (benches/results), with a plot of
`throughput` beside it. Parts can be run at different times; each section says how it was made.
"""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import results
from failover import failover
from figures import device_of, machine
from idle import idle
from load import KEYS, SIZE
from stalls import stalls
from stores import restart, sizes, values
from systems import Bare, Mmapd
from throughput import throughput
from watch import watch

HERE = pathlib.Path(__file__).resolve().parent
PARTS = {"throughput": throughput, "failover": failover, "stalls": stalls, "idle": idle, "watch": watch, "restart": restart,
         "values": values, "sizes": sizes}
# In programs with the bugs of src/raft/planted.rs, which cost a little time as well.
PLANTED = b"CommitOldTermByCounting"


class Setup:
    """What was asked for, and where things are."""

    def __init__(self, arguments, folder):
        self.folder, self.out, self.device, self.running, self.complaints = folder, arguments.out, device_of(folder), [], []
        quick = arguments.quick
        self.connections = [int(number) for number in arguments.connections.split(",")]
        self.repetitions, self.seconds = (2, 2) if quick else (3, 5)
        self.kills = 3 if quick else 10
        self.many = 50_000 if quick else 1_000_000
        self.sizes = [10_000, 100_000] if quick else [100_000, 1_000_000, 10_000_000]
        # stalls: requests a second, seconds of each measure, keys, and checkpoints that each node has to make.
        self.pace, self.calm, self.stored, self.checkpoints = (1000, 4, 100_000, 2) if quick else (1000, 10, 1_000_000, 4)
        self.idle = 10 if quick else 60
        # watch: at most so many deliveries and changes in one measure.
        self.streams, self.deliveries, self.changes = [1, 100, 1000], *((100_000, 2000) if quick else (1_000_000, 20_000))

    def start(self, kind, nodes, **settings):
        """A service of its own folder; `settings` are variables of its environment."""
        self.folder.mkdir(exist_ok=True)
        service = kind(nodes, tempfile.mkdtemp(dir=self.folder), settings)
        self.running.append(service)
        service.start()
        return service

    def stop_all(self):
        """What a part that failed left running."""
        for service in self.running:
            service.stop()
        self.running.clear()

    def say(self, text):
        print(f"  {text}", file=sys.stderr)

    def complain(self, text):
        """Something was not measured: the others are, and the end is not success."""
        self.complaints.append(text)
        self.say(f"ERROR: {text}")


def bare(path):
    """The program of benches/bare.rs: what was given, or what cargo builds."""
    if path:
        return path.resolve()
    # Apart from the other builds: this one has the planted bugs, in a program that is called mmapd as well.
    command = ["cargo", "bench", "--no-run", "--bench", "bare", "--message-format=json", "--target-dir", "target/bare"]
    print(" ".join(command), "...", file=sys.stderr)
    out = subprocess.run(command, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True)
    for line in out.stdout.splitlines():
        said = json.loads(line)
        if said.get("executable") and said["target"]["name"] == "bare":
            return pathlib.Path(said["executable"])
    sys.exit("cargo did not build benches/bare.rs; name it with --bare, or leave it out with --no-bare")


def command(part):
    """How to make one section again, without what is of this machine."""
    names, others, takes = ("--out", "--dir", "--bare", "--parts"), [], False
    for one in sys.argv[2:] if not sys.argv[1].startswith("-") else sys.argv[1:]:
        name, given, _ = one.partition("=")
        if not takes and name not in names:
            others.append(one)
        takes = name in names and not given and not takes
    return " ".join(["python3 benches/end_to_end/run.py target/release/mmapd", *others, f"--parts {part}"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--connections", default="1,16,64,256")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "results")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("target/end_to_end"),
                        help="where the data goes: on a real disk")
    parser.add_argument("--bare", type=pathlib.Path, help="benches/bare.rs, built; otherwise cargo builds it")
    parser.add_argument("--no-bare", action="store_true", help="throughput without it")
    arguments = parser.parse_args()
    for program in ("etcd", "redis-server", "redis-benchmark", "wrk"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install etcd-server redis-server redis-tools wrk")
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    Mmapd.binary = arguments.binary.resolve()
    if PLANTED in Mmapd.binary.read_bytes():
        sys.exit(f"{arguments.binary} is what tests and benchmarks leave, with planted bugs: cargo build --release")
    if "throughput" in parts and not arguments.no_bare:
        Bare.binary = bare(arguments.bare)
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    setup = Setup(arguments, folder)
    # Also then nothing is left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        for part in parts:
            print(f"{part} ...", file=sys.stderr)
            lines = [f"* `{command(part)}`", *machine(Mmapd.binary),
                     f"* Values of {SIZE} bytes, {KEYS} keys where not said otherwise, all nodes on one disk.",
                     *PARTS[part](setup)]
            # What was measured is kept whatever becomes of the next part.
            results.replace(arguments.out / "end_to_end.md", part, lines, list(PARTS))
            print("\n".join(["", f"## {part}", "", *lines]), flush=True)
    finally:
        setup.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
    if setup.complaints:
        sys.exit("\n".join(["not measured:", *setup.complaints]))


if __name__ == "__main__":
    main()
