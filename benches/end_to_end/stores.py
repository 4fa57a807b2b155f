"""What grows: many keys, large values, and what a node with many keys needs to start again."""

import math
import statistics
import time

from figures import three, verdict
from load import SIZE, put_many, wrk
from systems import Etcd, EtcdJson, Mmapd, ask, await_that, settled


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
        lines.append(f"| {service.name} | {memory['RssAnon'] / 1e6:.0f} | {memory['RssFile'] / 1e6:.0f} | "
                     f"{disk / 1e6:.0f} | {three(taken, 3)} |")
        service.stop()
    return lines


def can_read(service):
    if isinstance(service, Mmapd):
        return ask(f"{service.bases[1]}/v1/keys/many/00000001", timeout=1)[0] == 200
    return ask(f"{service.bases[1]}/v3/kv/range", "POST", b'{"key":"bWFueS8wMDAwMDAwMQ=="}', timeout=1)[0] == 200


def values(setup):
    """PUT and GET of larger values, one node, 16 connections."""
    lines = ["", "### Larger values, 1 node, 16 connections", "",
             "Nanoseconds a byte are the median; where they stop falling, cost grows with bytes and with nothing else.", "",
             "| bytes | service | PUT MB/s: min / median / max | ns a byte | GET MB/s: min / median / max | ns a byte "
             "| errors |", "|---|---|---|---|---|---|---|"]
    services = [setup.start(kind, 1) for kind in (Mmapd, Etcd)]
    for size in (1 << 10, 16 << 10, 256 << 10, 1 << 20):
        rates, errors = {}, {}
        for _ in range(setup.repetitions):
            for service in services:
                for what in ("put", "get"):
                    sample = wrk(service, what, 16, setup.seconds, size=size, keys=200)
                    rates.setdefault((service.name, what), []).append(sample.rate * size / 1e6)
                    errors[service.name] = errors.get(service.name, 0) + sample.errors
        for service in services:
            cells = []
            for what in ("put", "get"):
                found = rates[service.name, what]
                cells += [three(found, 1), f"{1000 / statistics.median(found):.2f}"]
            lines.append(f"| {size} | {service.name} | {' | '.join(cells)} | {errors[service.name]} |")
    for service in services:
        service.stop()
    return lines


def sizes(setup):
    """Whether a larger store is slower than its tree is deeper: one node, 16 connections, all keys equally likely."""
    stores, loaded = {}, {}
    for number in setup.sizes:
        stores[number] = setup.start(Mmapd, 1, MMAPD_STORAGE__QUOTA="64GiB", MMAPD_STORAGE__MAP_MAX="256GiB")
        loaded[number] = put_many(stores[number], number)
        setup.say(f"{number} keys loaded in {loaded[number]:.0f} s")
    for service in stores.values():
        settled(service)
    rates = {}
    order = list(stores.items())
    # No store reads while another makes a checkpoint of what was written before.
    for what in ("get", "put"):
        for repetition in range(setup.repetitions):
            # Not always the same one first.
            turn = repetition % len(stores)
            for number, service in order[turn:] + order[:turn]:
                sample = wrk(service, what, 16, setup.seconds, keys=number, below="/v1/keys/many")
                if sample.errors:
                    raise SystemExit(f"{sample.errors} errors of {sample.operations} {what} with {number} keys")
                rates.setdefault((number, what), []).append(sample.rate)
                setup.say(f"{what} {number}: {sample.rate:.0f}/s")
    lines = ["", "### Larger stores, mmapd, 1 node, 16 connections", "",
             "How many times as long a request takes as with the fewest keys, and what the logarithm of their number "
             "allows.", "",
             "| keys | loaded in s | files MB | operation | a second: min / median / max "
             "| times as long: min / median / max | log n |", "|---|---|---|---|---|---|---|"]
    fewest = setup.sizes[0]
    for number, service in stores.items():
        for what in ("put", "get"):
            times = [few / many for few, many in zip(rates[fewest, what], rates[number, what])]
            allowed = math.log(number) / math.log(fewest)
            told = "" if number == fewest else f"{allowed:.2f}: {verdict(statistics.median(times) <= allowed)}"
            lines.append(f"| {number} | {loaded[number]:.1f} | {service.bytes_on_disk() / 1e6:.0f} | {what.upper()} | "
                         f"{three(rates[number, what])} | {'' if number == fewest else three(times, 2)} | {told} |")
    for service in stores.values():
        service.stop()
    return lines
