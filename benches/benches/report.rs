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
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use futureproof_benches::bars::{Bars, MARK};
use futureproof_benches::chart::{Captions, Line, draw};
use futureproof_benches::contenders::{
    BACK, BARE, CHANNEL, CONTROL, FOLD, KEPT, LAID, ORDERED, OURS, PARITER, PLAIN, RETRY, Rig,
    SPLIT, STATE, STREAM, WARN, WATCHED, all,
};
use futureproof_benches::jobs::{CHEAP, SLEEPS, SLOW, SLOW_SLEEP};
use futureproof_benches::long_jobs::{measure_blocking, measure_mixed, measure_uneven};
use futureproof_benches::machine;
use futureproof_benches::overhead::{self, Effort, Table, WORKS, duration};
use futureproof_benches::stats::{insist_on_near_cores, measured_again};

/// How much longer it may take, so that the cores are near to each other.
const PATIENCE: Duration = Duration::from_secs(240);

/// The columns of the short table.
const SHOWN: [u64; 7] = [0, 5, 10, 100, 1_000, 10_000, 100_000];

/// The rows that the README has as well.
const ROWS: [&str; 5] = [PLAIN, BARE, OURS, CHANNEL, PARITER];

/// What the contenders are.
const ABOUT: &str = "\
futureproof starts its threads in each run. The pools of rayon and tokio are already running.

Each row maps a function over the numbers from 0 and adds up the results. *Static split*: each thread does its half and
returns one sum, so nothing can be faster. *Bare chunks* only moves `Vec`s through a channel and back: the floor for anything
that returns every result. *There and back*, the caller pulls the items and gets them back as well, and what must be noticed after each item is
asked for; *laid down for others*, what was run is also moved to where others find it if the next task hangs: the floor for what this crate
does. \"Reduced\" means that the workers add up, so no result has to travel.";

