#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What this project says about the crates it is built from.

    scripts/crates.py check               licences, origins and duplicates, against deny.toml
    scripts/crates.py spec FILE           the spec's licence and bundled crates as they are now
    scripts/crates.py trim VENDOR         leave of crates that no Linux needs only the name
    scripts/crates.py sbom                a CycloneDX bill of materials, on standard output
    scripts/crates.py copyright TEMPLATE VENDOR    debian/copyright, on standard output

Everything comes from Cargo.lock and `cargo metadata`; nothing here asks the network.
"""

import datetime
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"

# Debian's and Fedora's architectures. What none of them needs is not shipped.
LINUX = [
    "x86_64-unknown-linux-gnu",
    "i686-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
    "powerpc64le-unknown-linux-gnu",
    "s390x-unknown-linux-gnu",
    "riscv64gc-unknown-linux-gnu",
    "loongarch64-unknown-linux-gnu",
]

# Debian has names of its own for some licences.
DEBIAN_NAMES = {
    "MIT": "Expat",
    "BSD-3-Clause": "BSD-3-clause",
    "BSD-2-Clause": "BSD-2-clause",
}


# What tests of crates bring along that nobody could build from this source.
NO_SOURCE = re.compile(r"\.(a|dll|dylib|exe|lib|o|obj|so)$|(^|/)tarpaulin-report\.html$")


def metadata(platform, rustflags=""):
    command = ["cargo", "metadata", "--locked", "--format-version=1", "--filter-platform", platform]
    settings = {key: value for key, value in os.environ.items() if "RUSTFLAGS" not in key}
    settings["RUSTFLAGS"] = rustflags
    done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@functools.cache
def trees():
    """What each Linux builds or tests with, the models of loom included."""
    return [metadata(platform, rustflags) for platform in LINUX for rustflags in ["", "--cfg loom"]]


def packages_for_linux():
    found = {(package["name"], package["version"]): package for tree in trees() for package in tree["packages"]}
    return dict(sorted(found.items()))


def checksums():
    with open(ROOT / "Cargo.lock", "rb") as file:
        return {(entry["name"], entry["version"]): entry.get("checksum") for entry in tomllib.load(file)["package"]}


def expression(package):
    """Some crates still write the slash that SPDX no longer knows."""
    if not package["license"]:
        sys.exit(f"crates: {package['name']} {package['version']} names no licence")
    return re.sub(r"\s*/\s*", " OR ", package["license"])


def parts_of(text):
    """The sides of the ANDs of an expression, each without the order of its ORs."""
    depth, parts, part = 0, [], []
    for word in re.findall(r"[()]|[^\s()]+", text):
        depth += (word == "(") - (word == ")")
        if word == "AND" and depth == 0:
            parts.append(part)
            part = []
        else:
            part.append(word)
    parts.append(part)
    for part in parts:
        choices = " ".join(word for word in part if word not in "()")
        if " AND " in choices:
            sys.exit(f"crates: no plain choice of licences: {text}")
        yield " OR ".join(sorted(choices.split(" OR ")))


def licence():
    everything = set()
    for package in packages_for_linux().values():
        everything.update(parts_of(expression(package)))
    ours = "BSD-3-Clause"
    others = sorted(everything - {ours})
    return " AND ".join([ours] + [f"({part})" if " OR " in part else part for part in others])


def up_to_date_spec(text):
    """The two things in the spec that follow from Cargo.lock."""
    bundled = [
        f"Provides:       bundled(crate({package['name']})) = {package['version']}"
        for package in sorted(in_plugin(), key=purl)
    ]
    text = re.sub(r"^License:( +).*$", lambda found: f"License:{found[1]}{licence()}", text, flags=re.M)
    lines = [line for line in text.split("\n") if "bundled(crate(" not in line]
    mark = lines.index("# Linked into the plugin; `scripts/crates.py spec` keeps the list.")
    return "\n".join(lines[: mark + 1] + bundled + lines[mark + 1 :])


def check():
    """The same rules as `cargo deny check licenses bans sources`, for where that is not installed."""
    with open(ROOT / "deny.toml", "rb") as file:
        rules = tomllib.load(file)
    allowed = set(rules["licenses"]["allow"])
    skipped = {tuple(entry["crate"].split("@")) for entry in rules["bans"]["skip"]}
    faults = []

    packages = packages_for_linux()
    for (name, version), package in packages.items():
        for part in parts_of(expression(package)):
            if allowed.isdisjoint(part.split(" OR ")):
                faults.append(f"{name} {version}: none of its licences is allowed: {part}")
        # A dependency from a path or from git has another source, or none.
        if package["source"] != REGISTRY and package["manifest_path"] != str(ROOT / "Cargo.toml"):
            faults.append(f"{name} {version}: comes from {package['source']}, not from crates.io")
        for dependency in package["dependencies"] if not package["source"] else []:
            if dependency["req"] == "*":
                faults.append(f"{dependency['name']}: any version would do")

    by_name = {}
    for name, version in packages:
        by_name.setdefault(name, []).append(version)
    double = {name: versions for name, versions in by_name.items() if len(versions) > 1}
    for name, versions in double.items():
        # All but one have to be named, so that a new one is somebody's decision.
        if sum((name, version) not in skipped for version in versions) > 1:
            faults.append(f"{name}: {len(versions)} versions ({', '.join(versions)})")
    for name, version in skipped:
        if version not in double.get(name, []):
            faults.append(f"deny.toml skips {name} {version}, which is no duplicate")

    spec = ROOT / "packaging/nbdkit-nbd-plugin-rust.spec"
    if up_to_date_spec(spec.read_text()) != spec.read_text():
        faults.append(f"{spec.name} is behind Cargo.lock: scripts/crates.py spec packaging/{spec.name}")

    for fault in faults:
        print(f"crates: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"{len(packages)} crates: licences, origins and duplicates as deny.toml wants them")


def trim(vendor):
    """Cargo wants to read the manifest of every crate in Cargo.lock, so that one stays."""
    needed = set(packages_for_linux())
    for directory in sorted(vendor.iterdir()):
        with open(directory / "Cargo.toml", "rb") as file:
            package = tomllib.load(file)["package"]
        sums = json.loads((directory / ".cargo-checksum.json").read_text())
        if (package["name"], package["version"]) in needed:
            for file in sorted(sums["files"]):
                if NO_SOURCE.search(file):
                    (directory / file).unlink()
                    del sums["files"][file]
        else:
            manifest = (directory / "Cargo.toml").read_bytes()
            shutil.rmtree(directory)
            (directory / "src").mkdir(parents=True)
            (directory / "Cargo.toml").write_bytes(manifest)
            (directory / "src/lib.rs").write_text("// No Linux needs this crate.\n")
            sums["files"] = {}
        (directory / ".cargo-checksum.json").write_text(json.dumps(sums) + "\n")


def in_plugin():
    """The crates among what ends up there, ours left out."""
    ids = linked()
    return [package for package in packages_for_linux().values() if package["source"] and package["id"] in ids]


def linked():
    """What ends up in the plugin: no build scripts, no macros that ran in the compiler."""
    seen = set()
    for tree in trees():
        nodes = {node["id"]: node for node in tree["resolve"]["nodes"]}
        macros = {
            package["id"]
            for package in tree["packages"]
            if any("proc-macro" in target["kind"] for target in package["targets"])
        }
        visited, todo = set(), [tree["resolve"]["root"]]
        while todo:
            package = todo.pop()
            if package in visited or package in macros:
                continue
            visited.add(package)
            for dependency in nodes[package]["deps"]:
                if any(kind["kind"] is None and "loom" not in (kind["target"] or "") for kind in dependency["dep_kinds"]):
                    todo.append(dependency["pkg"])
        seen |= visited
    return seen


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sbom():
    there, sums = linked(), checksums()
    by_id = {package["id"]: package for package in packages_for_linux().values()}
    root = by_id[trees()[0]["resolve"]["root"]]
    needs = {package: set() for package in by_id}
    for tree in trees():
        for node in tree["resolve"]["nodes"]:
            needs[node["id"]].update(purl(by_id[dependency["pkg"]]) for dependency in node["deps"])

    def component(package):
        kind = "library" if package is not root else "application"
        part = {"type": kind, "bom-ref": purl(package), "name": package["name"], "version": package["version"]}
        if package["description"]:
            part["description"] = " ".join(package["description"].split())
        if package is not root:
            # Tests and build tools are known, and not part of what is delivered.
            part["scope"] = "required" if package["id"] in there else "excluded"
            part["hashes"] = [{"alg": "SHA-256", "content": sums[package["name"], package["version"]]}]
        part["licenses"] = [{"expression": expression(package)}]
        part["purl"] = purl(package)
        if package["repository"]:
            part["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        return part

    order = sorted(by_id.values(), key=purl)
    depends = [{"ref": purl(package), "dependsOn": sorted(needs[package["id"]])} for package in order]
    when = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.timezone.utc)
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": component(root)},
        "components": [component(package) for package in order if package is not root],
        "dependencies": depends,
    }
    # The same content has the same number.
    bill["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True)).urn
    return json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False)


def holders(directory, package):
    """Who says in the crate's own licence files that the rights are theirs, or else its authors."""
    lines = []
    for file in sorted(directory.iterdir()):
        if file.is_file() and re.match(r"(licen[cs]e|copying|copyright|notice|unlicense)", file.name, re.I):
            for line in file.read_text(errors="replace").splitlines():
                said = re.match(r"\s*copyright\s+(?:\(c\)|©)?\s*(.*)", line, re.I)
                # Not the blanks in Apache's appendix, nor sentences about copyright.
                if said and re.match(r"(\d{4}|Individual|The [A-Z])", said[1]) and len(said[1]) > 8:
                    lines.append(said[1].strip(" .").removesuffix(". All rights reserved"))
    return list(dict.fromkeys(lines or package["authors"] or [f"The {package['name']} developers"]))


