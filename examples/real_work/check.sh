#!/usr/bin/env bash
# What the jobs did, checked by other tools: sha256sum, file, zstd and Python. Takes the folder of the binaries.
set -eEuo pipefail
trap 'echo "FAILED, at line $LINENO" >&2' ERR
bin=$(realpath "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$(dirname "$0")/../.."

# Runs a command that must find something wrong.
fails() { if "$@" 2>>"$dir/log"; then return 1; fi; }

# Archives: sound ones; then three of a copy are a bit off, cut short and gone.
lock=Cargo.lock
cache=${CARGO_HOME:-$HOME/.cargo}/registry/cache
mkdir "$dir/cache"
python3 - "$lock" > "$dir/wanted" <<'EOF'
import re, sys
for name, version, checksum in re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = .*\nchecksum = "(.+)"', open(sys.argv[1]).read()):
    print(checksum, f"{name}-{version}.crate")
EOF
while read -r _ archive; do cp "$cache"/*/"$archive" "$dir/cache" 2>/dev/null || true; done < "$dir/wanted"
sound() { (cd "$dir/cache" && sha256sum -c --status --ignore-missing - && ls | wc -l) < <(sed 's/ /  /' "$dir/wanted"); }
count=$(sound)
absent=$(($(wc -l < "$dir/wanted") - count))
printed=$("$bin/verify_cargo_cache" "$lock" --cache "$dir/cache" 2>/dev/null || [ "$absent" != 0 ])
[[ $printed == "$count archives are sound, "*"; $absent are not" ]]
[ "$count" -ge 10 ]
three=("$dir"/cache/*)
printf x | dd of="${three[0]}" bs=1 seek=100 conv=notrunc status=none
truncate -s -1 "${three[1]}"
rm "${three[2]}"
printed=$(fails "$bin/verify_cargo_cache" "$lock" --cache "$dir/cache")
[[ $printed == "$((count - 3)) archives are sound, "*"; $((absent + 3)) are not" ]]
for i in 0 1 2; do grep -qF "$(basename "${three[$i]}") is " "$dir/log"; done
fails "$bin/verify_cargo_cache" "$lock" --cache "$dir/cache" --policy raise >/dev/null
echo "archives: $printed"

# Copies of what has none yet: the second time there is nothing to do, and what changed is done again.
mkdir -p "$dir/texts/deep"
for i in $(seq 40); do echo "text $i" > "$dir/texts/deep/$i.txt"; done
printf '\xff' > "$dir/texts/odd.txt"
printed=$(fails "$bin/convert_missing" "$dir/texts" "$dir/capitals")
[ "$printed" = "40 converted, 0 up to date, 1 failed" ]
rm "$dir/texts/odd.txt"
touch -d tomorrow "$dir/texts/deep/7.txt"
printed=$("$bin/convert_missing" "$dir/texts" "$dir/capitals" 2>>"$dir/log")
[ "$printed" = "1 converted, 39 up to date, 0 failed" ]
for i in $(seq 40); do tr a-z A-Z < "$dir/texts/deep/$i.txt" | cmp - "$dir/capitals/deep/$i.txt"; done
[ "$(find "$dir/capitals" -type f | wc -l)" = 40 ]
echo "copies: $printed"

# Images: no side longer than asked, the longer one exactly that; damaged ones cost only themselves.
"$bin/thumbnails" --make 60 --size 100 "$dir/photos" "$dir/small" >/dev/null 2>&1
[ "$(ls "$dir/small" | wc -l)" = 60 ]
file "$dir"/small/* | tee "$dir/sizes" | grep -oE '[0-9]+ ?x ?[0-9]+(, (8-bit|components))' | tr -d ' ' |
  awk -Fx '{ n += ($1 + 0 > $2 + 0 ? $1 + 0 : $2 + 0) == 100 } END { exit n != 60 }'
grep -c 'PNG image' "$dir/sizes" | grep -qx 30
truncate -s 500 "$dir/photos/0002.png"
echo "no image" > "$dir/photos/0003.jpg"
rm -r "$dir/small"
printed=$(fails "$bin/thumbnails" "$dir/photos" "$dir/small")
[ "$printed" = "58 thumbnails; 2 images could not be read" ]
[ "$(ls "$dir/small" | wc -l)" = 58 ]
grep -qF 0002.png: "$dir/log" && grep -qF 0003.jpg: "$dir/log"

# In child processes: the same; and an image that wants more memory than a child may have costs one task.
mv "$dir/small" "$dir/threads"
python3 - "$dir/photos/huge.png" <<'EOF'
import struct, sys, zlib
def part(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
side = 18000
packer = zlib.compressobj(1)
rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
open(sys.argv[1], "wb").write(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b""))
EOF
printed=$(fails "$bin/thumbnails" --isolate "$dir/photos" "$dir/small")
[ "$printed" = "58 thumbnails; 3 images could not be read" ]
grep -qE "huge.png: the worker process [0-9]+ ended" "$dir/log" || { cat "$dir/log"; false; }
for it in "$dir"/threads/*; do cmp "$it" "$dir/small/$(basename "$it")"; done
echo "images: $printed"

# Archives of one and of two members, an empty one and a damaged one; each compared with what gzip reads.
mkdir "$dir/logs"
for i in $(seq 20); do seq $((i * 1000)) | gzip > "$dir/logs/$i.gz"; done
cat "$dir/logs/1.gz" "$dir/logs/2.gz" > "$dir/logs/two.gz"
gzip < /dev/null > "$dir/logs/empty.gz"
head -c 3000 "$dir/logs/20.gz" > "$dir/logs/damaged.gz"
printed=$(fails "$bin/recompress" "$dir/logs")
[[ $printed == "22 files, "*"; 1 failed" ]]
[ "$(ls "$dir/logs" | wc -l)" = 45 ]
[ ! -e "$dir/logs/damaged.zst" ]
for it in "$dir"/logs/*.zst; do
  zstd -tq "$it"
  cmp <(zstd -dcq "$it") <(gzip -dc "${it%.zst}.gz")
done
echo "gzip to zstd: $printed"

# Lines: the same numbers as Python finds. A line that is no text, an empty one, and no newline at the end.
python3 - > "$dir/lines" <<'EOF'
import random, sys
random.seed(1)
kinds = [b'{"n": 1}'] * 60 + [b'{"n": ', b"", b"nul", b'"\xff"']
for n in range(5000):
    sys.stdout.buffer.write(random.choice(kinds) + b"\n")
sys.stdout.buffer.write(b"[1, 2")
EOF
cat > "$dir/bad.py" <<'EOF'
import json, sys
for number, line in enumerate(open(sys.argv[1], "rb"), 1):
    try:
        json.loads(line.decode())
    except ValueError:
        print(number)
EOF
python3 "$dir/bad.py" "$dir/lines" > "$dir/expected"
[ "$(wc -l < "$dir/expected")" -gt 100 ]
numbers() { fails "$bin/validate_jsonl" "$dir/lines" --policy "$1" | sed -n 's/^.*lines:\([0-9]*\):.*/\1/p'; }
cmp <(numbers ignore) "$dir/expected"
cmp <(numbers log) "$dir/expected"
cmp <(numbers raise) <(head -n 1 "$dir/expected")
cmp <(numbers tolerate:9) <(head -n 10 "$dir/expected")
cmp <(fails "$bin/validate_jsonl" < "$dir/lines" | grep -c '^-:') <(wc -l < "$dir/expected")
echo "lines: $(wc -l < "$dir/expected") bad, the same as Python's"
