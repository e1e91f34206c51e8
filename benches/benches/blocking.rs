//! Tasks that wait for something, 1 to 5 ms each, on 64 threads.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::jobs::{SLEEPS, sleep};

fn bench(criterion: &mut Criterion) {
    let rig = Rig::new(64);
    let mut group = criterion.benchmark_group("200 tasks that sleep, on 64 threads");
    // The plain loop takes 64 times as long, and par-iter-sync has its own idea of the number of threads.
    for contender in all().into_iter().filter(|it| it.has_threads()) {
        group.bench_function(contender.name, |bencher| {
            bencher.iter(|| (contender.run)(&rig, SLEEPS, sleep));
        });
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
