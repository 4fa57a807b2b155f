"""One change, told to many: how many a second, how soon to the last, and at what cost."""

import itertools
import json
import resource
import subprocess
import sys
import urllib.parse

from figures import middle, quantile, three
from load import HERE, SIZE, Child, Paced
from systems import Etcd, Mmapd

PATHS = {Mmapd.name: ("/v1/watch?prefix=watched/", "event: progress"),
         Etcd.name: ("/v2/keys/watched?wait=true&recursive=true&stream=true", "\r\n\r\n")}
# Each measure writes keys that were not there: etcd tells of the old value as well, and its mark.
FRESH = itertools.count()


class Streams(Child):
    """A process that follows many watches and counts what they tell."""

    def __init__(self, service, streams, changes):
        url = urllib.parse.urlsplit(service.bases[1])
        path, opened = PATHS[service.name]
        order = {"host": url.hostname, "port": url.port, "path": path, "opened": opened, "streams": streams,
                 "changes": changes, "patience": 10}
        self.process = subprocess.Popen([sys.executable, HERE / "streams.py", json.dumps(order)],
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{service.name} does not serve {streams} watches")

    def end(self):
        return json.loads(self.output("the watches"))


class Burst:
    """As many changes as 16 connections make: what is delivered a second."""

    def __init__(self, service, streams, changes):
        cpu = service.processor_seconds()
        with Streams(service, streams, changes) as watches, Paced(
                service, 0, keys=0, count=changes, below=f"watched/{next(FRESH)}") as writer:
            answers, told = writer.end(), watches.end()
        need_all(service, answers, changes)
        start = min(due for due, _ in answers.times)
        seconds = told["latest"] - start
        self.rate = told["delivered"] / seconds
        self.writes = changes / (max(end for _, end in answers.times) - start)
        self.cpu = (service.processor_seconds() - cpu) * 1e6 / max(1, told["delivered"])
        self.client = 100 * told["processor"] / seconds
        self.ended, self.behind = told["ended"], told["behind"]


class Steady:
    """Single changes at a steady rate: how long after its acknowledgement the last stream has one."""

    def __init__(self, service, streams, changes, rate):
        with Streams(service, streams, changes) as watches, Paced(
                service, rate, connections=1, keys=0, count=changes, below=f"watched/{next(FRESH)}") as writer:
            answers, told = writer.end(), watches.end()
        need_all(service, answers, changes)
        # One connection: they were told in the order in which they were written.
        self.delays = [1000 * (last - end) for last, (_, end) in zip(told["last"], answers.times) if last is not None]
        self.ended, self.behind = told["ended"], told["behind"]


def need_all(service, answers, changes):
    if answers.errors or len(answers) != changes:
        raise SystemExit(f"{service.name}: {answers.errors} errors, {len(answers)} of {changes} changes")


def watch(setup):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    services = [setup.start(Mmapd, 1, MMAPD_LIMITS__CONNECTIONS_PER_ADDRESS="0"), setup.start(Etcd, 1)]
    found = {}
    for _ in range(setup.repetitions):
        for streams in setup.streams:
            for service in services:
                burst = Burst(service, streams, max(200, min(setup.deliveries // streams, setup.changes)))
                # So that what is delivered is far below what can be.
                rate = min(100, 20_000 // streams)
                steady = Steady(service, streams, rate * setup.seconds, rate)
                found.setdefault((streams, service.name), []).append((burst, steady))
                setup.say(f"{streams} {service.name}: {burst.rate:.0f}/s, last after "
                          f"{middle(steady.delays, 2)} ms, ended {burst.ended + steady.ended}")
    for service in services:
        service.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lines = ["", f"### Watches, 1 node, values of {SIZE} bytes", "",
             "Delivered while 16 connections write as fast as they can; the writes are in the CPU. The delay is from the "
             "acknowledgement of a write to the last stream that has it, below 0 when all had it before; there single "
             "changes come at a steady rate. A stream is cut off when the service ended it before it told all, behind when "
             "nothing came for 10 s although not all was told.", "",
             "| streams | service | delivered a second: min / median / max | writes a second | CPU us a delivery "
             "| reader's own CPU % of a core | last stream after ms: p50 / p99 | cut off | behind |",
             "|---|---|---|---|---|---|---|---|---|"]
    for (streams, name), pairs in found.items():
        bursts, steadies = zip(*pairs)
        delays = [quantiles(steady.delays) for steady in steadies if steady.delays]
        told = " / ".join(middle(values, 2) for values in zip(*delays)) if delays else "-"
        both = [*bursts, *steadies]
        lines.append(f"| {streams} | {name} | {three([one.rate for one in bursts])} | "
                     f"{middle([one.writes for one in bursts], 0)} | {middle([one.cpu for one in bursts], 1)} | "
                     f"{middle([one.client for one in bursts], 0)} | {told} | "
                     f"{sum(one.ended for one in both)} | {sum(one.behind for one in both)} |")
    return lines


def quantiles(delays):
    return quantile(delays, 0.5), quantile(delays, 0.99)
