"""Makes one test binary of all tests, in a copy of this repository: one_binary.py COPY

Each mutant links every test binary anew, so one is several times as quick as twenty. nextest gives each test a
process of its own, as before.
"""

import re
import subprocess
import sys
from pathlib import Path

copy = Path(sys.argv[1])
subprocess.run(["git", "clone", "-q", ".", copy], check=True)
tests = copy / "tests"
one = tests / "one"
one.mkdir()
(tests / "common").rename(one / "common")
names = []
for path in sorted(tests.glob("*.rs")):
    if path.stem in ["schedules", "process"]:  # Built for shuttle only; has a `main` of its own.
        continue
    (one / path.name).write_text(path.read_text().replace("\nmod common;", "\nuse crate::common;"))
    path.unlink()
    names.append(path.stem)
(one / "main.rs").write_text("".join(f"mod {name};\n" for name in ["common", *names]))
nextest = copy / ".config" / "nextest.toml"
nextest.write_text(re.sub(r"binary\((\w+)\)", r"test(/^\1::/)", nextest.read_text()))
manifest = copy / "Cargo.toml"
manifest.write_text(manifest.read_text().replace('debug = "line-tables-only"', "debug = 0"))
