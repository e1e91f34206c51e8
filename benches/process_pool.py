"""Python's process pools on the jobs of `benches/process.rs`, for comparison by hand.

    pip install pebble    # optional
    cargo bench -p futureproof-benches --bench process
    python3 benches/process_pool.py
"""

import statistics
import time
from concurrent.futures import ProcessPoolExecutor, wait, FIRST_COMPLETED

SPAN = 2.0


def add(n):
    return n + 1


def echo(data):
    return data


def hang(n):
    while n:
        time.sleep(1)
    return n


def round_trips(name, call):
    call()
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < SPAN:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    rate = len(times) / sum(times)
    print(f"| {name} | {statistics.median(times) * 1e6:.0f} µs | {rate:.0f} |", flush=True)


def throughput(name, submit, item, window=64):
    """A window of tasks is always under way, as in a run."""
    submit(item).result()
    start = time.perf_counter()
    waiting = {submit(item) for _ in range(window)}
    count = 0
    while time.perf_counter() - start < SPAN:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        count += len(done)
        waiting |= {submit(item) for _ in done}
    print(f"| {name} | | {count / (time.perf_counter() - start):.0f} |", flush=True)
    wait(waiting)


def main():
    print("| what | p50 | a second |\n|---|---|---|")
    with ProcessPoolExecutor(2) as pool:
        round_trips("ProcessPoolExecutor, round trip", lambda: pool.submit(add, 1).result())
        throughput("ProcessPoolExecutor, two workers", lambda n: pool.submit(add, n), 1)
        start, count = time.perf_counter(), 20_000
        for _ in pool.map(add, range(count), chunksize=1):
            pass
        print(f"| ProcessPoolExecutor, map | | {count / (time.perf_counter() - start):.0f} |")
        throughput("the same, 1 KiB", lambda data: pool.submit(echo, data), b"x" * 1024)
        throughput("the same, 1 MiB", lambda data: pool.submit(echo, data), b"x" * (1 << 20), 8)
    try:
        from pebble import ProcessPool
    except ImportError:
        print("pebble is not installed")
        return
    with ProcessPool(2) as pool:
        round_trips("Pebble, round trip", lambda: pool.schedule(add, (1,)).result())
        throughput("Pebble, two workers", lambda n: pool.schedule(add, (n,)), 1)
        throughput("the same, 1 KiB", lambda data: pool.schedule(echo, (data,)), b"x" * 1024)
        lateness = []
        for _ in range(5):
            pool.schedule(hang, (0,)).result()
            start = time.perf_counter()
            try:
                pool.schedule(hang, (1,), timeout=0.1).result()
            except TimeoutError:
                lateness.append(time.perf_counter() - start - 0.1)
        print(f"| Pebble, from a limit to the error | {statistics.median(lateness) * 1e3:.1f} ms | |")
    with ProcessPool(1, max_tasks=1) as pool:
        round_trips("Pebble, a fresh child for each", lambda: pool.schedule(add, (1,)).result())


if __name__ == "__main__":
    main()
