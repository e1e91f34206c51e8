# What both ladders use.
set -eEuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RUST_BACKTRACE=0 CARGO_TERM_COLOR=never
# Nobody debugs what is built here, nor changes it: 3 GB of disk instead of 10.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0
trap 'echo "== FAILED, at line $LINENO"' ERR

mkdir -p target

# Runs a step and prints its seconds, and what lies in `target/` after it.
step() {
  local start=$SECONDS
  echo "== $*"
  # Not `"$@" || …`: that would switch `set -e` off inside it.
  "$@"
  echo "== $((SECONDS - start)) s; $(du -sh target | cut -f1) built, $(df -h --output=avail . | tail -n 1 | tr -d ' ') free"
}

# Debian packages that are not there.
debian() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { apt-get update -qq && apt-get install -y -qq "$tool"; }
  done
}

# cargo's tools that are not there: built once, below `target/`. A debug build does for all of them, and is not kept.
export PATH=$PWD/target/tools/bin:$PATH
tool() {
  local name
  for name in "$@"; do
    command -v "$name" >/dev/null ||
      CARGO_TARGET_DIR=target/tools/build cargo install -q --locked --debug --root target/tools "$name"
  done
  rm -rf target/tools/build
}

# The engine under schedules that shuttle chooses; so many for each scenario, and a fifth of that of another kind.
schedules() {
  SCHEDULES=$1 RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle \
    timeout 3000 cargo test -q --release --test schedules "${@:2}"
}
