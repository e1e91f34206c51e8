//! Everybody on the same work, from none to a millisecond.

use crate::contenders::{Contender, PLAIN, Rig, all};
use crate::stats::{nanos, side_by_side};
use crate::work::{Work, steps, steps_for};

/// How long the tasks are, in nanoseconds.
pub const WORKS: [u64; 13] = [
    0, 2, 4, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 100_000, 1_000_000,
];

/// How thoroughly everything is measured.
pub struct Effort {
    pub rounds: usize,
    /// How long one measurement takes, in nanoseconds.
    pub time: u64,
}

/// Nanoseconds an item, by contender and by work.
pub struct Table {
    pub names: Vec<&'static str>,
    /// What the plain loop takes with each amount of work.
    pub works: Vec<f64>,
    rows: Vec<Vec<f64>>,
}

/// Medians in nanoseconds an item, everybody on the same work.
fn side<W: Work>(
    rig: &Rig,
    effort: &Effort,
    contenders: &[Contender<W>],
    each: u64,
    work: W,
) -> Vec<f64> {
    let expected = (contenders[0].run)(rig, 100, work);
    let items: Vec<u64> = contenders
        .iter()
        .map(|contender| {
            assert_eq!(
                (contender.run)(rig, 100, work),
                expected,
                "{} does another job",
                contender.name
            );
            let share = if contender.name == PLAIN {
                each
            } else {
                each / rig.threads as u64
            };
            (effort.time / (share + contender.cost)).max(40)
        })
        .collect();
    let mut runs: Vec<Box<dyn FnMut() + '_>> = contenders
        .iter()
        .zip(&items)
        .map(|(contender, items)| {
            Box::new(move || {
                std::hint::black_box((contender.run)(rig, *items, work));
            }) as _
        })
        .collect();
    let seconds = side_by_side(effort.rounds, &mut runs);
    seconds
        .iter()
        .zip(&items)
        .map(|(seconds, items)| seconds * 1e9 / *items as f64)
        .collect()
}

pub fn measure(rig: &Rig, effort: &Effort) -> Table {
    let mut columns = Vec::new();
    for each in WORKS {
        let count = steps_for(each);
        columns.push(side(rig, effort, &all(), each, move |item| {
            steps(item, count)
        }));
        eprintln!("{each} ns: done");
    }
    let names: Vec<_> = all::<fn(u64) -> u64>().iter().map(|it| it.name).collect();
    let rows = (0..names.len())
        .map(|row| columns.iter().map(|column| column[row]).collect())
        .collect();
    Table {
        names,
        works: columns.iter().map(|column| column[0]).collect(),
        rows,
    }
}

impl Table {
    pub fn row(&self, name: &str) -> &[f64] {
        let row = self.names.iter().position(|it| *it == name);
        &self.rows[row.expect("a contender of this name")]
    }

    pub fn at(&self, name: &str, work: u64) -> f64 {
        let column = WORKS.iter().position(|it| *it == work);
        self.row(name)[column.expect("a work of this length")]
    }

    pub fn markdown(&self, works: &[u64]) -> String {
        let mut text = String::from("| a task's work |");
        works.iter().for_each(|work| {
            text += &format!(" {} ns |", nanos(*work as f64).trim_end_matches(".0"))
        });
        text += "\n|---|";
        works.iter().for_each(|_| text += "--:|");
        for name in &self.names {
            text += &format!("\n| {name} |");
            works
                .iter()
                .for_each(|work| text += &format!(" {} |", nanos(self.at(name, *work))));
        }
        text + "\n"
    }
}
