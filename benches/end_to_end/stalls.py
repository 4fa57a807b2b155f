"""Whether writes stall while something else goes on: a steady load before it and during it.

Each case has a quiet measure of its own, just before it and with the same load, so the ratio is of
one minute of one machine. Quiet is what no checkpoint, by no node, overlapped. A case that did not
happen is an error and no number.
"""

import contextlib
import json
import signal
import statistics
import threading
import time

from figures import three, verdict
from load import SIZE, Paced, put_many
from systems import DEADLINE, Etcd, Mmapd, ask, await_that, settled

# p99 may be so many times the quiet one.
WITHIN = 3
# Of the log that a follower may be behind before it needs a snapshot; small, so that one is soon due.
RETAIN = 16 << 20
# How long a slow follower stands still, and then goes on. Below raft.election_timeout: it is slow, not lost.
PAUSE = 0.2
CHECKPOINTS = "mmapd_db_checkpoint_duration_seconds"
DONE = 'mmapd_db_compactions_total{outcome="done"}'
SENT = "mmapd_raft_snapshots_sent_total"


class DidNotHappen(Exception):
    """What should have been measured was not there."""


class Checkpoints(threading.Thread):
    """Looks at every node's metrics, so as to know when checkpoints ran: from, to. A little wide: by a look."""

    LOOK = 0.2

    def __init__(self, service):
        super().__init__()
        self.service, self.windows, self.known, self.over = service, [], {}, threading.Event()
        self.failed = None

    def run(self):
        before = time.monotonic()
        try:
            while not self.over.wait(self.LOOK):
                before = self.look(before)
        except Exception as failed:  # Told where it is waited for.
            self.failed = failed

    def look(self, before):
        start = time.monotonic()
        for node in list(self.service.processes):
            found = self.service.metrics(node)
            if not found:
                # It ended; when it comes back it counts from 0.
                self.known.pop(node, None)
                continue
            count, seconds = (found.get(f"{CHECKPOINTS}_{what}", 0) for what in ("count", "sum"))
            had, took = self.known.get(node, (count, seconds))
            self.known[node] = (count, seconds)
            if count > had:
                self.windows.append((before - (seconds - took), time.monotonic()))
        return start

    def __enter__(self):
        # Known before the load begins.
        self.look(time.monotonic())
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        if self.failed:
            raise self.failed


class Pair:
    """One repetition of one case."""

    def __init__(self, quiet, during, errors, evidence):
        if len(quiet) < 100 or len(during) < 100:
            raise DidNotHappen(f"only {len(quiet)} quiet requests, {len(during)} during it")
        self.quiet = [quiet.milliseconds(part) for part in (0.5, 0.99, 1)]
        self.during = [during.milliseconds(part) for part in (0.5, 0.99, 1)]
        self.requests, self.errors, self.evidence = len(during), errors, evidence
        self.ratio = self.during[1] / self.quiet[1]


def steady(setup, service, during):
    """A load while something happens: the answers, and what that returned."""
    with Paced(service, setup.pace) as load:
        # The first requests pay for what is not in the caches yet.
        time.sleep(1)
        happened = during()
        return load.end(), happened


def quiet_then(setup, service, case, between=lambda: None):
    """The load alone, then the load and the case: something that returns its windows and what shows that it was."""
    def calm():
        start = time.monotonic()
        time.sleep(setup.calm)
        return start, time.monotonic()

    settled(service)
    with Checkpoints(service) if isinstance(service, Mmapd) else contextlib.nullcontext() as seen:
        alone, window = steady(setup, service, calm)
        between()
        leader = service.leader()
        beside, (windows, evidence) = steady(setup, service, case)
    if service.leader() != leader:
        evidence += f", the leader went from {leader} to {service.leader()}"
    quiet = alone.within([window]).beyond(seen.windows if seen else [])
    return Pair(quiet, beside.within(windows), alone.errors + beside.errors, evidence)


def checkpoints(setup, service):
    """Keys all over the store are written, so that pages enough are changed; quiet is what is between checkpoints."""
    settled(service)
    with Checkpoints(service) as seen, Paced(service, setup.pace, keys=setup.stored, below="many") as load:
        end = time.monotonic() + DEADLINE
        while len(seen.windows) < setup.checkpoints * len(service.processes):
            if time.monotonic() > end:
                raise DidNotHappen(f"{len(seen.windows)} checkpoints in {DEADLINE} s")
            time.sleep(0.2)
        answers = load.end()
    # What is after the last look may belong to a checkpoint that no look found ended.
    known = answers.within([(0, max(end for _, end in seen.windows))])
    return Pair(known.beyond(seen.windows), known.within(seen.windows), answers.errors,
                f"{len(seen.windows)} checkpoints of {sum(end - start for start, end in seen.windows):.1f} s")


