"""Licences, sources, requirements and duplicates, as .ci/deny.toml allows them.

All packages of the three lock files have a licence that is allowed, come from crates.io, are not
denied and require no `*`. Twice the same crate is looked for in what is shipped alone: what the
tests, difftest/ and fuzz/ use is not in the program.

Of `cargo deny check licenses bans sources`, which takes minutes to build where no built one can be
had, this does that much, with the same file. It believes the licence that a package names and
reads no texts. Advisories are not asked about, because their list is not in a registry.

usage: deny.py, in the top folder; needs the package license-expression
"""

import collections
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from license_expression import get_spdx_licensing

LOCKED = [".", "difftest", "fuzz"]
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


def about_each(rules, metadata):
    """What is wrong with a package, whoever uses it."""
    allowed, denied = set(rules["licenses"]["allow"]), {deny["name"] for deny in rules["bans"]["deny"]}
    excepted = {one["crate"]: set(one["allow"]) for one in rules["licenses"]["exceptions"]}
    for package in metadata["packages"]:
        label = f"{package['name']} {package['version']}"
        may = allowed | excepted.get(package["name"], set())
        ours = package["source"] is None
        if not ours and package["source"] != CRATES_IO:
            yield f"{label}: comes from {package['source']}"
        # What is not published needs none.
        if not package["license"] and not (ours and package["publish"] == []):
            yield f"{label}: no licence is named"
        elif package["license"] and not allows(package["license"], may):
            yield f"{label}: {package['license']} is not allowed"
        if package["name"] in denied:
            yield f"{label}: is denied"
        for dep in package["dependencies"]:
            # A path says which one it is.
            if dep["req"] == "*" and not dep.get("path"):
                yield f"{label}: requires any version of {dep['name']}"


def duplicates(rules, metadata):
    """What is built in twice without being excused, and excuses that are not needed."""
    skipped = {(skip["name"], skip["version"]) for skip in rules["bans"]["skip"]}
    shipped, versions, used = reachable(metadata), collections.defaultdict(set), set()
    for package in metadata["packages"]:
        name, version = package["name"], package["version"]
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


def metadata_of(folder):
    # What is built for other systems is nothing that this one ships or tests.
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path",
               f"{folder}/Cargo.toml", "--filter-platform", "x86_64-unknown-linux-gnu"]
    return json.loads(subprocess.check_output(command))


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
    wrong = {"name": "a", "version": "1.0.0", "license": "MIT", "source": "git+https://a", "publish": None,
             "dependencies": [{"name": "b", "req": "*"}, {"name": "c", "req": "*", "path": "/c"}]}
    assert len(list(about_each(rules, {"packages": [wrong]}))) == 2, "a source, and a requirement"
    found = []
    for folder in LOCKED:
        metadata = metadata_of(folder)
        several = duplicates(rules, metadata) if folder == "." else []
        complaints = sorted([*about_each(rules, metadata), *several])
        print(f"{folder}: {len(metadata['packages'])} packages, {len(complaints)} complaints")
        found += [f"{folder}: {complaint}" for complaint in complaints]
    for complaint in found:
        print(f"deny: {complaint}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
