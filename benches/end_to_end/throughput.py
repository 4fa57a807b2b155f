"""PUT, linearizable GET and local GET at several numbers of connections."""

import sys

import plot
from figures import middle, three
from load import OPERATIONS, fill, measured, redis_benchmark, wrk
from systems import Bare, Etcd, EtcdJson, Mmapd, Redis


def throughput(setup):
    samples, rates = {}, {}
    for nodes, kinds in ((1, (Mmapd, Etcd, EtcdJson, Redis, Bare)), (3, (Mmapd, Etcd, EtcdJson))):
        services = [setup.start(kind, nodes) for kind in kinds if kind is not Bare or Bare.binary]
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
    (setup.out / "end_to_end.svg").write_text(plot.ratios(samples, setup.connections))
    lines = ["", f"`{Bare.name}` is no peer: it answers the same bytes from nothing, so it shows what HTTP costs here."]
    for nodes in (1, 3):
        for what, title in OPERATIONS.items():
            here = {(connections, name): found for (n, w, connections, name), found in samples.items()
                    if (n, w) == (nodes, what)}
            lines += table(f"{title}, {nodes} node{'s' if nodes > 1 else ''}", setup.connections, here)
    return lines


def table(title, counts, samples):
    lines = ["", f"### {title}", "",
             "| connections | service | a second: min / median / max | mmapd to it: min / median / max | p50 ms "
             "| p99 ms | CPU us | syncs | device bytes | errors |", "|---|---|---|---|---|---|---|---|---|---|"]
    for connections in counts:
        ours = samples[connections, Mmapd.name]
        for (count, name), theirs in samples.items():
            if count != connections:
                continue
            ratios = [a.rate / b.rate for a, b in zip(ours, theirs)]
            lines.append(f"| {connections} | {name} | {three([one.rate for one in theirs])} | "
                         f"{'' if name == Mmapd.name else three(ratios, 2)} | "
                         f"{middle([one.p50 for one in theirs], 2)} | {middle([one.p99 for one in theirs], 2)} | "
                         f"{middle([one.cpu for one in theirs], 0)} | {middle([one.syncs for one in theirs], 2)} | "
                         f"{middle([one.device for one in theirs], 0)} | {sum(one.errors for one in theirs)} |")
    return lines