def compactions(setup, service):
    def case():
        leader, windows, begin = service.leader(), [], time.monotonic()
        before = service.metrics(leader).get(DONE, 0)
        while time.monotonic() < begin + setup.calm or not windows:
            start = time.monotonic()
            status, body = ask(f"{service.bases[leader]}/v1/admin/compact", "POST", timeout=DEADLINE)
            if status != 200:
                raise DidNotHappen(f"a compaction was answered {status}: {body[:200]}")
            windows.append((start, time.monotonic()))
        done = service.metrics(leader).get(DONE, 0) - before
        if done < len(windows):
            raise DidNotHappen(f"{done:.0f} of {len(windows)} compactions, say the metrics")
        seconds = sum(end - start for start, end in windows)
        return windows, f"{done:.0f} compactions of {seconds:.1f} s to {json.loads(body)['after_bytes'] / 1e6:.0f} MB"

    return quiet_then(setup, service, case)


def snapshot(setup, service):
    """A follower that was away for longer than the log is kept comes back, under the load."""
    leader, follower = service.leader(), service.follower()
    before = service.metrics(leader).get(SENT, 0)

    def leave():
        last = service.status(follower)["last_log_index"]
        service.kill(follower)
        while service.status(leader)["first_log_index"] <= last + 1:
            put_many(service, 20_000, leader)
        # The checkpoint of all that is another case.
        settled(service)

    def case():
        start = time.monotonic()
        service.launch(follower)
        await_that("the follower is caught up", lambda: service.caught_up(follower))
        end = time.monotonic()
        sent = service.metrics(leader).get(SENT, 0) - before
        received = service.metrics(follower).get("mmapd_raft_snapshots_received_total", 0)
        if sent < 1 or received < 1:
            raise DidNotHappen(f"{sent:.0f} snapshots sent, {received:.0f} received")
        return [(start, end)], f"{received:.0f} snapshot, caught up in {end - start:.1f} s"

    return quiet_then(setup, service, case, between=leave)


def dead(setup, service):
    follower = service.follower()

    def case():
        start = time.monotonic()
        service.kill(follower)
        time.sleep(setup.calm)
        return [(start, time.monotonic())], "killed"

    pair = quiet_then(setup, service, case)
    service.launch(follower)
    await_that("the follower is caught up", lambda: service.caught_up(follower))
    return pair


def slow(setup, service):
    follower = service.follower()

    def case():
        start, stops = time.monotonic(), 0
        while time.monotonic() < start + setup.calm:
            service.signal(follower, signal.SIGSTOP)
            time.sleep(PAUSE)
            service.signal(follower, signal.SIGCONT)
            time.sleep(PAUSE)
            stops += 1
        return [(start, time.monotonic())], f"{stops} pauses of {PAUSE * 1000:.0f} ms"

    pair = quiet_then(setup, service, case)
    await_that("the follower is caught up", lambda: service.caught_up(follower))
    return pair


CASES = {"checkpoints": checkpoints, "compaction of the leader": compactions, "a snapshot to a follower": snapshot,
         "a dead follower": dead, "a slow follower": slow}


def stalls(setup):
    """PUTs at a steady rate on three nodes, while each of the cases goes on."""
    ours = setup.start(Mmapd, 3, MMAPD_STORAGE__LOG_RETAIN=f"{RETAIN}B")
    theirs = setup.start(Etcd, 3)
    put_many(ours, setup.stored, ours.leader())
    pairs, failed = {}, {}
    for _ in range(setup.repetitions):
        for name, case in CASES.items():
            for service in (ours, theirs) if case in (dead, slow) else (ours,):
                try:
                    pair = case(setup, service)
                except DidNotHappen as why:
                    failed[name, service.name] = why
                    setup.complain(f"stalls, {name}, {service.name}: {why}")
                    continue
                pairs.setdefault((name, service.name), []).append(pair)
                setup.say(f"{name}, {service.name}: {pair.ratio:.2f} ({pair.quiet[1]:.2f} to {pair.during[1]:.2f} ms), "
                          f"{pair.evidence}")
    ours.stop()
    theirs.stop()
    lines = ["", f"### Latency of PUT beside other work, 3 nodes, {setup.pace} a second", "",
             f"{setup.stored} keys of {SIZE} bytes, 16 connections; a latency counts from when a request was due. Medians "
             f"of {setup.repetitions} repetitions; a ratio is of one. Quiet is just before, in the first row between.", "",
             "| during | service | quiet p50 / p99 / max ms | p50 / p99 / max ms | p99 to quiet: min / median / max "
             f"| within {WITHIN} | requests | errors | what happened |", "|---|---|---|---|---|---|---|---|---|"]
    for name, service in sorted({*pairs, *failed}, key=lambda one: (list(CASES).index(one[0]), one[1] != ours.name)):
        if (name, service) in failed:
            lines.append(f"| {name} | {service} | | | ERROR | | | | {failed[name, service]} |")
            continue
        found = pairs[name, service]
        ratios = [pair.ratio for pair in found]
        lines.append(f"| {name} | {service} | {medians([pair.quiet for pair in found])} | "
                     f"{medians([pair.during for pair in found])} | {three(ratios, 2)} | "
                     f"{verdict(statistics.median(ratios) <= WITHIN)} | {sum(pair.requests for pair in found)} | "
                     f"{sum(pair.errors for pair in found)} | {'; '.join(pair.evidence for pair in found)} |")
    return lines


def medians(rows):
    return " / ".join(f"{statistics.median(values):.2f}" for values in zip(*rows))
