//! The whole picture, measured side by side in one run: `REPORT.md` and two charts, beside this package's
//! `Cargo.toml`, and the tables in the README of the crate.
//!
//! ```sh
//! cargo bench -p futureproof-benches --bench report              # some minutes, on a quiet machine
//! cargo bench -p futureproof-benches --bench report -- --quick   # to see that it works
//! ```

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use futureproof_benches::bars::Bars;
use futureproof_benches::chart::{Captions, Line, draw};
use futureproof_benches::contenders::{
    CHANNEL, Contender, FOLD, ORDERED, OURS, PARITER, PLAIN, RETRY, Rig, SPLIT, STATE, all,
};
use futureproof_benches::jobs::{Order, SLEEPS, greedy_sleeps, sleep, sleep_of, uneven};
use futureproof_benches::machine;
use futureproof_benches::overhead::{self, Effort, Table, WORKS};
use futureproof_benches::stats::side_by_side;
use futureproof_benches::work::steps_for;

/// The columns of the short table.
const SHOWN: [u64; 7] = [0, 5, 10, 100, 1_000, 10_000, 100_000];

fn main() -> Result<(), Box<dyn Error>> {
    let is_quick = env::args().any(|arg| arg == "--quick");
    let effort = if is_quick {
        Effort {
            rounds: 3,
            time: 10_000_000,
        }
    } else {
        Effort {
            rounds: 9,
            time: 60_000_000,
        }
    };
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rig = Rig::of_this_machine();
    let overhead = overhead::measure(&rig, &effort);
    let (uneven, uneven_behind) = measure_uneven(&rig, &effort);
    let blocking = measure_blocking(&effort);
    let mut bars = Bars::default();
    judge(&overhead, &mut bars);
    bars.add(
        "uneven tasks, beside the best peer, in each order",
        "≤ 5 % more",
        format!("{uneven_behind:+.1} %"),
        uneven_behind <= 5.0,
    );
    draw_charts(home, &overhead, rig.threads)?;

    let setting = machine::describe(rig.threads)?;
    let mut page = format!(
        "# Measured\n\n{setting}\n\nNanoseconds an item, medians of {} rounds in which everybody has a turn.\n\n",
        effort.rounds
    );
    page += "This crate starts its threads in each run; rayon's and tokio's pools are started beforehand.\n\n## Overhead\n\n";
    page += &overhead.markdown(&WORKS);
    page += "\n![Overhead](overhead.svg)\n\n![Speed-up](speedup.svg)\n\n## Bars\n\n";
    page += &bars.markdown();
    writeln!(
        page,
        "\n## Uneven tasks\n\n20,000 tasks of 1 µs, one in a hundred a hundred times longer; milliseconds.\n\n{uneven}"
    )?;
    writeln!(
        page,
        "## Blocking tasks\n\n{SLEEPS} tasks that sleep 1 to 5 ms, on 64 threads; milliseconds.\n\n{blocking}"
    )?;
    for (title, bench) in [("Latency", "latency"), ("Memory", "memory")] {
        writeln!(page, "## {title}\n\n{}", run(bench)?)?;
    }
    fs::write(home.join("REPORT.md"), page)?;
    let table = format!(
        "{setting}\n\nNanoseconds an item:\n\n{}\n{}",
        overhead.markdown(&SHOWN),
        bars.markdown()
    );
    if is_quick {
        println!("{table}");
    } else {
        insert(&home.join("../README.md"), &table)?;
    }
    Ok(())
}

