//! One task in a hundred takes a hundred times as long as the others: at the end, at the beginning, anywhere.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::jobs::{Order, uneven};
use futureproof_benches::work::steps_for;

fn bench(criterion: &mut Criterion) {
    const ITEMS: u64 = 20_000;
    let rig = Rig::of_this_machine();
    let count = steps_for(1_000);
    for order in Order::ALL {
        let mut group = criterion.benchmark_group(format!("uneven, {order}"));
        group.throughput(Throughput::Elements(ITEMS));
        let work = uneven(ITEMS, order, count);
        for contender in all() {
            group.bench_function(contender.name, |bencher| {
                bencher.iter(|| (contender.run)(&rig, ITEMS, work));
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

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
