//! Most tasks cost nothing, some wait: the slow ones last, or among the others.

mod common;

use common::{compare, config};
use criterion::{Criterion, criterion_group, criterion_main};
use futureproof_benches::contenders::{Contender, Rig, all};
use futureproof_benches::jobs::{CHEAP, Mix, SLOW, mixed};

fn bench(criterion: &mut Criterion) {
    for threads in [2, 8] {
        let rig = Rig::new(threads);
        for mix in Mix::ALL {
            let contenders = all().into_iter().filter(Contender::has_threads);
            let contenders = contenders.map(|contender| (contender, CHEAP + SLOW));
            let name = format!("{mix}, on {threads} threads");
            compare(criterion, name, &rig, contenders, mixed(mix));
        }
    }
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
