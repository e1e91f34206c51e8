//! How criterion measures here: shortly, and everybody of one group on the same work.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use futureproof_benches::contenders::{Contender, Rig};
use futureproof_benches::work::Work;

pub(crate) fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

/// Measures each contender on as many items as it is given.
pub(crate) fn compare<W: Work>(
    criterion: &mut Criterion,
    name: String,
    rig: &Rig,
    contenders: impl IntoIterator<Item = (Contender<W>, u64)>,
    work: W,
) {
    let mut group = criterion.benchmark_group(name);
    for (contender, items) in contenders {
        group.throughput(Throughput::Elements(items));
        group.bench_function(contender.name, |bencher| {
            bencher.iter(|| (contender.run)(rig, items, work));
        });
    }
    group.finish();
}
