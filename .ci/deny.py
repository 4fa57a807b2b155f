"""Licences, sources and duplicates of all that is built in, as .ci/deny.toml allows them.

What `cargo deny check licenses bans sources` does: that program takes minutes to build where no
built one can be had, and this reads the same file. Advisories are not asked about, because their
list is not in a registry.

usage: deny.py, in the top folder; needs the package license-expression
"""

import collections
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from license_expression import get_spdx_licensing

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
LICENSING = get_spdx_licensing()


def allows(expression, allowed):
    """Can all that the expression asks for be met with licences that are allowed?"""
    tree = LICENSING.parse(expression.replace("/", " OR "), validate=True)

    def holds(node):
        parts = getattr(node, "args", ())
        if type(node).__name__ == "AND":
            return all(holds(part) for part in parts)
        if type(node).__name__ == "OR":
            return any(holds(part) for part in parts)
        return str(node) in allowed

    return holds(tree.simplify())


def reachable(metadata):
    """The ids of what is linked or run to build it, our own tests left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo, found = [metadata["resolve"]["root"]], set()
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        for dep in nodes[one]["deps"]:
            if any(kind["kind"] != "dev" for kind in dep["dep_kinds"]):
                todo.append(dep["pkg"])
    return found


def complaints(rules, metadata):
    allowed, bans = set(rules["licenses"]["allow"]), rules["bans"]
    skipped = {(skip["name"], skip["version"]) for skip in bans["skip"]}
    denied = {deny["name"] for deny in bans["deny"]}
    shipped, versions, used = reachable(metadata), collections.defaultdict(set), set()
    for package in metadata["packages"]:
        name, version = package["name"], package["version"]
        label = f"{name} {version}"
        if package["source"] not in (None, CRATES_IO):
            yield f"{label}: comes from {package['source']}"
        if not package["license"]:
            yield f"{label}: no licence is named"
        elif not allows(package["license"], allowed):
            yield f"{label}: {package['license']} is not allowed"
        if name in denied:
            yield f"{label}: is denied"
        if package["id"] not in shipped:
            continue
        if (name, version) in skipped:
            used.add((name, version))
        else:
            versions[name].add(version)
    for name, several in versions.items():
        if len(several) > 1:
            yield f"{name}: built in as {', '.join(sorted(several))}"
    for name, version in sorted(skipped - used):
        yield f"{name} {version}: .ci/deny.toml skips what is not there"


def main():
    # It has to see something wrong where something is.
    for expression, want in [
        ("MIT OR GPL-3.0-only", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", False),
    ]:
        assert allows(expression, {"MIT", "Apache-2.0"}) is want, expression
    with open(Path(__file__).with_name("deny.toml"), "rb") as file:
        rules = tomllib.load(file)
    # What is built for other systems is nothing that this one ships or tests.
    command = ["cargo", "metadata", "--format-version", "1", "--locked",
               "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.check_output(command))
    found = sorted(complaints(rules, metadata))
    for complaint in found:
        print(f"deny: {complaint}", file=sys.stderr)
    print(f"{len(metadata['packages'])} packages, {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
