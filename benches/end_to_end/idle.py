"""What a cluster costs that nobody uses."""

import time

from figures import verdict
from systems import DEADLINE, Etcd, Mmapd, await_that

# Percent of a core, of all nodes together.
TARGET = 1
CHECKPOINTS = "mmapd_db_checkpoint_duration_seconds_count"


def idle(setup):
    """Three nodes with some keys and no requests: processor, bytes written and syncs, of each node."""
    rows, totals = [], []
    for kind in (Mmapd, Etcd):
        service = setup.start(kind, 3)
        before = checkpoints(service)
        for number in range(100):
            await_that("a write", lambda s=service, n=number: s.put(f"idle/{n}", b"v" * 256))
        # The last of it: what was written is in a checkpoint, and then nothing happens.
        await_that("a checkpoint of each node", lambda s=service, b=before: all(
            now > then for now, then in zip(checkpoints(s), b)) or s.name != Mmapd.name, pause=0.5)
        at_rest = settles(setup, service)
        first = look(service)
        time.sleep(setup.idle)
        last = look(service)
        for node in service.processes:
            cpu, written, syncs = (after - before for before, after in zip(first[node], last[node]))
            rows.append((service.name, node, 100 * cpu / setup.idle, written, syncs))
        mine = [row for row in rows if row[0] == service.name]
        cpu, written, syncs = (sum(row[at] for row in mine) for at in (2, 3, 4))
        if service.name == Mmapd.name:
            verdicts = [verdict(cpu < TARGET), verdict(written == 0), verdict(syncs == 0)]
        else:
            verdicts = [""] * 3
        note = "" if at_rest else f" (still writing after {DEADLINE} s)"
        totals.append((f"{service.name}{note}", cpu, written, syncs, verdicts))
        service.stop()
    lines = ["", f"### Idle for {setup.idle} s, 3 nodes with 100 keys", "",
             f"| service | node | CPU % of a core, together below {TARGET} | bytes written, none | syncs, none |",
             "|---|---|---|---|---|"]
    lines += [f"| {name} | {node} | {cpu:.2f} | {written} | {syncs:.0f} |" for name, node, cpu, written, syncs in rows]
    return lines + [f"| {name} | all | {cpu:.2f} {one} | {written} {two} | {syncs:.0f} {three} |"
                    for name, cpu, written, syncs, (one, two, three) in totals]


def checkpoints(service):
    return [service.metrics(node).get(CHECKPOINTS, 0) for node in service.processes]


def look(service):
    """Processor seconds, bytes and syncs so far, by node."""
    syncs = {node: service.syncs_of(node) for node in service.processes}
    return {node: (service.processor_of(node), service.written(node), syncs[node]) for node in service.processes}


def settles(setup, service):
    """Until nothing was written from one look to the next. False: it writes on."""
    before = None
    for _ in range(DEADLINE // 5):
        now = [(written, syncs) for _, written, syncs in look(service).values()]
        if now == before:
            return True
        before = now
        time.sleep(5)
    return False
