//! The same job on 1, 2, 4 … threads, as many as the machine has cores.

mod common;

use std::iter::successors;
use std::thread;

use common::{compare, config};
use criterion::{Criterion, criterion_group, criterion_main};
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
        for rig in &rigs {
            let contenders = all().into_iter().filter(|it| it.has_threads());
            let contenders = contenders.map(|contender| (contender, 10_000_000 / nanos));
            let name = format!("{nanos} ns on {} threads", rig.threads);
            compare(criterion, name, rig, contenders, move |item| {
                steps(item, count)
            });
        }
    }
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
