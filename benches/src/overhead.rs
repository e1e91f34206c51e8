//! Everybody on the same work, from none to a millisecond.

use std::collections::HashMap;

use crate::contenders::{Contender, PLAIN, Rig, SPLIT, all};
use crate::stats::{median, nanos, paired, side_by_side};
use crate::work::{Work, plain_loop, steps, steps_for};

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
    /// By work, by contender, by round.
    columns: Vec<Vec<Vec<f64>>>,
}

/// Nanoseconds an item by contender and round, everybody on the same work.
fn side<W: Work>(
    rig: &Rig,
    effort: &Effort,
    contenders: &[Contender<W>],
    each: u64,
    work: W,
) -> Vec<Vec<f64>> {
    let items: Vec<u64> = contenders
        .iter()
        .map(|contender| {
            let share = if contender.name == PLAIN {
                each
            } else {
                each / rig.threads as u64
            };
            // So many that no thread has one more than another.
            (effort.time / (share + contender.cost))
                .max(40)
                .next_multiple_of(2 * rig.threads as u64)
        })
        .collect();
    let mut sums = HashMap::new();
    let expected = items.iter().map(|items| {
        *sums
            .entry(*items)
            .or_insert_with(|| plain_loop(*items, work))
    });
    let expected: Vec<u64> = expected.collect();
    let mut runs: Vec<Box<dyn FnMut() + '_>> = contenders
        .iter()
        .zip(items.iter().zip(expected))
        .map(|(contender, (items, expected))| {
            Box::new(move || {
                let sum = (contender.run)(rig, *items, work);
                assert_eq!(sum, expected, "{} does another job", contender.name);
            }) as _
        })
        .collect();
    let rounds = side_by_side(effort.rounds, &mut runs);
    let each = |(seconds, items): (Vec<f64>, &u64)| {
        let nanos = seconds.into_iter().map(|it| it * 1e9 / *items as f64);
        nanos.collect()
    };
    rounds.into_iter().zip(&items).map(each).collect()
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
    Table {
        names,
        works: columns.iter().map(|it| median(it[0].clone())).collect(),
        columns,
    }
}

impl Table {
    fn rounds(&self, name: &str, work: u64) -> &[f64] {
        let column = WORKS.iter().position(|it| *it == work);
        let row = self.names.iter().position(|it| *it == name);
        &self.columns[column.expect("a work of this length")][row.expect("a contender")]
    }

    pub fn row(&self, name: &str) -> Vec<f64> {
        WORKS.iter().map(|work| self.at(name, *work)).collect()
    }

    pub fn at(&self, name: &str, work: u64) -> f64 {
        median(self.rounds(name, work).to_vec())
    }

    /// How many times more one takes than the other.
    pub fn ratio(&self, name: &str, other: &str, work: u64) -> f64 {
        let (name, other) = (self.rounds(name, work), self.rounds(other, work));
        paired(name, other, |name, other| name / other)
    }

    /// How many nanoseconds one takes more than the other.
    pub fn more(&self, name: &str, other: &str, work: u64) -> f64 {
        let (name, other) = (self.rounds(name, work), self.rounds(other, work));
        paired(name, other, |name, other| name - other)
    }

    /// The work from which on `name` is as quick as the plain loop, between two measured ones by a line.
    pub fn break_even(&self, name: &str) -> f64 {
        let behind = self.row(name).into_iter().zip(&self.works);
        let points: Vec<(f64, f64)> = behind.map(|(ns, work)| (*work, ns - work)).collect();
        let crossing = points.windows(2).rev().find_map(|pair| {
            let ((from, lost), (to, gained)) = (pair[0], pair[1]);
            (lost > 0.0 && gained <= 0.0).then(|| from + (to - from) * lost / (lost - gained))
        });
        match crossing {
            Some(work) => work,
            None if points[0].1 <= 0.0 => 0.0,
            None => f64::INFINITY,
        }
    }

    /// Says so if the machine was too busy with other things: then nothing in the table counts.
    pub fn doubt(&self, threads: usize) -> Option<String> {
        let speedup = self.ratio(PLAIN, SPLIT, 1_000_000);
        (speedup < 0.9 * threads as f64).then(|| {
            format!(
                "Not a quiet machine: {threads} threads are {speedup:.1} times as fast as one, on tasks of 1 ms."
            )
        })
    }

    /// The rows that `is_shown` picks, as a table.
    pub fn markdown(&self, works: &[u64], is_shown: impl Fn(&str) -> bool) -> String {
        let mut text = String::from("| a task's work |");
        works
            .iter()
            .for_each(|work| text += &format!(" {} |", duration(*work)));
        text += "\n|---|";
        works.iter().for_each(|_| text += "--:|");
        for name in self.names.iter().filter(|name| is_shown(name)) {
            text += &format!("\n| {name} |");
            works
                .iter()
                .for_each(|work| text += &format!(" {} |", nanos(self.at(name, *work))));
        }
        text + "\n"
    }
}

/// `5 ns`, `10 µs` and the like.
pub fn duration(nanos: u64) -> String {
    match nanos {
        n if n < 1_000 => format!("{n} ns"),
        n if n < 1_000_000 => format!("{} µs", n / 1_000),
        n => format!("{} ms", n / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contenders::OURS;

    /// The plain loop and this crate, in nanoseconds an item; what is not given takes half as long.
    fn table(ours: &[f64], plain: &[f64]) -> Table {
        let plain = |column: usize| plain.get(column).copied().unwrap_or(WORKS[column] as f64);
        let row = |column: usize| ours.get(column).copied().unwrap_or(plain(column) / 2.0);
        Table {
            names: vec![PLAIN, OURS],
            works: (0..WORKS.len()).map(plain).collect(),
            columns: (0..WORKS.len())
                .map(|column| vec![vec![plain(column)], vec![row(column)]])
                .collect(),
        }
    }

    #[test]
    fn break_even_lies_between_two_works() {
        let table = table(&[2.4, 3.0, 4.2, 5.2], &[0.3, 1.8, 4.1, 5.7]);
        assert!((table.break_even(OURS) - 4.37).abs() < 0.01);
    }

    #[test]
    fn who_is_never_behind_breaks_even_at_once() {
        assert_eq!(table(&[], &[]).break_even(OURS), 0.0);
    }

    #[test]
    fn who_is_always_behind_never_breaks_even() {
        let ours: Vec<f64> = WORKS.iter().map(|work| *work as f64 + 1.0).collect();
        assert_eq!(table(&ours, &[]).break_even(OURS), f64::INFINITY);
    }
}