def debian_licence(text, known):
    """In the words of Debian's copyright format, with each choice whose text is there."""
    parts = []
    for part in parts_of(text):
        names = [name.replace(" WITH ", "-with-") for name in part.split(" OR ")]
        names = [DEBIAN_NAMES.get(name, name) for name in names]
        names = [name for name in names if name in known]
        if not names:
            sys.exit(f"crates: the template of debian/copyright has no text for: {part}")
        parts.append(" or ".join(names))
    return (", and " if any(" or " in part for part in parts) else " and ").join(parts)


def copyright_file(template, vendor):
    packages = packages_for_linux()
    text = template.read_text()
    known = set(re.findall(r"^License: (.*)$", text, re.M))
    stanzas = []
    for directory in sorted(vendor.iterdir()):
        with open(directory / "Cargo.toml", "rb") as file:
            manifest = tomllib.load(file)["package"]
        package = packages.get((manifest["name"], manifest["version"]))
        if package is None:
            package = {key: manifest.get(key) for key in ("name", "version", "license")}
            package["authors"] = manifest.get("authors", [])
        who = "\n           ".join(holders(directory, package))
        stanzas.append(
            f"Files: vendor/{directory.name}/*\nCopyright: {who}\nLicense: {debian_licence(expression(package), known)}\n"
        )
    return text.replace("@VENDORED@\n", "\n".join(stanzas)).rstrip("\n")


def main(arguments):
    match arguments:
        case ["check"]:
            check()
        case ["spec", name]:
            spec = pathlib.Path(name)
            spec.write_text(up_to_date_spec(spec.read_text()))
        case ["trim", vendor]:
            trim(pathlib.Path(vendor))
        case ["sbom"]:
            print(sbom())
        case ["copyright", template, vendor]:
            print(copyright_file(pathlib.Path(template), pathlib.Path(vendor)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
