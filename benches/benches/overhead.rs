//! What it costs to run a function on the items of a stream in parallel, for functions from nothing to
//! half a millisecond.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::work::{steps, steps_for};

fn overhead(criterion: &mut Criterion) {
    let rig = Rig::of_this_machine();
    for nanos in [0, 2, 5, 10, 50, 500, 5_000, 50_000, 500_000] {
        let mut group = criterion.benchmark_group(format!("overhead of {nanos} ns"));
        let count = steps_for(nanos);
        let work = move |item| steps(item, count);
        for contender in all() {
            let items = (5_000_000 / (nanos + contender.cost)).clamp(50, 1_000_000);
            group.throughput(Throughput::Elements(items));
            group.bench_function(contender.name, |bencher| {
                bencher.iter(|| (contender.run)(&rig, items, work));
            });
        }
        group.finish();
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = config(); targets = overhead);
criterion_main!(benches);
