#!/usr/bin/env python3
"""Writes what an image holds, name, version and licence of each package, as its own records state them: packages.json."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from importlib import metadata

COPYRIGHTS = pathlib.Path("/usr/share/doc")
# Of a licence that is written out where its name belongs, this much is kept.
LONGEST = 80


def first_line(text):
    return next((line.strip()[:LONGEST] for line in text.splitlines() if line.strip()), "")


def python_licence(about):
    """The SPDX expression, else the classifiers, else the first line of the free text."""
    if expression := about.get("License-Expression"):
        return expression
    classes = [
        name.rsplit(" :: ", 1)[1]
        for name in about.get_all("Classifier", [])
        if name.startswith("License :: ") and name != "License :: OSI Approved"
    ]
    return ", ".join(classes) or first_line(about.get("License", "")) or "not stated"


def python_packages(folders):
    for found in metadata.distributions(path=folders):
        name = found.metadata["Name"].lower().replace("_", "-")
        yield {"kind": "python", "name": name, "version": found.version, "licence": python_licence(found.metadata)}


def debian_licence(package):
    """The short names in a copyright file that machines can read; else where a person reads it."""
    path = COPYRIGHTS / package / "copyright"
    text = path.read_text(errors="replace") if path.is_file() else ""
    names = dict.fromkeys(re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE))
    return ", ".join(names)[: 3 * LONGEST] or f"see {path}"


def listed(*command):
    """Fields of what a program lists, a line an entry; nothing where there is no such program."""
    if not shutil.which(command[0]):
        return []
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in out.splitlines()]


def debian_packages():
    for name, version in listed("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\n"):
        yield {"kind": "debian", "name": name, "version": version, "licence": debian_licence(name)}


R = r"""p <- installed.packages(fields = "License"); cat(sprintf("%s\t%s\t%s\n", p[,1], p[,"Version"], p[,"License"]), sep = "")"""


def r_packages():
    for name, version, licence in listed("Rscript", "-e", R):
        yield {"kind": "r", "name": name, "version": version, "licence": licence}


def main(target, *python_folders):
    packages = [*python_packages(python_folders), *r_packages(), *debian_packages()]
    packages.sort(key=lambda package: (package["kind"], package["name"]))
    lines = ",\n".join(json.dumps(package, ensure_ascii=False) for package in packages)
    path = pathlib.Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n")


main(*sys.argv[1:])
