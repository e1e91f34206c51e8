"""Whether `cargo mutants` found what it should: mutants.py MUTANTS_OUT SURVIVORS

At least 95 % of the mutants that compile must be caught, and each that was not must stand in SURVIVORS, where
a line without a place is the reason for those below it.
"""

import re
import sys
from pathlib import Path

out, survivors = map(Path, sys.argv[1:])


def lines(name):
    return (out / f"{name}.txt").read_text().splitlines()


def without_place(line):
    return re.sub(r":\d+:\d+:", ":", line)


explained = {line for line in survivors.read_text().splitlines() if line.startswith("src/")}
missed = [without_place(line) for line in lines("missed")]
noticed = [without_place(line) for line in lines("caught") + lines("timeout")]
caught = len(noticed)
share = 100 * caught / (caught + len(missed))
print(f"{caught} of {caught + len(missed)} mutants caught, {share:.1f} %; {len(lines('unviable'))} do not compile")
unexplained = sorted(set(missed) - explained)
for line in unexplained:
    print("not explained:", line)
for line in sorted((explained & set(noticed)) - set(missed)):
    print("not missed any more:", line)
sys.exit(bool(unexplained) or share < 95)
