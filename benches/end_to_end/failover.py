"""How long nobody can write when the leader dies."""

import threading
import time

from figures import three
from systems import DEADLINE, Etcd, Mmapd, await_that


def failover(setup):
    """From kill -9 of the leader to the first write that succeeds, asked of all other nodes at once."""
    taken = {}
    services = [setup.start(kind, 3) for kind in (Mmapd, Etcd)]
    for _ in range(setup.kills):
        for service in services:
            await_that("a write", lambda s=service: s.put("failover", b"x"))
            victim = service.leader()
            others = [node for node in service.processes if node != victim]
            first, done = [], threading.Event()

            def write(node, s=service, first=first, done=done):
                while not done.is_set():
                    if s.put("failover", b"x", node):
                        first.append(time.monotonic())
                        done.set()

            threads = [threading.Thread(target=write, args=(node,)) for node in others]
            start = time.monotonic()
            service.kill(victim)
            for thread in threads:
                thread.start()
            if not done.wait(DEADLINE):
                raise SystemExit(f"{service.name}: no write after the leader was killed")
            for thread in threads:
                thread.join()
            taken.setdefault(service.name, []).append(min(first) - start)
            service.launch(victim)
            await_that("the node is back", lambda s=service, n=victim: s.get("failover", n) is not None)
    for service in services:
        service.stop()
    lines = ["", "### First write after kill -9 of the leader, 3 nodes", "",
             f"| service | seconds: min / median / max of {setup.kills} |", "|---|---|"]
    return lines + [f"| {name} | {three(values, 3)} |" for name, values in taken.items()]
