#!/usr/bin/env python3
"""Imports go down only: no file imports from a floor above it, and no two files of a floor import each other in a circle.
The floors are the table in CONTRIBUTING.md, which must name every file, and no other."""

import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
problems = []


def floors(title):
    """The table below the line that begins with `title`: file -> floor."""
    text = (root / "CONTRIBUTING.md").read_text().split(title, 1)[1]
    found = {}
    for floor, place, rooms in re.findall(r"^\| (\d+) \| `([^`]+)` \| (.+) \|$", text.split("\n## ")[0].split("\n### ")[0], re.M):
        for name in re.findall(r"`([a-z_]+\.rs)`", rooms):
            found[place + name] = int(floor)
    return found


def module_of(path, src):
    parts = list(path.relative_to(src).with_suffix("").parts)
    return tuple(parts[:-1] if parts[-1] in ("mod", "lib") else parts)


def imports(path, src, modules):
    """The files that this one imports from."""
    text = re.sub(r"#\[cfg\(test\)\]\nmod tests \{.*", "", path.read_text(), flags=re.S)
    here = module_of(path, src)
    for line in re.findall(r"^\s*(?:pub(?:\([a-z]+\))? )?use ((?:crate|super)::[^;]+);", text, re.M):
        line = re.sub(r"\s+", "", line)
        head, _, group = line.partition("{")
        names = re.split(r",", group.rstrip("}")) if group else [""]
        for name in names:
            words = [word for word in (head + name).split("::") if word]
            base = []
            if words[0] == "crate":
                words = words[1:]
            else:
                base = list(here)
                while words and words[0] == "super":
                    base, words = base[:-1], words[1:]
            target = tuple(base + words)
            while target and target not in modules:
                target = target[:-1]
            if target in modules and modules[target] != path:
                yield modules[target]


def check(title, src):
    src = root / src
    files = sorted(path for path in src.rglob("*.rs"))
    named = floors(title)
    names = {str(path.relative_to(root)) for path in files if path.name not in ("mod.rs", "lib.rs")}
    for name in sorted(names - named.keys()):
        problems.append(f"{name} is on no floor in CONTRIBUTING.md")
    for name in sorted(named.keys() - names):
        problems.append(f"CONTRIBUTING.md names {name}, which is not there")
    modules = {module_of(path, src): path for path in files if path.name != "lib.rs"}
    graph = {}
    for path in files:
        name = str(path.relative_to(root))
        graph[name] = sorted({str(it.relative_to(root)) for it in imports(path, src, modules)})
        # A folder's `mod.rs` names what is in it.
        if path.name in ("mod.rs", "lib.rs"):
            graph[name] = []
        for other in graph[name]:
            # What is imported through a folder is on the highest floor of that folder.
            folder = [floor for file, floor in named.items() if file.startswith(other.removesuffix("mod.rs"))] if other.endswith("mod.rs") else []
            floor = named.get(other, max(folder, default=0))
            if name in named and floor > named[name]:
                problems.append(f"{name} (floor {named[name]}) imports {other} (floor {floor})")
    done, path = set(), []

    def visit(name):
        if name in path:
            problems.append("a circle: " + " -> ".join(path[path.index(name):] + [name]))
        elif name not in done:
            path.append(name)
            for other in graph.get(name, []):
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)
    return len(names)


count = check("## The house", "src")
if "### `nats/`" in (root / "CONTRIBUTING.md").read_text():
    count += check("### `nats/`", "nats/src")
# Three "only"s.
def writes_ordering(path):
    code = path.read_text().split("#[cfg(test)]")[0]
    code = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("//"))
    return re.search(r"\bOrdering::(Relaxed|Acquire|Release|AcqRel|SeqCst)\b", code)


ordering = {str(path.relative_to(root)) for path in (root / "src").rglob("*.rs") if writes_ordering(path)}
text = (root / "CONTRIBUTING.md").read_text()
allowed = re.search(r"^- only ((?:(?!^- ).)*?) write `Ordering::`", text, re.M | re.S)
allowed = {"src/" + name for name in re.findall(r"`([a-z_/]+\.rs)`", allowed.group(1))}
for name in sorted(ordering ^ allowed):
    problems.append(f"{name}: `Ordering::` is {'written there, and' if name in ordering else 'not written there, but'} CONTRIBUTING.md says otherwise")
print("\n".join(problems) or f"{count} files, and imports go down only")
sys.exit(bool(problems))
