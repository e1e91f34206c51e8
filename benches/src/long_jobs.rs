//! Everybody on jobs whose tasks are not all of one length, and on tasks that wait.

use std::thread;

use crate::contenders::{BRIDGE, Contender, OURS, Rig, all};
use crate::jobs::{
    CHEAP, Mix, Order, SLEEPS, SLOW, greedy_sleeps, ideal_of_mixed, mixed, sleep, sleep_of, uneven,
};
use crate::overhead::Effort;
use crate::stats::{median, paired, side_by_side};
use crate::work::{Work, steps_for};

/// The table, and by how many percent this crate is behind the best peer where it is most behind.
pub fn measure_uneven(rig: &Rig, effort: &Effort) -> (String, f64) {
    const ITEMS: u64 = 20_000;
    let count = steps_for(1_000);
    let names: Vec<_> = all::<fn(u64) -> u64>().iter().map(|it| it.name).collect();
    let mut columns = Vec::new();
    let mut behind = f64::NEG_INFINITY;
    for order in Order::ALL {
        let work = uneven(ITEMS, order, count);
        let contenders = all();
        let mut runs = runs(rig, &contenders, ITEMS, work);
        let rounds = side_by_side(effort.rounds, &mut runs);
        let ours = names.iter().position(|name| *name == OURS);
        let ours = &rounds[ours.expect("this crate takes part")];
        let peers = contenders
            .iter()
            .zip(&rounds)
            .filter(|(it, _)| it.is_peer());
        let best = peers
            .map(|(_, peer)| 100.0 * (paired(ours, peer, |ours, peer| ours / peer) - 1.0))
            .fold(f64::NEG_INFINITY, f64::max);
        behind = behind.max(best);
        columns.push(rounds.into_iter().map(median).collect::<Vec<f64>>());
    }
    let mut text = String::from("| long tasks |");
    Order::ALL
        .iter()
        .for_each(|order| text += &format!(" {order} |"));
    text += "\n|---|--:|--:|--:|\n";
    text += &rows(&names, &columns);
    (text, behind)
}

type Sleep = fn(u64) -> u64;

/// The table, the share of the ideal that this crate reaches, in percent, and the share that is left when
/// threads have been started and joined and each took the next task at once.
pub fn measure_blocking(effort: &Effort) -> (String, f64, f64) {
    let rig = Rig::new(64);
    let contenders: Vec<Contender<Sleep>> =
        all().into_iter().filter(|it| it.has_threads()).collect();
    let rig = &rig;
    let mut runs = runs(rig, &contenders, SLEEPS, sleep);
    runs.push(Box::new(|| {
        let threads: Vec<_> = (0..64).map(|_| thread::spawn(|| {})).collect();
        threads
            .into_iter()
            .for_each(|it| it.join().expect("no panic"));
    }));
    let rounds = side_by_side(effort.rounds, &mut runs);
    let mut medians: Vec<f64> = rounds.into_iter().map(median).collect();
    let start = medians.pop().unwrap_or_default();
    let greedy = greedy_sleeps(64).as_secs_f64();
    let sum: f64 = (0..SLEEPS).map(|item| sleep_of(item).as_secs_f64()).sum();
    let mut text = format!(
        "| | |\n|---|--:|\n| the sum of the sleeps / 64 | {:.2} |\n",
        1e3 * sum / 64.0
    );
    text += &format!("| 64 threads that lose no time | {:.2} |\n", 1e3 * greedy);
    text += &format!(
        "| 64 bare threads started and joined | {:.2} |\n",
        1e3 * start
    );
    let mut share = 0.0;
    for (contender, seconds) in contenders.iter().zip(medians) {
        text += &format!("| {} | {:.2} |\n", plainly(contender.name), 1e3 * seconds);
        if contender.name == OURS {
            share = 100.0 * sum / 64.0 / seconds;
        }
    }
    let floor = 100.0 * sum / 64.0 / (greedy + start);
    (text, share, floor)
}

/// How many threads a mixed job is run on.
const WIDTHS: [usize; 2] = [2, 8];

/// The table; how many times the ideal this crate takes where it is worst; and by how many percent it is behind
/// `par_bridge` where it is most behind.
pub fn measure_mixed(effort: &Effort) -> (String, f64, f64) {
    let mut head = String::from("| |");
    let mut ideals = String::from("| threads that lose no time |");
    let mut columns = Vec::new();
    let mut names = Vec::new();
    let (mut times, mut behind) = (0.0f64, f64::NEG_INFINITY);
    for (threads, mix) in WIDTHS.iter().flat_map(|it| Mix::ALL.map(|mix| (*it, mix))) {
        let rig = Rig::new(threads);
        let mut contenders = all();
        contenders.retain(Contender::has_threads);
        let mut runs = runs(&rig, &contenders, CHEAP + SLOW, mixed(mix));
        let rounds = side_by_side(effort.rounds, &mut runs);
        drop(runs);
        names = contenders.iter().map(|it| it.name).collect();
        let of = |name| {
            &rounds[names
                .iter()
                .position(|it| *it == name)
                .expect("it is there")]
        };
        let ideal = ideal_of_mixed(threads).as_secs_f64();
        times = times.max(median(of(OURS).clone()) / ideal);
        let more = paired(of(OURS), of(BRIDGE), |ours, theirs| ours / theirs) - 1.0;
        behind = behind.max(100.0 * more);
        head += &format!(" {mix}, {threads} threads |");
        ideals += &format!(" {:.0} |", 1e3 * ideal);
        columns.push(rounds.into_iter().map(median).collect::<Vec<f64>>());
    }
    let mut text = format!("{head}\n|---|{}\n{ideals}\n", "--:|".repeat(columns.len()));
    text += &rows(&names, &columns);
    (text, times, behind)
}

type Run<'a> = Box<dyn FnMut() + 'a>;

/// Each contender on the same job.
fn runs<'a, W: Work>(
    rig: &'a Rig,
    contenders: &'a [Contender<W>],
    items: u64,
    work: W,
) -> Vec<Run<'a>> {
    let run = |contender: &'a Contender<W>| -> Run<'a> {
        Box::new(move || {
            std::hint::black_box((contender.run)(rig, items, work));
        })
    };
    contenders.iter().map(run).collect()
}

/// A row for each contender; `columns` are seconds, the rows milliseconds.
fn rows(names: &[&str], columns: &[Vec<f64>]) -> String {
    let mut text = String::new();
    for (row, name) in names.iter().enumerate() {
        text += &format!("| {} |", plainly(name));
        columns
            .iter()
            .for_each(|column| text += &format!(" {:.1} |", 1e3 * column[row]));
        text += "\n";
    }
    text
}

/// What is a limit is one for tasks of one length only.
fn plainly(name: &str) -> &str {
    name.split(" (").next().unwrap_or(name)
}
