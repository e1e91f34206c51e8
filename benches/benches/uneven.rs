//! One task in a hundred takes a hundred times as long as the others: at the end, at the beginning, anywhere.

mod common;

use common::{compare, config};
use criterion::{Criterion, criterion_group, criterion_main};
use futureproof_benches::contenders::{Rig, all};
use futureproof_benches::jobs::{Order, uneven};
use futureproof_benches::work::steps_for;

fn bench(criterion: &mut Criterion) {
    const ITEMS: u64 = 20_000;
    let rig = Rig::of_this_machine();
    let count = steps_for(1_000);
    for order in Order::ALL {
        let contenders = all().into_iter().map(|contender| (contender, ITEMS));
        let work = uneven(ITEMS, order, count);
        compare(
            criterion,
            format!("uneven, {order}"),
            &rig,
            contenders,
            work,
        );
    }
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