/// Why what begins so may not be met, and what was tried; with figures of the machine that the report was made on.
const REASONS: [(&[&str], &str); 10] = [
    (
        &["empty task, `for`", "empty task, `fold`"],
        "All that goes from one core to another takes two to five times as long while the host has put the two far apart, as the \
         cache line there and back shows: then items and results decide. Otherwise: an item is pulled with three stores and taken with two, a core commits one in \
         each cycle, and what must be noticed after each item keeps the compiler from saving one. Chunks of 16 to 256 KiB, 2 to 16 \
         of them queued for each worker, chunks that begin at a cache line, and blocks of 128 items that change hands by pointer \
         gained nothing.",
    ),
    (
        &["work from which on"],
        "`next` leaves in memory how far it has come, as whoever calls it may do anything before the next one: about 0.6 ns that \
         `fold` does not have. What a worker has run must be found by others if its next task hangs: so items are moved twice more, \
         and results once, which the bare chunks that are laid down do as well. To begin up to 1,024 instead of 128 at a time made no \
         difference: it is not the lock.",
    ),
    (
        &[
            "1 µs a pull, 1 µs a task",
            "3 µs a pull, 3 µs a task",
            "10 µs a pull, 10 µs a task",
        ],
        "Two cores have exactly as much work as they can do, so all that a third thread on them costs is seen.",
    ),
    (
        &["100 ns a pull, 1 µs a task"],
        "Two cores have 1,100 ns of work for each item, which is 1.10 without any overhead; and a run of 20 ms has to start its \
         threads. The system puts the second one on the core of the first in more than half of the runs, where it waits for 0.5 to \
         4 ms; started together with the first, it fares no better.",
    ),
    (
        &[
            "runs of 100 items of 1 µs, shared pool",
            "runs of 10 items of 10 µs, shared pool",
        ],
        "The system puts both workers on one core or on two, for many runs in a row, for par_bridge and for two bare jobs as \
         well; on one core, the first one does all. Here and in jobs of one item, the caller pulls, so it is woken in the middle; \
         par_bridge's workers pull. Each time that the consumer is woken, it takes a core from a worker, which costs 15 µs. Two jobs know beforehand \
         how long the tasks take; here, six are queued until one has been measured, as they may be large. A consumer that spins \
         for 10 to 40 µs until then gained up to 5 %, one that blocks without yielding first lost 20 %; to wake it at the first \
         result, and workers that yield to it, made no difference when both ran by turns in one program.",
    ),
    (
        &["runs of 100 items of 1 µs, a pool each"],
        "Threads are started and ended for each run; what a rayon pool takes for that is the floor. Threads that end with the last \
         job, rather than when the caller lets go, gained 3 %, and a caller that spins until they have ended lost.",
    ),
    (
        &["results of 64 KiB"],
        "The consumer is the slower half, and its thread also pulls the source and wakes the workers, as it does by hand. \
         Larger chunks bring more at a time back to the allocator, which gives it to the system: with six items, 1.2.",
    ),
    (
        &["100 µs a task", "1 ms a task"],
        "On a pool that runs, as par_bridge's does, a worker takes 0.9 µs from one chunk to the next, 2.3 µs while the cores are far \
         apart, and the caller is a third thread on \
         two cores. Threads of its own start late, as above, and so do bare threads. Workers that do not leave between chunks gained 0.5 %; but \
         then a function that uses rayon itself waits for them.",
    ),
    (
        &["16 threads on two cores", "64 threads on two cores"],
        "Each thread has a chunk, and has it longer than its time slice; so many chunks are queued that none is in a cache when its \
         turn comes. Fewer of them keep workers waiting where there is a core for each.",
    ),
    (
        &["cold start"],
        "Both floors are within a few µs, and the three change places from run to run.",
    ),
];

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
    if !is_quick {
        insist_on_near_cores(PATIENCE);
    }
    let rig = Rig::of_this_machine();
    let mut between_cores = vec![machine::there_and_back(1_000_000)];
    let overhead = overhead::measure(&rig, &effort);
    let (uneven, uneven_behind) = measure_uneven(&rig, &effort);
    let (blocking, share_of_ideal, floor) = measure_blocking(&effort);
    let (mixed, times_ideal, mixed_behind) = measure_mixed(&effort);
    let mut bars = Bars::default();
    judge(&overhead, &mut bars);
    bars.add(
        "uneven tasks, beside the best peer, in each order",
        "≤ 5 % more",
        format!("{uneven_behind:+.1} %"),
        uneven_behind <= 5.0,
    );
    bars.add(
        "blocking tasks on 64 threads, share of the ideal",
        "≥ 97 %",
        format!("{share_of_ideal:.1} %; with 64 threads started and no time lost {floor:.1} %"),
        share_of_ideal >= 97.0,
    );
    bars.add(
        "mixed tasks, times the ideal, in each order and on 2 and 8 threads",
        "≤ 1.3",
        format!("{times_ideal:.2}"),
        times_ideal <= 1.3,
    );
    bars.add(
        "mixed tasks, beside `par_bridge`, in the same jobs",
        "≤ 5 % more",
        format!("{mixed_behind:+.1} %"),
        mixed_behind <= 5.0,
    );
    let mut sections = String::new();
    let mut bars = bars.rows();
    for (title, bench) in [
        ("Shapes", "shapes"),
        ("Latency", "latency"),
        ("Memory", "memory"),
    ] {
        between_cores.push(machine::there_and_back(1_000_000));
        let text = run(bench)?;
        let (tables, judged) = text.split_once(MARK).ok_or("no bars")?;
        writeln!(sections, "## {title}\n\n{}\n", tables.trim())?;
        writeln!(bars, "{}", judged.trim())?;
    }
    between_cores.push(machine::there_and_back(1_000_000));
    let bars = format!("{}{}\n", Bars::HEAD, bars.trim_end());

    let mut setting = machine::describe(rig.threads)?;
    if let Some(doubt) = overhead.doubt(rig.threads) {
        eprintln!("{doubt}");
        write!(setting, "\n\n**{doubt}**")?;
    }
    between_cores.sort_by(f64::total_cmp);
    let all = between_cores.iter().map(|it| format!("{it:.0}"));
    let all: Vec<String> = all.collect();
    write!(
        setting,
        "\n\nA cache line takes {} ns from one core to the other and back, measured now and then: the host moves them. {}",
        all.join(", "),
        measured_again()
    )?;
    let mut page = format!(
        "# Measured\n\n{setting}\n\nNanoseconds per item, medians of {} rounds. In each round, every contender runs once.\n\n{ABOUT}\n\n## Overhead\n\n",
        effort.rounds
    );
    page += &overhead.markdown(&WORKS, |_| true);
    page += "\n![Overhead](overhead.svg)\n\n![Speed-up](speedup.svg)\n\n## Goals\n\n";
    page += &bars;
    page += &reasons(&bars);
    writeln!(
        page,
        "\n## Uneven tasks\n\n20,000 tasks of 1 µs, one in a hundred a hundred times longer; milliseconds.\n\n{uneven}"
    )?;
    writeln!(
        page,
        "## Blocking tasks\n\n{SLEEPS} tasks that sleep 1 to 5 ms, on 64 threads; milliseconds.\n\n{blocking}"
    )?;
    writeln!(
        page,
        "## Mixed tasks\n\n{CHEAP} tasks that cost nothing and {SLOW} that wait for {} ms; milliseconds.\n\n{mixed}",
        SLOW_SLEEP.as_millis()
    )?;
    page += &sections;
    let table = format!(
        "{setting}\n\nNanoseconds per item:\n\n{}",
        overhead.markdown(&SHOWN, |name| ROWS.contains(&name))
    );
    if is_quick {
        // Figures of a quick run are not kept.
        println!("{page}");
        draw_charts(&env::temp_dir(), &overhead, rig.threads)?;
    } else {
        fs::write(home.join("REPORT.md"), page)?;
        draw_charts(home, &overhead, rig.threads)?;
        insert(&home.join("../README.md"), &table)?;
    }
    Ok(())
}