/// Runs another benchmark, whose output is Markdown.
fn run(bench: &str) -> Result<String, Box<dyn Error>> {
    let args = [
        "bench",
        "--quiet",
        "-p",
        env!("CARGO_PKG_NAME"),
        "--bench",
        bench,
    ];
    let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(args)
        .output()?;
    if !output.status.success() {
        return Err(format!("the benchmark `{bench}` failed").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Replaces what stands between the marks.
fn insert(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let (begin, end) = ("<!-- report -->", "<!-- /report -->");
    let page = fs::read_to_string(path)?;
    let parts = page
        .split_once(begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let (before, after) = parts.ok_or("the marks for the report are missing")?;
    fs::write(path, format!("{before}{begin}\n{text}{end}{after}"))?;
    Ok(())
}

/// The bars that the overhead decides.
fn judge(table: &Table, bars: &mut Bars) {
    let (by_for, fold) = (table.at(OURS, 0), table.at(FOLD, 0));
    bars.add(
        "empty task, `for`",
        "≤ 4 ns",
        format!("{by_for:.1} ns"),
        by_for <= 4.0,
    );
    bars.add(
        "empty task, `fold`",
        "≤ 3 ns",
        format!("{fold:.1} ns"),
        fold <= 3.0,
    );
    for (name, least) in [(CHANNEL, 15.0), (PARITER, 30.0)] {
        let times = table.at(name, 0) / by_for;
        bars.add(
            &format!("empty task, {name}"),
            &format!("≥ {least} times more"),
            format!("{times:.0} times"),
            times >= least,
        );
    }
    let pays = table
        .works
        .iter()
        .zip(table.row(OURS))
        .find(|(work, ours)| ours <= work)
        .map_or(f64::INFINITY, |(work, _)| *work);
    bars.add(
        "work from which on it beats the plain loop",
        "≤ 5 ns",
        format!("≤ {pays:.1} ns"),
        pays <= 5.0,
    );
    for (work, least) in [
        (100, 93.0),
        (1_000, 97.0),
        (10_000, 97.0),
        (100_000, 97.0),
        (1_000_000, 97.0),
    ] {
        let share = 100.0 * table.at(SPLIT, work) / table.at(OURS, work);
        bars.add(
            &format!("throughput of the static split, {work} ns"),
            &format!("≥ {least} %"),
            format!("{share:.1} %"),
            share >= least,
        );
        let peers = table
            .names
            .iter()
            .filter(|name| !name.starts_with("futureproof") && ![PLAIN, SPLIT].contains(name));
        let best = peers
            .map(|name| (table.at(name, work), *name))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((best, name)) = best {
            let more = 100.0 * (table.at(OURS, work) / best - 1.0);
            bars.add(
                &format!("beside the best peer at {work} ns ({name})"),
                "≤ 2 % more",
                format!("{more:+.1} %"),
                more <= 2.0,
            );
        }
    }
    for (name, most) in [(ORDERED, 1.0), (STATE, 5.0), (RETRY, 0.5)] {
        let more = table.at(name, 0) - by_for;
        bars.add(
            &format!("{name}, more than without"),
            &format!("≤ {most} ns"),
            format!("{more:+.1} ns"),
            more <= most,
        );
    }
}

/// The table, and by how many percent this crate is behind the best peer where it is most behind.
fn measure_uneven(rig: &Rig, effort: &Effort) -> (String, f64) {
    const ITEMS: u64 = 20_000;
    let count = steps_for(1_000);
    let names: Vec<_> = all::<fn(u64) -> u64>().iter().map(|it| it.name).collect();
    let mut columns = Vec::new();
    let mut behind = f64::NEG_INFINITY;
    for order in Order::ALL {
        let work = uneven(ITEMS, order, count);
        let contenders = all();
        let mut runs: Vec<Box<dyn FnMut() + '_>> = contenders
            .iter()
            .map(|contender| {
                Box::new(move || {
                    std::hint::black_box((contender.run)(rig, ITEMS, work));
                }) as _
            })
            .collect();
        let column = side_by_side(effort.rounds, &mut runs);
        let ours = column[names
            .iter()
            .position(|name| *name == OURS)
            .expect("this crate takes part")];
        let peers = names
            .iter()
            .zip(&column)
            .filter(|(name, _)| !name.starts_with("futureproof") && ![PLAIN, SPLIT].contains(name));
        let best = peers
            .map(|(_, seconds)| *seconds)
            .fold(f64::INFINITY, f64::min);
        behind = behind.max(100.0 * (ours / best - 1.0));
        columns.push(column);
    }
    let mut text = String::from("| long tasks |");
    Order::ALL
        .iter()
        .for_each(|order| text += &format!(" {order} |"));
    text += "\n|---|--:|--:|--:|\n";
    for (row, name) in names.iter().enumerate() {
        text += &format!("| {name} |");
        columns
            .iter()
            .for_each(|column| text += &format!(" {:.1} |", 1e3 * column[row]));
        text += "\n";
    }
    (text, behind)
}

type Sleep = fn(u64) -> u64;

fn measure_blocking(effort: &Effort) -> String {
    let rig = Rig::new(64);
    let contenders: Vec<Contender<Sleep>> =
        all().into_iter().filter(|it| it.has_threads()).collect();
    let rig = &rig;
    let mut runs: Vec<Box<dyn FnMut() + '_>> = contenders
        .iter()
        .map(|contender| {
            Box::new(move || {
                std::hint::black_box((contender.run)(rig, SLEEPS, sleep));
            }) as _
        })
        .collect();
    let medians = side_by_side(effort.rounds, &mut runs);
    let sum: f64 = (0..SLEEPS).map(|item| sleep_of(item).as_secs_f64()).sum();
    let mut text = format!(
        "| | |\n|---|--:|\n| the sum of the sleeps / 64 | {:.2} |\n",
        1e3 * sum / 64.0
    );
    text += &format!(
        "| 64 threads that lose no time | {:.2} |\n",
        1e3 * greedy_sleeps(64).as_secs_f64()
    );
    for (contender, seconds) in contenders.iter().zip(medians) {
        text += &format!("| {} | {:.2} |\n", contender.name, 1e3 * seconds);
    }
    text
}

fn draw_charts(home: &Path, table: &Table, threads: usize) -> Result<(), Box<dyn Error>> {
    // Nothing takes no time; the axis is logarithmic.
    let works: Vec<f64> = WORKS
        .iter()
        .zip(&table.works)
        .map(|(work, measured)| if *work == 0 { 1.0 } else { *measured })
        .collect();
    let line = |name: &str, value: &dyn Fn(usize) -> f64| Line {
        number: table
            .names
            .iter()
            .filter(|it| !it.starts_with("futureproof"))
            .position(|it| *it == name)
            .unwrap_or(0),
        name: name.replace('`', ""),
        points: works
            .iter()
            .enumerate()
            .map(|(column, work)| (*work, value(column)))
            .collect(),
        is_ours: name == OURS,
    };
    let shown = |name: &&&str| !name.starts_with("futureproof") || **name == OURS;
    let mut overhead = Vec::new();
    let mut speedup = Vec::new();
    for name in table.names.iter().filter(shown) {
        let row = table.row(name);
        if ![PLAIN, SPLIT].contains(name) {
            let mut line = line(name, &|column| {
                row[column] - table.works[column] / threads as f64
            });
            // Beyond that, it is a small difference of large numbers.
            line.points.retain(|(work, _)| *work < 20_000.0);
            overhead.push(line);
        }
        if *name != PLAIN {
            speedup.push(line(name, &|column| table.works[column] / row[column]));
        }
    }
    let captions = Captions {
        title: "What it costs to run a task in parallel and to have its result back",
        x: "a task's work (none is drawn at 1 ns)",
        y: "ns a task, beyond the work shared out",
    };
    draw(
        &home.join("overhead.svg"),
        &captions,
        &overhead,
        1.0..20_000.0,
    )?;
    let captions = Captions {
        title: &format!("Speed-up over a plain loop, {threads} threads"),
        x: "a task's work (none is drawn at 1 ns)",
        y: "times as fast",
    };
    draw(
        &home.join("speedup.svg"),
        &captions,
        &speedup,
        0.01..threads as f64 * 1.3,
    )
}
