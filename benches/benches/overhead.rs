//! What it costs to run a function on the items of a stream in parallel, for functions from nothing to
//! half a millisecond.

mod common;

use common::{compare, config};
use criterion::{Criterion, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::work::{steps, steps_for};

fn overhead(criterion: &mut Criterion) {
    let rig = Rig::of_this_machine();
    for nanos in [0, 2, 5, 10, 50, 500, 5_000, 50_000, 500_000] {
        let count = steps_for(nanos);
        let contenders = all().into_iter().map(|contender| {
            let items = (5_000_000 / (nanos + contender.cost)).clamp(50, 1_000_000);
            (contender, items)
        });
        let name = format!("overhead of {nanos} ns");
        compare(criterion, name, &rig, contenders, move |item| {
            steps(item, count)
        });
    }
}

criterion_group!(name = benches; config = config(); targets = overhead);
criterion_main!(benches);
