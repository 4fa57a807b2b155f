"""How figures are taken and told: the disk, quantiles, ranges, and the machine that they are of."""

import math
import pathlib
import platform
import re
import statistics
import subprocess
import time


def device_bytes(device):
    """Bytes written to a disk so far, by all of the machine."""
    for line in pathlib.Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[2] == device:
            return 512 * int(fields[9])
    return 0


def device_of(folder):
    """The disk that holds a folder, as /proc/diskstats calls it."""
    source = subprocess.check_output(["df", "--output=source", folder], text=True).splitlines()[-1].strip()
    return pathlib.Path(source).resolve().name


def quantile(values, part):
    """The smallest value that so large a part of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def three(values, digits=0):
    """Least, median and largest."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def middle(values, digits):
    values = [value for value in values if value is not None]
    return f"{statistics.median(values):.{digits}f}" if values else "-"


def verdict(holds):
    return "PASS" if holds else "MISS"


def machine(binary):
    """Where and of what the figures are, as a list."""
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    total = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1))
    cores = pathlib.Path("/proc/cpuinfo").read_text().count("processor\t")
    said = {name: subprocess.run([name, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
            for name in (str(binary), "etcd", "redis-server")}
    ours, etcd, redis = said.values()
    processor = model.group(1) if model else platform.machine()
    return [f"* {time.strftime('%Y-%m-%d', time.gmtime())}, {cores} cores of {processor}, {total >> 20} GiB, "
            f"Linux {platform.release()}; load, services and kernel share them.",
            f"* {ours}; {etcd}; {' '.join(redis.split()[:3])}."]