/// A list of the bars that are not met and have a reason.
fn reasons(bars: &str) -> String {
    let missed = bars.lines().filter(|line| line.contains("**not met**"));
    let missed = missed.filter_map(|line| line.trim_start_matches("| ").split(" | ").next());
    let missed: Vec<&str> = missed.collect();
    let mut text = String::new();
    for (begins, reason) in REASONS {
        let is_meant = |what: &&str| begins.iter().any(|begin| what.starts_with(begin));
        let meant: Vec<&str> = missed.iter().copied().filter(is_meant).collect();
        if !meant.is_empty() {
            text += &format!("- *{}*: {reason}\n", meant.join("*; *"));
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("\nWhy some are not met, and what was tried:\n\n{text}")
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
        .stderr(Stdio::inherit())
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
    let bare = table.at(BACK, 0);
    for (name, how, most) in [
        (OURS, "`for`", 2.5),
        (FOLD, "`fold`", 2.3),
        (STREAM, "`into_stream`", 10.0),
    ] {
        let each = table.at(name, 0);
        bars.add(
            &format!("empty task, {how}"),
            &format!("≤ {most} ns"),
            format!("{each:.1} ns, bare chunks there and back {bare:.1} ns"),
            each <= most,
        );
    }
    for (name, least) in [(CHANNEL, 15.0), (PARITER, 30.0)] {
        let times = table.ratio(name, OURS, 0);
        bars.add(
            &format!("empty task, {name}"),
            &format!("≥ {least} times more"),
            format!("{times:.0} times"),
            times >= least,
        );
    }
    let ways = [OURS, FOLD, BACK, LAID];
    let [pays, fold_pays, bare_pays, laid_pays] = ways.map(|name| table.break_even(name));
    bars.add(
        "work from which on it beats the plain loop",
        "≤ 4 ns",
        format!(
            "{pays:.1} ns, `fold` {fold_pays:.1} ns; bare chunks there and back {bare_pays:.1} ns, laid down for others \
             {laid_pays:.1} ns"
        ),
        pays <= 4.0,
    );
    for (work, least) in [
        (100, 93.0),
        (1_000, 97.0),
        (10_000, 97.0),
        (100_000, 97.0),
        (1_000_000, 97.0),
    ] {
        let share = 100.0 * table.ratio(SPLIT, OURS, work);
        bars.add(
            &format!("throughput of the static split, {}", duration(work)),
            &format!("≥ {least} %"),
            format!("{share:.1} %"),
            share >= least,
        );
        for (job, is_stream) in [
            ("stream of results", true),
            ("reduction on the workers", false),
        ] {
            let best = all::<fn(u64) -> u64>()
                .iter()
                .filter(|it| it.is_stream == is_stream && it.is_peer())
                .map(|it| (table.at(it.name, work), it.name))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, name)) = best {
                let behind = |who| 100.0 * (table.ratio(who, name, work) - 1.0);
                let (more, bare) = (behind(OURS), behind(BARE));
                bars.add(
                    &format!("beside the best {job} at {} ({name})", duration(work)),
                    "≤ 2 % more",
                    format!("{more:+.1} %, bare chunks {bare:+.1} %"),
                    more <= 2.0,
                );
            }
        }
    }
    for (name, most) in [
        (KEPT, 3.0),
        (ORDERED, 1.0),
        (STATE, 5.0),
        (RETRY, 0.5),
        (WATCHED, 0.5),
        (WARN, 5.0),
        (CONTROL, 1.0),
    ] {
        let more = table.more(name, OURS, 0);
        bars.add(
            &format!("{name}, more than without"),
            &format!("≤ {most} ns"),
            format!("{more:+.1} ns"),
            more <= most,
        );
    }
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
        if ![PLAIN, SPLIT, BARE].contains(name) {
            let mut line = line(name, &|column| {
                row[column] - table.works[column] / threads as f64
            });
            // Beyond that, it is a small difference of large numbers.
            line.points.retain(|(work, _)| *work < 20_000.0);
            overhead.push(line);
        }
        if ![PLAIN, BARE].contains(name) {
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
