//! The same job on 1, 2, 4 … threads, as many as the machine has cores.

use std::iter::successors;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::work::{steps, steps_for};

fn bench(criterion: &mut Criterion) {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let rigs: Vec<Rig> = successors(Some(1), |threads| Some(2 * threads))
        .take_while(|threads| *threads <= cores.min(16))
        .map(Rig::new)
        .collect();
    for nanos in [100, 10_000] {
        let count = steps_for(nanos);
        let items = 10_000_000 / nanos;
        let work = move |item| steps(item, count);
        for rig in &rigs {
            let name = format!("{nanos} ns on {} threads", rig.threads);
            let mut group = criterion.benchmark_group(name);
            group.throughput(Throughput::Elements(items));
            for contender in all().into_iter().filter(|it| it.has_threads()) {
                group.bench_function(contender.name, |bencher| {
                    bencher.iter(|| (contender.run)(rig, items, work));
                });
            }
            group.finish();
        }
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
