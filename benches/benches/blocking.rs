//! Tasks that wait for something, 1 to 5 ms each, on 64 threads.

mod common;

use common::{compare, config};
use criterion::{Criterion, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::jobs::{SLEEPS, sleep};

fn bench(criterion: &mut Criterion) {
    // The plain loop takes 64 times as long, and par-iter-sync has its own idea of the number of threads.
    let contenders = all().into_iter().filter(|it| it.has_threads());
    let contenders = contenders.map(|contender| (contender, SLEEPS));
    let name = String::from("200 tasks that sleep, on 64 threads");
    compare(criterion, name, &Rig::new(64), contenders, sleep);
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
