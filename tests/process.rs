//! Functions in child processes: whatever a child does, each task has its outcome and nothing is left behind.
//!
//! The children are this very program, so it has a `main` of its own instead of the test harness.
//! `FUTUREPROOF_TASKS` is how many tasks the storm has, `FUTUREPROOF_SIGNALS` how many signals of each kind are sent.

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
}

#[cfg(target_os = "linux")]
#[path = "common/lines.rs"]
mod lines;

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{BufRead, BufReader, Read};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};
    use std::{env, fs, process, thread};

    use futureproof::prelude::*;
    use futureproof::process::{Error, Isolate, isolate};
    use rustix::process::Signal;

    const SCENARIO: &str = "FUTUREPROOF_SCENARIO";
    const LOG: &str = "FUTUREPROOF_LOG";
    const TASKS: &str = "FUTUREPROOF_TASKS";
    const SIGNALS: &str = "FUTUREPROOF_SIGNALS";
    /// Tells the processes of one scenario from all others.
    const TOKEN: &str = "FUTUREPROOF_TOKEN";
    /// Arguments of children that do something before they serve: start a program, or sleep if the file is there.
    const HOLD: &str = "hold";
    const SLOW: &str = "slow";
    /// No test takes this long.
    const HANGS: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(100);
    /// More than a socket buffers.
    const LARGE: usize = 8 << 20;

    type Failure = Error<String>;

    /// What a task does in its child: `WORD ARGUMENT`. What it gives begins with the child's id.
    #[expect(clippy::zombie_processes, reason = "one is left on purpose")]
    fn act(calls: &AtomicU64, order: &str) -> Result<String, String> {
        let calls = calls.fetch_add(1, Ordering::Relaxed) + 1;
        let (word, argument) = order.split_once(' ').unwrap_or((order, ""));
        let pid = process::id().to_string();
        match word {
            "pid" => Ok(pid),
            "calls" => Ok(calls.to_string()),
            "length" => Ok(argument.len().to_string()),
            "fail" => Err(argument.to_owned()),
            "panic" => panic!("{argument}"),
            "abort" => process::abort(),
            "exit" => process::exit(argument.parse().unwrap()),
            "hang" => {
                mark(argument);
                loop {
                    thread::sleep(HANGS);
                }
            }
            "spin" => {
                mark(argument);
                loop {
                    std::hint::spin_loop();
                }
            }
            // Fails once all others have begun.
            "follow" => {
                until("their start", || {
                    argument.split(' ').all(|path| Path::new(path).exists())
                });
                Err(order.to_owned())
            }
            "slow" => {
                mark(argument);
                thread::sleep(SHORT);
                Ok(pid)
            }
            // Twice, as Rust's own handler takes the first SIGSEGV for a fault that will come again.
            "signal" => loop {
                let status = Command::new("kill").args([argument, &pid]).status();
                assert!(status.unwrap().success());
            },
            "eat" => {
                let bytes = argument.parse().unwrap();
                Ok(vec![1u8; bytes]
                    .iter()
                    .map(|n| usize::from(*n))
                    .sum::<usize>()
                    .to_string())
            }
            "print" => {
                println!("{argument}");
                print!("and no newline");
                Ok(pid)
            }
            "read" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).unwrap();
                Ok(text)
            }
            // Its group, and its own id, which is the group's.
            "group" => {
                let stat = fs::read_to_string("/proc/self/stat").unwrap();
                let group = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap();
                Ok(format!("{group} {pid}"))
            }
            "nest" => {
                let name = if argument.is_empty() {
                    "other"
                } else {
                    argument
                };
                let inner = isolate(name, |n: &u32| Ok::<u32, String>(*n)).args(["x"]);
                let inner = inner.start().unwrap();
                inner
                    .call(&1)
                    .map(|n| n.to_string())
                    .map_err(|error| error.to_string())
            }
            "list" => {
                let output = Command::new(env::current_exe().unwrap())
                    .arg("--list")
                    .output()
                    .unwrap();
                Ok(String::from_utf8(output.stdout).unwrap())
            }
            "stop" => {
                rustix::process::kill_process(rustix::process::getpid(), Signal::STOP).unwrap();
                Ok(pid)
            }
            // Starts a program and goes on, or waits for it.
            "leave" | "await" => {
                let mut sleep = Command::new("sleep").arg("300").spawn().unwrap();
                if !argument.is_empty() {
                    fs::write(argument, sleep.id().to_string()).unwrap();
                }
                if word == "await" {
                    sleep.wait().unwrap();
                }
                Ok(pid)
            }
            // Both copies return.
            "fork" => {
                fork::fork().unwrap();
                Ok(argument.to_owned())
            }
            // On SIGTERM it leaves a second mark, and ends if that is what it is told.
            "tidy" | "stubborn" => {
                let [begun, asked] = argument.split_once(' ').map(|(a, b)| [a, b]).unwrap();
                let asked = asked.to_owned();
                let ends = word == "tidy";
                let on_term = move || {
                    fs::write(&asked, "").unwrap();
                    if ends {
                        process::exit(0);
                    }
                };
                ctrlc::set_handler(on_term).unwrap();
                mark(begun);
                loop {
                    thread::sleep(HANGS);
                }
            }
            // The first time it hangs, and leaves a mark.
            "once" => {
                if !Path::new(argument).exists() {
                    fs::write(argument, "").unwrap();
                    thread::sleep(HANGS);
                }
                Ok(pid)
            }
            _ => Err(format!("no such order: {order}")),
        }
    }

    /// Tells whoever waits for it that a task has begun.
    fn mark(path: &str) {
        if !path.is_empty() {
            fs::write(path, process::id().to_string()).unwrap();
        }
    }

    fn actor() -> Isolate<String, String, String> {
        let calls = AtomicU64::new(0);
        isolate("act", move |order: &String| act(&calls, order))
    }

    /// Some are made to fail on their way.
    #[derive(Debug, PartialEq)]
    enum Fragile {
        Good,
        UnreadableByPanic,
        Unreadable,
        UnwritableByPanic,
        Unwritable,
    }

    use Fragile::*;

    impl serde::Serialize for Fragile {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self {
                Good => serializer.serialize_u8(0),
                UnreadableByPanic => serializer.serialize_u8(1),
                Unreadable => serializer.serialize_u8(2),
                UnwritableByPanic => panic!("panics when written"),
                Unwritable => Err(serde::ser::Error::custom("why not written")),
            }
        }
    }

    impl<'de> serde::Deserialize<'de> for Fragile {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match <u8 as serde::Deserialize>::deserialize(deserializer)? {
                0 => Ok(Good),
                1 => panic!("panics when read"),
                _ => Err(serde::de::Error::custom("why not read")),
            }
        }
    }

    /// Gives what it is told to.
    fn fragile() -> Isolate<(Fragile, u8), (u32, Fragile), String> {
        isolate("fragile", |(_, output): &(Fragile, u8)| {
            let outputs = [Good, UnreadableByPanic, Unreadable, UnwritableByPanic];
            let output = outputs.into_iter().nth((*output).into());
            Ok((process::id(), output.unwrap_or(Unwritable)))
        })
    }

    fn is_zero(n: &u8) -> bool {
        *n == 0
    }

    /// A format that does not name its fields reads `b` as `a`.
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Shape {
        #[serde(default, skip_serializing_if = "is_zero")]
        a: u8,
        b: Vec<u8>,
        c: Option<Option<u8>>,
        #[serde(flatten)]
        rest: serde_json::Map<String, serde_json::Value>,
    }

    fn shape(c: Option<Option<u8>>) -> Shape {
        let rest = serde_json::json!({"x": [null, 1.5, {}], "y": "z"});
        let rest = rest.as_object().unwrap().clone();
        let b = vec![3, 1];
        Shape { a: 0, b, c, rest }
    }

    /// Gives the shape back, with more than `None` in it if `a` is not zero.
    fn echo() -> Isolate<Shape, Shape, String> {
        isolate("echo", |given: &Shape| match given.a {
            0 => Ok(given.clone()),
            _ => Ok(shape(Some(None))),
        })
    }

    /// Ends its child as it goes, but not whoever receives it.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Bomb(u32, #[serde(skip)] bool);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.1 {
                process::abort();
            }
        }
    }

    fn bomb() -> Isolate<u8, Bomb, String> {
        isolate("bomb", |_: &u8| Ok(Bomb(process::id(), true)))
    }

    fn double(n: &u32) -> Result<u32, String> {
        Ok(2 * n)
    }

    fn triple(n: &u32) -> Result<u32, String> {
        Ok(3 * n)
    }

    fn doubled() -> Isolate<u32, u32, String> {
        isolate("double", double)
    }

    fn order(text: &str) -> String {
        text.to_owned()
    }

    /// Whether a thread of the process runs: the files are open until the last one is gone.
    fn is_alive(pid: &str) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            return false;
        };
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            state.is_some_and(|state| !"ZX".contains(state))
        })
    }

    /// Waits for what must come.
    fn until(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < HANGS / 6, "{what} never came");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn children() -> Vec<String> {
        let mut found = Vec::new();
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let path = task.unwrap().path().join("children");
            let text = fs::read_to_string(path).unwrap_or_default();
            found.extend(text.split_whitespace().map(str::to_owned));
        }
        found
    }

    fn descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn scratch(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("futureproof-{}-{name}", process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    /// The outcome of each order, in order.
    fn outcomes(
        actor: Isolate<String, String, String>,
        orders: &[&str],
    ) -> Vec<Result<String, Failure>> {
        let run = orders
            .iter()
            .map(|text| order(text))
            .futureproof(Ignore)
            .num_threads(2)
            .ordered();
        run.map_tasks(actor.start().unwrap().into_fn())
            .map(|task| match task {
                Ok(task) => Ok(task.output),
                Err(error) => Err(error.error().expect("the wrapper does not panic").clone()),
            })
            .collect()
    }

    fn outputs_and_errors_come_back() {
        let found = outcomes(actor(), &["length abc", "fail alas"]);
        assert_eq!(found, [Ok(order("3")), Err(Error::Task(order("alas")))]);
    }

    fn each_end_of_a_child_is_told_by_signal_or_code() {
        let ends = ["abort", "signal -SEGV", "signal -KILL", "exit 3", "exit 0"];
        let expected = [
            (Some(6), None),
            (Some(11), None),
            (Some(9), None),
            (None, Some(3)),
            (None, Some(0)),
        ];
        for (found, expected) in outcomes(actor(), &ends).into_iter().zip(expected) {
            match found {
                Err(Error::Crashed { pid, signal, code }) => {
                    assert_eq!((signal, code), expected);
                    assert!(!is_alive(&pid.to_string()));
                }
                other => panic!("{expected:?}: {other:?}"),
            }
        }
    }

    fn a_panic_is_told_and_its_child_lives_on() {
        let actor = actor().start().unwrap();
        let pid = actor.call(&order("pid")).unwrap();
        let panicked = actor.call(&order("panic oh no")).unwrap_err();
        let text = panicked.to_string();
        assert!(
            text.starts_with("the function panicked: oh no, at tests/process.rs:"),
            "{text}"
        );
        assert_eq!(actor.call(&order("pid")), Ok(pid));
    }

    fn a_memory_hog_costs_one_task() {
        let found = outcomes(
            actor().memory_limit(256 << 20),
            &["eat 1000000000", "eat 1000"],
        );
        assert!(
            matches!(
                found[0],
                Err(Error::Crashed {
                    signal: Some(6),
                    ..
                })
            ),
            "{found:?}"
        );
        assert_eq!(found[1], Ok(order("1000")));
    }

    fn a_late_task_is_killed_and_the_next_one_runs() {
        let actor = actor().timeout(SHORT).start().unwrap();
        for hang in ["hang", "spin"] {
            let pid = actor.call(&order("pid")).unwrap();
            let start = Instant::now();
            let late = actor.call(&order(hang)).unwrap_err();
            let elapsed = start.elapsed();
            assert_eq!(late, Error::TimedOut { after: SHORT });
            assert!(elapsed >= SHORT && elapsed < HANGS / 6, "{elapsed:?}");
            println!("    a task with a limit of {SHORT:?} came back after {elapsed:?}");
            assert!(!is_alive(&pid));
            assert_ne!(actor.call(&order("pid")).unwrap(), pid);
        }
    }

    fn twenty_tasks_of_which_half_hang_or_crash_are_twenty_outcomes() {
        let kinds = ["hang", "signal -SEGV", "length 1", "fail 1"];
        let orders: Vec<_> = kinds.into_iter().cycle().take(20).collect();
        let found = outcomes(actor().timeout(SHORT), &orders);
        assert_eq!(found.len(), 20);
        for (found, order) in found.iter().zip(orders) {
            let is_right = match order {
                "hang" => matches!(found, Err(Error::TimedOut { .. })),
                "signal -SEGV" => matches!(
                    found,
                    Err(Error::Crashed {
                        signal: Some(11),
                        ..
                    })
                ),
                "fail 1" => matches!(found, Err(Error::Task(_))),
                _ => found.is_ok(),
            };
            assert!(is_right, "{order}: {found:?}");
        }
    }

    fn a_child_serves_so_many_tasks_with_the_state_it_began_with() {
        let actor = actor().max_tasks(3).start().unwrap();
        let calls = |_| actor.call(&order("calls")).unwrap();
        let found: Vec<_> = (0..7).map(calls).collect();
        assert_eq!(found, ["1", "2", "3", "1", "2", "3", "1"]);
    }

    fn the_largest_limits_are_none() {
        let longest = Duration::MAX;
        let actor = actor().start_timeout(longest).timeout(longest);
        let actor = actor.max_tasks(u64::MAX);
        let found = outcomes(actor.memory_limit(u64::MAX), &["length 1"]);
        assert_eq!(found, [Ok(order("1"))]);
    }

    fn a_function_can_be_told_from_another_in_a_log() {
        let isolate = actor().max_tasks(7);
        let texts = [
            format!("{isolate:?}"),
            format!("{:?}", isolate.start().unwrap()),
        ];
        for (text, name) in texts.iter().zip(["Isolate {", "Isolated {"]) {
            assert!(text.starts_with(name), "{text}");
            assert!(
                text.contains("name: \"act\"") && text.contains("max_tasks: 7"),
                "{text}"
            );
        }
    }

    fn a_child_that_dies_without_a_task_is_replaced() {
        let actor = actor().start().unwrap();
        let pid = actor.call(&order("pid")).unwrap();
        assert!(
            Command::new("kill")
                .args(["-KILL", &pid])
                .status()
                .unwrap()
                .success()
        );
        until("its end", || !is_alive(&pid));
        assert_ne!(actor.call(&order("pid")).unwrap(), pid);
    }

    fn what_a_task_prints_goes_to_standard_error() {
        let output = scenario("print").output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stdout, "done\n");
        assert!(
            stderr.contains("noise") && stderr.contains("and no newline"),
            "{stderr}"
        );
    }

    fn a_task_that_reads_standard_input_finds_it_empty() {
        assert_eq!(outcomes(actor(), &["read"]), [Ok(String::new())]);
    }

    fn large_items_come_through() {
        let text = format!("length {}", "x".repeat(20 << 20));
        assert_eq!(
            outcomes(actor(), &[&text, "length 1"]),
            [Ok((20 << 20).to_string()), Ok(order("1"))]
        );
    }

    fn a_late_task_is_tried_again() {
        let mark = scratch("once");
        let once = format!("once {}", mark.display());
        let actor = actor().timeout(Duration::from_millis(500)).start().unwrap();
        let run = [once]
            .into_iter()
            .futureproof(Raise)
            .num_threads(1)
            .map_tasks(actor.into_fn());
        let mut run = run
            .retry_if(|error: &Failure| matches!(error, Error::TimedOut { .. }))
            .retry(|| [Duration::ZERO]);
        let task = run.next().unwrap();
        fs::remove_file(mark).unwrap();
        assert!(task.is_ok(), "{task:?}");
        assert!(run.next().is_none());
    }

    /// Two tasks that never end, one busy and one asleep, and paths that are there once they have begun.
    fn endless() -> [(String, PathBuf); 2] {
        ["hang", "spin"].map(|word| {
            let path = scratch(word);
            (format!("{word} {}", path.display()), path)
        })
    }

    fn await_start(endless: &[(String, PathBuf)]) {
        for (_, path) in endless {
            until("a task's start", || path.exists());
            fs::remove_file(path).unwrap();
        }
    }

    /// How long it took, which is not long, to end a run with all its children.
    fn ended(start: Instant) {
        let elapsed = start.elapsed();
        println!("    the end took {elapsed:?}");
        assert!(elapsed < HANGS / 6, "{elapsed:?}");
        assert_eq!(children(), [""; 0]);
    }

    fn a_call_that_a_cancel_has_ended_says_so() {
        let token = CancellationToken::new();
        let endless = endless();
        let hang = endless[0].0.clone();
        let actor = actor().start().unwrap();
        let (told, found) = std::sync::mpsc::channel();
        let run = [hang].into_iter().futureproof(Ignore).cancel_on(&token);
        let mut run = run.map_tasks(move |order: &String| {
            told.send(actor.call(order)).unwrap();
            Ok::<_, String>(())
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                await_start(&endless[..1]);
                token.cancel();
            });
            assert!(run.next().is_none());
        });
        assert!(matches!(found.recv(), Ok(Err(Error::Cancelled))));
    }

    /// Children are looked at now and then; that is not the end of their time.
    fn a_task_has_all_the_time_that_it_is_given() {
        let actor = actor().grace(SHORT / 10).timeout(HANGS).start().unwrap();
        let path = scratch("all-the-time");
        actor.call(&format!("slow {}", path.display())).unwrap();
        fs::remove_file(path).unwrap();
    }

    fn a_cancel_kills_what_runs() {
        let token = CancellationToken::new();
        let endless = endless();
        let [(hang, _), (spin, _)] = endless.clone();
        // One child is gone before the cancel: that is not to keep the others from being found.
        let orders = [order("pid"), hang, order("exit 3"), spin];
        let run = orders.into_iter().futureproof(Ignore).chunk_size(1);
        let run = run.num_threads(2).cancel_on(&token);
        let mut run = run.map_tasks(actor().start().unwrap().into_fn());
        assert!(run.next().unwrap().is_ok());
        await_start(&endless);
        let start = Instant::now();
        token.cancel();
        assert!(run.next().is_none());
        drop(run);
        ended(start);
    }

    /// A run of which one task fails, while two run that never end.
    fn failing(
        policy: ErrorPolicy,
    ) -> impl Iterator<Item = Result<Task<String, String>, TaskError<String, Failure>>> {
        let [(hang, path), (spin, other)] = endless();
        let follow = format!("follow {} {}", path.display(), other.display());
        let orders = [hang.clone(), spin.clone(), follow];
        let run = orders.into_iter().futureproof(policy);
        let run = run.chunk_size(1).num_threads(3);
        let mut run = run.map_tasks(actor().start().unwrap().into_fn());
        let failed = run.next();
        await_start(&[(hang, path), (spin, other)]);
        failed.into_iter().chain(run)
    }

    fn a_drop_kills_what_runs() {
        let mut run = failing(Ignore);
        assert!(run.next().unwrap().is_err());
        let start = Instant::now();
        drop(run);
        ended(start);
    }

    fn a_run_that_is_left_at_its_first_failure_is_killed() {
        let mut start = None;
        let mut leave = || {
            for task in failing(Raise) {
                start = Some(Instant::now());
                task?;
            }
            Ok::<_, TaskError<String, Failure>>(())
        };
        assert!(leave().is_err());
        ended(start.unwrap());
    }

    /// As the first function, between two others, and as the last; a failure in any of them ends those that hang.
    fn a_stage_may_run_in_children() {
        let act = || actor().start().unwrap().into_fn();
        let here = |order: &String| Ok::<_, Failure>(order.clone());
        let orders = || ["length four", "fail why", "abort", "length three"].map(order);
        let run = orders().into_iter().futureproof(Ignore).ordered();
        let run = run.num_threads(2).stage(here).num_threads(2);
        let run = run
            .stage(act())
            .map_tasks(|length: &String| Ok::<_, Failure>(length.len()));
        let texts: Vec<String> = run
            .map(|task| match task {
                Ok(task) => format!("{} {}", task.input, task.output),
                Err(error) => format!("{} {} {}", error.input(), error.stage(), error.cause()),
            })
            .collect();
        assert_eq!(texts[0], "length four 1");
        assert_eq!(texts[1], "fail why 1 why");
        assert!(texts[2].starts_with("abort 1 "), "{}", texts[2]);
        assert_eq!(texts[3], "length three 1");
        // The first stage's child hangs, and the last one fails.
        let path = scratch("stage");
        let orders = [format!("hang {}", path.display()), order("pid")];
        let told = path.clone();
        let check = move |_: &String| {
            until("the child that hangs", || told.exists());
            Err::<(), _>(Error::Task(order("no more")))
        };
        let run = orders.into_iter().futureproof(Raise).chunk_size(1);
        let mut run = run.num_threads(2).stage(act()).map_tasks(check);
        let error = run.next().unwrap().unwrap_err();
        assert_eq!((error.index(), error.stage()), (1, 1));
        let start = Instant::now();
        drop(run);
        ended(start);
        fs::remove_file(path).unwrap();
    }

    fn a_deadline_kills_what_runs() {
        let endless = endless();
        let orders = endless.clone().map(|(order, _)| order);
        let run = orders.into_iter().futureproof(Ignore).chunk_size(1);
        let run = run.num_threads(2).deadline(Duration::from_millis(300));
        let mut run = run.map_tasks(actor().timeout(HANGS).start().unwrap().into_fn());
        assert!(run.next().is_none());
        let start = Instant::now();
        drop(run);
        ended(start);
        for (_, path) in endless {
            let _ = fs::remove_file(path);
        }
    }

    fn a_deadline_kills_though_nobody_asks_for_the_next_task() {
        let orders = ["pid", "hang"].map(order);
        let run = orders.into_iter().futureproof(Ignore).chunk_size(1);
        let run = run.num_threads(2).deadline(Duration::from_millis(500));
        let mut run = run.map_tasks(actor().start().unwrap().into_fn());
        assert!(run.next().unwrap().is_ok());
        // The other one's child dies, and its task fails.
        let progress = run.progress();
        until("its end", || progress.snapshot().failed() == 1);
        drop(run);
        assert_eq!(children(), [""; 0]);
    }

    fn what_runs_when_a_run_is_taken_to_pieces_is_waited_for() {
        let mark = scratch("slow");
        let orders = [order("pid"), format!("slow {}", mark.display())];
        let run = orders.into_iter().futureproof(Ignore).chunk_size(1);
        let mut run = run
            .num_threads(2)
            .map_tasks(actor().start().unwrap().into_fn());
        assert!(run.next().unwrap().is_ok());
        await_start(&[(String::new(), mark)]);
        let rest = run.into_remainder();
        assert!(
            rest.finished.len() == 1 && rest.finished[0].is_ok(),
            "{rest:?}"
        );
    }

    /// A number that looks random, for `n`.
    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
    }

    fn count(variable: &str, otherwise: u64) -> u64 {
        env::var(variable).map_or(otherwise, |count| count.parse().unwrap())
    }

    /// A number that no other process has.
    fn token() -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        format!("{}-{}", process::id(), now.unwrap().as_nanos())
    }

    /// The processes that bear the token, but for this one.
    fn bearers(token: &str) -> Vec<String> {
        let line = format!("{TOKEN}={token}");
        let own = process::id().to_string();
        let bears = |pid: &String| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|byte| *byte == 0)
                .any(|it| it == line.as_bytes())
        };
        let files = fs::read_dir("/proc").unwrap().flatten();
        let pids = files.map(|file| file.file_name().into_string().unwrap());
        pids.filter(|pid| pid.parse::<u32>().is_ok() && *pid != own && bears(pid))
            .collect()
    }

    fn a_storm_of_crashes_and_hangs_loses_nothing_and_leaves_nothing() {
        let token = token();
        let output = scenario("storm").env(TOKEN, &token).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        print!("{}", String::from_utf8_lossy(&output.stdout));
        until("the end of all", || bearers(&token).is_empty());
    }

    const KINDS: [&str; 10] = [
        "hang",
        "stop",
        "abort",
        "signal -SEGV",
        "exit 3",
        "leave",
        "fork x",
        "length",
        "panic x",
        "fail x",
    ];

    fn storm() {
        let count = count(TASKS, 400);
        // The first use of some things opens descriptors that stay.
        outcomes(actor(), &["pid", "pid"]);
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let before = (descriptors(), threads());
        let kind = |n: u64| KINDS.get(hash(n) as usize % 50).copied().unwrap_or("pid");
        let large = format!("length {}", "x".repeat(1 << 20));
        let actor = actor().timeout(Duration::from_millis(50)).max_tasks(100);
        let run = (0..count)
            .map(|n| match kind(n) {
                "length" => large.clone(),
                kind => order(kind),
            })
            .futureproof(Ignore)
            .num_threads(2);
        let mut seen = vec![false; count as usize];
        let [mut late, mut crashed] = [0; 2];
        for task in run.map_tasks(actor.start().unwrap().into_fn()) {
            let (index, outcome) = match &task {
                Ok(task) => (task.index, Ok(&task.output[..])),
                Err(error) => (error.index(), Err(error.error().unwrap())),
            };
            assert!(!std::mem::replace(&mut seen[index as usize], true));
            match (kind(index), outcome) {
                ("hang" | "stop", Err(Error::TimedOut { .. })) => late += 1,
                (kind, Err(Error::Crashed { signal, code, .. })) => {
                    crashed += 1;
                    let end = match kind {
                        "abort" => (Some(6), None),
                        "signal -SEGV" => (Some(11), None),
                        "exit 3" => (None, Some(3)),
                        other => panic!("{index}: {other} crashed"),
                    };
                    assert_eq!((*signal, *code), end);
                }
                // On a busy machine any task may be late.
                (_, Err(Error::TimedOut { .. })) => {}
                ("pid" | "leave", Ok(_)) | ("fork x", Ok("x")) | ("length", Ok("1048576")) => {}
                ("panic x", Err(Error::Panicked { .. })) => {}
                ("fail x", Err(Error::Task(text))) if text == "x" => {}
                other => panic!("{index}: {other:?}"),
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        println!("    {count} tasks, {late} hung, {crashed} crashed");
        assert!(late > 0 && crashed > 0);
        assert_eq!(children(), [""; 0]);
        assert_eq!((descriptors(), threads()), before);
        // What is killed is gone a moment later.
        let token = env::var(TOKEN).unwrap();
        until("the end of all", || bearers(&token).is_empty());
    }

    /// `SIGKILL`, `SIGSTOP` and `SIGTERM` for children at any moment of their lives.
    fn each_task_has_one_outcome_whatever_signals_hit_its_child() {
        let sent = AtomicU64::new(0);
        let enough = 3 * count(SIGNALS, 20);
        let actor = actor().timeout(SHORT).start_timeout(Duration::from_secs(2));
        let actor = actor.start().unwrap();
        // Once a child has served, no failed start is final.
        actor.call(&order("pid")).unwrap();
        let mut given = 0;
        let source = std::iter::from_fn(|| {
            given += 1;
            (sent.load(Ordering::Relaxed) < enough).then(|| order("pid"))
        });
        let run = source.futureproof(Ignore).num_threads(3).chunk_size(1);
        let mut run = run.map_tasks(actor.into_fn());
        let mut seen = std::collections::BTreeSet::new();
        let (mut failed, mut strange) = (0, Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while n < enough {
                    thread::sleep(Duration::from_micros(hash(n) % 60_000));
                    let children = children();
                    if children.is_empty() {
                        continue;
                    }
                    let victim = children[hash(n) as usize % children.len()].parse();
                    let pid = rustix::process::Pid::from_raw(victim.unwrap()).unwrap();
                    let signal = [Signal::KILL, Signal::STOP, Signal::TERM][n as usize % 3];
                    let _ = rustix::process::kill_process(pid, signal);
                    n += 1;
                    sent.store(n, Ordering::Relaxed);
                }
            });
            for task in &mut run {
                let index = task
                    .as_ref()
                    .map_or_else(|error| error.index(), |task| task.index);
                assert!(seen.insert(index));
                match task.as_ref().map_err(|error| error.error().unwrap()) {
                    Ok(_) => {}
                    Err(Error::Crashed { .. } | Error::TimedOut { .. }) => failed += 1,
                    Err(other) => strange.push(other.clone()),
                }
            }
        });
        drop(run);
        assert_eq!(strange, []);
        println!(
            "    {enough} signals, {} tasks, {failed} failed",
            seen.len()
        );
        assert_eq!(seen.len(), given - 1);
        assert_eq!(children(), [""; 0]);
    }

    fn a_parent_that_is_killed_at_any_moment_leaves_nothing() {
        for n in 0..count(SIGNALS, 5) {
            let token = token();
            let mut parent = scenario("endless");
            parent
                .env(TOKEN, &token)
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut parent = parent.spawn().unwrap();
            let pid = parent.id().to_string();
            let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
            let delivered = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&delivered);
            thread::spawn(move || {
                for _ in lines.map_while(Result::ok) {
                    count.fetch_add(1, SeqCst);
                }
            });
            until("a first outcome", || delivered.load(SeqCst) > 0);
            thread::sleep(Duration::from_micros(hash(n) % 20_000));
            if n % 3 == 2 {
                // It stands still for a while, and goes on as if nothing had been.
                kill("-STOP", &pid);
                thread::sleep(Duration::from_micros(hash(n + 1) % 150_000));
                kill("-CONT", &pid);
                let before = delivered.load(SeqCst);
                until("more outcomes", || delivered.load(SeqCst) > before + 3);
            }
            kill(["-KILL", "-TERM"][n as usize % 2], &pid);
            parent.wait().unwrap();
            until("the end of all", || bearers(&token).is_empty());
        }
    }

    fn children_of_a_killed_parent_end_even_amid_a_task() {
        let mut parent = scenario("busy").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        let pids: Vec<String> = lines.take(2).map(Result::unwrap).collect();
        assert!(pids.iter().all(|pid| is_alive(pid)), "{pids:?}");
        parent.kill().unwrap();
        parent.wait().unwrap();
        let start = Instant::now();
        until("the children's end", || {
            !pids.iter().any(|pid| is_alive(pid))
        });
        println!(
            "    the children ended {:?} after their parent",
            start.elapsed()
        );
    }

    fn a_program_that_never_gets_there_is_started_three_times() {
        let log = scratch("starts");
        let script = format!("echo start >> {}", log.display());
        let actor = actor().program("/bin/sh").args(["-c", &script]);
        let found = outcomes(actor, &["pid"; 50]);
        let starts = fs::read_to_string(&log).unwrap().lines().count();
        fs::remove_file(&log).unwrap();
        // Both threads may be at their third.
        assert!((3..=4).contains(&starts), "{starts}");
        for found in &found {
            let Err(Error::Start(text)) = found else {
                panic!("{found:?}");
            };
            assert!(
                text.contains("exit code 0") && text.contains("call `isolate` first"),
                "{text}"
            );
        }
        assert_eq!(found.len(), 50);
    }

    fn a_program_that_does_not_say_hello_is_given_up() {
        let actor = actor()
            .program("/bin/sleep")
            .args(["100"])
            .start_timeout(SHORT)
            .start()
            .unwrap();
        let error = actor.call(&order("pid")).unwrap_err();
        assert!(error.to_string().contains("within 100ms"), "{error}");
        assert_eq!(children(), [""; 0]);
    }

    fn a_program_that_is_not_there_is_named() {
        let found = outcomes(actor().program("/no/such/program"), &["pid"]);
        assert!(
            matches!(&found[0], Err(Error::Start(text)) if text.contains("/no/such/program")),
            "{found:?}"
        );
    }

    fn other_types_under_the_same_name_are_refused() {
        let wrong = isolate("act", |n: &u32| Ok::<u32, String>(*n));
        let wrong = wrong.program(env::current_exe().unwrap());
        let error = wrong.start().unwrap().call(&1).unwrap_err();
        assert!(error.to_string().contains("a name of its own"), "{error}");
    }

    fn a_worker_starts_no_workers() {
        // Not even those of the function that it serves.
        for found in outcomes(actor(), &["nest", "nest act"]) {
            assert!(
                matches!(&found, Err(Error::Task(text)) if text.contains("workers start none")),
                "{found:?}"
            );
        }
    }

    /// The launcher replaces standard input, so no child knows that it is one.
    fn a_program_that_loses_its_standard_input_does_not_start_itself_without_end() {
        let log = scratch("levels");
        let output = scenario("lose").env(LOG, &log).output().unwrap();
        let starts = fs::read_to_string(&log).unwrap().lines().count();
        fs::remove_file(&log).unwrap();
        assert!(output.status.success(), "{output:?}");
        // Each level tries three times.
        assert_eq!(starts, 3 + 9 + 27);
    }

    fn a_crash_is_seen_though_another_program_holds_the_socket() {
        let actor = actor().args([HOLD]).start().unwrap();
        let error = actor.call(&order("abort")).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Crashed {
                    signal: Some(6),
                    ..
                }
            ),
            "{error:?}"
        );
    }

    fn ctrl_c_does_not_reach_a_child() {
        let found = outcomes(actor(), &["group"]);
        let (group, pid) = found[0].as_ref().unwrap().split_once(' ').unwrap();
        assert_eq!(group, pid);
    }

    fn one_slow_start_is_no_end() {
        let slow = scratch("slow");
        let actor = actor().args([SLOW.as_ref(), slow.as_os_str()]);
        let actor = actor.start_timeout(Duration::from_secs(3)).start().unwrap();
        actor.call(&order("pid")).unwrap();
        actor.call(&order("abort")).unwrap_err();
        fs::write(&slow, "").unwrap();
        actor.call(&order("pid")).unwrap();
        assert!(!slow.exists(), "there was no slow start");
    }

    fn what_fails_on_its_way_costs_one_task_and_says_why() {
        let fragile = fragile().start().unwrap();
        let (child, _) = fragile.call(&(Good, 0)).unwrap();
        let place = "at tests/process.rs:";
        for (item, words) in [
            (
                (UnreadableByPanic, 0),
                ["cannot decode", "panics when read", place],
            ),
            ((Unreadable, 0), ["cannot decode", "why not read", ""]),
            ((Unwritable, 0), ["cannot encode", "why not written", ""]),
            ((Good, 2), ["cannot decode", "why not read", ""]),
            ((Good, 3), ["cannot encode", "panics when written", place]),
            ((Good, 4), ["cannot encode", "why not written", ""]),
        ] {
            let text = fragile.call(&item).unwrap_err().to_string();
            for word in words {
                assert!(text.contains(word), "{word} {text}");
            }
            assert_eq!(fragile.call(&(Good, 0)), Ok((child, Good)));
        }
        // These panic here, in the caller's thread.
        for item in [(UnwritableByPanic, 0), (Good, 1)] {
            let call = || fragile.call(&item).map(drop);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
            assert_eq!(fragile.call(&(Good, 0)), Ok((child, Good)));
        }
    }

    fn values_come_through_unchanged_or_are_an_error() {
        let echo = echo().start().unwrap();
        for shape in [shape(None), shape(Some(Some(1)))] {
            assert_eq!(echo.call(&shape).as_ref(), Ok(&shape));
        }
        let mut makes_one = shape(None);
        makes_one.a = 1;
        for item in [shape(Some(None)), makes_one] {
            let text = echo.call(&item).unwrap_err().to_string();
            assert!(
                text.starts_with("cannot encode: ") && text.contains("Shape: `Some` of an empty"),
                "{text}"
            );
        }
    }

    fn a_task_that_no_child_has_read_goes_to_another() {
        let bomb = bomb().start().unwrap();
        let mut last = 0;
        for _ in 0..100 {
            let pid = bomb.call(&0).unwrap().0;
            assert_ne!(pid, last);
            last = pid;
        }
    }

    fn kill(signal: &str, pid: &str) {
        let status = Command::new("kill").args([signal, pid]).status();
        assert!(status.unwrap().success());
    }

    fn dead_children_are_seen_before_they_are_used() {
        // A program that each of them started holds its socket open.
        let actor = actor().args([HOLD]).start().unwrap();
        while children().len() < 5 {
            thread::scope(|scope| {
                (0..5).for_each(|_| drop(scope.spawn(|| actor.call(&order("slow")).unwrap())));
            });
        }
        for pid in children() {
            kill("-KILL", &pid);
            until("its end", || !is_alive(&pid));
        }
        let text = format!("length {}", "x".repeat(LARGE));
        assert_eq!(actor.call(&text), Ok(LARGE.to_string()));
    }

    fn a_child_that_dies_with_a_task_that_it_has_not_read_is_seen() {
        for length in [1, LARGE] {
            let actor = actor().args([HOLD]).start().unwrap();
            let pid = actor.call(&order("pid")).unwrap();
            kill("-STOP", &pid);
            let (told, tells) = std::sync::mpsc::channel();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let thread = fs::read_link("/proc/thread-self").unwrap();
                    told.send(thread).unwrap();
                    let text = format!("length {}", "x".repeat(length));
                    assert_eq!(actor.call(&text), Ok(length.to_string()));
                });
                let thread = Path::new("/proc").join(tells.recv().unwrap());
                until("a wait for the child", || {
                    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
                    stat.rsplit(") ")
                        .next()
                        .is_some_and(|rest| rest.starts_with('S'))
                });
                kill("-KILL", &pid);
            });
        }
    }

    /// The id of a program that a task started, once it is there.
    fn started(path: &Path) -> String {
        let pid = || fs::read_to_string(path).unwrap_or_default();
        until("a program's start", || !pid().is_empty());
        let pid = pid();
        fs::remove_file(path).unwrap();
        pid
    }

    fn programs_that_a_task_started_end_with_its_child() {
        let path = scratch("program");
        let waits = format!("await {}", path.display());
        let leaves = format!("leave {}", path.display());
        let late = actor().timeout(Duration::from_millis(500)).start().unwrap();
        let error = late.call(&waits).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        let pid = started(&path);
        until("its end", || !is_alive(&pid));
        // At a crash, at the end of a child's tasks, and at the function's end.
        let crashes = actor().start().unwrap();
        crashes.call(&leaves).unwrap();
        let pid = started(&path);
        assert!(is_alive(&pid));
        crashes.call(&order("abort")).unwrap_err();
        until("its end", || !is_alive(&pid));
        let once = actor().max_tasks(1).start().unwrap();
        once.call(&leaves).unwrap();
        let pid = started(&path);
        until("its end", || !is_alive(&pid));
        crashes.call(&leaves).unwrap();
        let pid = started(&path);
        drop(crashes);
        until("its end", || !is_alive(&pid));
        // At a cancel.
        let token = CancellationToken::new();
        let run = [waits].into_iter().futureproof(Ignore).cancel_on(&token);
        let mut run = run.map_tasks(actor().start().unwrap().into_fn());
        let pid = thread::scope(|scope| {
            let cancel = scope.spawn(|| {
                let pid = started(&path);
                token.cancel();
                pid
            });
            assert!(run.next().is_none());
            cancel.join().unwrap()
        });
        drop(run);
        until("its end", || !is_alive(&pid));
    }

    fn programs_of_a_task_end_if_the_parent_is_killed() {
        let path = scratch("orphan");
        let mut parent = scenario("await").env(LOG, &path).spawn().unwrap();
        let pid = started(&path);
        assert!(is_alive(&pid));
        parent.kill().unwrap();
        parent.wait().unwrap();
        until("its end", || !is_alive(&pid));
    }

    fn a_child_with_a_grace_is_asked_to_end_and_then_killed() {
        let paths = [scratch("begun"), scratch("asked")];
        let [begun, asked] = &paths;
        let text = format!("{} {}", begun.display(), asked.display());
        for (word, grace) in [("tidy", HANGS), ("stubborn", SHORT)] {
            let order = format!("{word} {text}");
            // A task's time is up.
            let actor = actor().grace(grace).timeout(Duration::from_secs(1));
            let actor = actor.start().unwrap();
            let start = Instant::now();
            let error = actor.call(&order).unwrap_err();
            assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
            assert!(start.elapsed() < HANGS / 6);
            let pid = started(begun);
            assert!(asked.exists() && !is_alive(&pid));
            fs::remove_file(asked).unwrap();
            // A run is cancelled.
            let token = CancellationToken::new();
            let run = [order].into_iter().futureproof(Ignore).cancel_on(&token);
            let mut run = run.map_tasks(actor.into_fn());
            let pid = thread::scope(|scope| {
                let cancel = scope.spawn(|| {
                    let pid = started(begun);
                    token.cancel();
                    pid
                });
                assert!(run.next().is_none());
                cancel.join().unwrap()
            });
            let start = Instant::now();
            drop(run);
            ended(start);
            assert!(asked.exists() && !is_alive(&pid));
            fs::remove_file(asked).unwrap();
        }
    }

    fn without_a_grace_a_child_is_not_asked() {
        let paths = [scratch("begun"), scratch("asked")];
        let [begun, asked] = &paths;
        let order = format!("tidy {} {}", begun.display(), asked.display());
        let actor = actor().timeout(Duration::from_secs(1)).start().unwrap();
        actor.call(&order).unwrap_err();
        let pid = started(begun);
        assert!(!asked.exists() && !is_alive(&pid));
    }

    fn answers_of_a_forked_task_are_nobody_elses() {
        let actor = actor().start().unwrap();
        for n in 0..50 {
            let text = n.to_string();
            assert_eq!(actor.call(&format!("fork {text}")), Ok(text.clone()));
            assert_eq!(actor.call(&format!("fail {text}")), Err(Error::Task(text)));
        }
        drop(actor);
        assert_eq!(children(), [""; 0]);
    }

    fn two_functions_of_one_name_are_refused() {
        doubled().start().unwrap();
        // The same once more, there and here.
        assert_eq!(doubled().start().unwrap().call(&1), Ok(2));
        assert_eq!(isolate("double", double).start().unwrap().call(&1), Ok(2));
        let text = isolate("double", triple).start().unwrap_err().to_string();
        for word in [
            "\"double\"",
            "linux::double",
            "linux::triple",
            "a name of its own",
        ] {
            assert!(text.contains(word), "{text}");
        }
        let closure = isolate("double", |n: &u32| triple(n)).start();
        assert!(closure.is_err());
        let closures = || [2, 3].map(|k| isolate("closures", move |n: &u32| Ok::<_, ()>(n * k)));
        for closure in closures() {
            closure.start().unwrap();
        }
        // Nothing is known before its child is asked.
        let other = isolate("double", triple).args(["x"]).start().unwrap();
        let error = other.call(&1).unwrap_err();
        assert!(error.to_string().contains("a name of its own"), "{error}");
    }

    /// What the children of `act` gave reason to log.
    fn logged() -> Vec<String> {
        let lines = crate::lines::lines_of("act").into_iter();
        lines.map(|(_, line)| line).collect()
    }

    /// A link to this program, which can be taken away.
    fn link(name: &str) -> PathBuf {
        let link = scratch(name);
        std::os::unix::fs::symlink(env::current_exe().unwrap(), &link).unwrap();
        link
    }

    fn a_program_that_is_away_for_a_moment_fails_no_task() {
        let link = link("away");
        let aside = scratch("aside");
        let actor = actor().program(&link).start().unwrap();
        let pid = actor.call(&order("pid")).unwrap();
        let before = logged().len();
        let since = || logged().split_off(before);
        fs::rename(&link, &aside).unwrap();
        kill("-KILL", &pid);
        until("its end", || !is_alive(&pid));
        thread::scope(|scope| {
            let calls = [0; 8].map(|_| scope.spawn(|| actor.call(&order("slow"))));
            until("the line about it", || {
                let is_it = |line: &String| line.contains("cannot start another worker process");
                since().iter().any(is_it)
            });
            fs::rename(&aside, &link).unwrap();
            for call in calls {
                call.join().unwrap().unwrap();
            }
        });
        fs::remove_file(link).unwrap();
        let lines = since();
        assert!(
            lines[0].contains("going on with 0") && lines[0].contains("No such file"),
            "{lines:?}"
        );
    }

    fn a_program_that_stays_away_fails_tasks_with_the_reason_and_is_tried_again() {
        let link = link("stays");
        let aside = scratch("aside");
        let actor = actor().program(&link).start_timeout(HANGS / 120);
        let actor = actor.start().unwrap();
        actor.call(&order("pid")).unwrap();
        let before = logged().len();
        fs::rename(&link, &aside).unwrap();
        actor.call(&order("abort")).unwrap_err();
        for _ in 0..20 {
            let error = actor.call(&order("pid")).unwrap_err();
            assert!(
                matches!(&error, Error::Start(text) if text.contains("No such file")),
                "{error:?}"
            );
        }
        // It is told once, not at each try.
        let mut lines = logged().split_off(before);
        lines.retain(|line| line.contains("cannot start another worker process"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        fs::rename(&aside, &link).unwrap();
        until("a child", || actor.call(&order("pid")).is_ok());
        fs::remove_file(link).unwrap();
    }

    fn a_cancel_ends_the_wait_for_a_program() {
        let link = link("cancel");
        let actor = actor().program(&link).start_timeout(Duration::MAX);
        let actor = actor.start().unwrap();
        actor.call(&order("pid")).unwrap();
        fs::remove_file(link).unwrap();
        actor.call(&order("abort")).unwrap_err();
        let before = logged().len();
        let token = CancellationToken::new();
        let run = [order("pid")].into_iter().futureproof(Ignore);
        let mut run = run.cancel_on(&token).map_tasks(actor.into_fn());
        thread::scope(|scope| {
            scope.spawn(|| {
                until("a failed start", || logged().len() > before);
                token.cancel();
            });
            assert!(run.next().is_none());
        });
        let start = Instant::now();
        drop(run);
        ended(start);
    }

    fn fewer_children_than_threads_are_no_failure() {
        let script = "ulimit -n 12 && exec \"$0\"";
        let mut few = Command::new("/bin/sh");
        few.args([
            "-c".as_ref(),
            script.as_ref(),
            env::current_exe().unwrap().as_os_str(),
        ]);
        let output = few.env(SCENARIO, "few").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(output.stdout, b"cannot start another\n");
    }

    fn closed_standard_streams_do_no_harm() {
        let log = scratch("closed");
        let status = scenario("closed").env(LOG, &log).status().unwrap();
        let found = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        assert!(status.success(), "{found}");
        assert_eq!(found, "[Ok(\"1\"), Ok(\"3\"), Ok(\"1\")]");
    }

    fn a_program_file_that_was_deleted_or_replaced_is_started_all_the_same() {
        for word in ["delete", "replace"] {
            let copy = scratch(word);
            fs::copy(env::current_exe().unwrap(), &copy).unwrap();
            let mut command = Command::new(&copy);
            let output = command.env(SCENARIO, word).output().unwrap();
            let _ = fs::remove_file(copy);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{word}: {stderr}");
        }
    }

    fn a_terminal_that_stops_background_output_stops_no_child() {
        let output = scenario("terminal").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }

    fn what_a_task_starts_is_no_worker() {
        let found = outcomes(actor(), &["list"]);
        assert!(
            found[0]
                .as_ref()
                .is_ok_and(|text| text.contains("what_a_task_starts")),
            "{found:?}"
        );
    }

    /// This program again, to do something other than to test.
    fn scenario(name: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(SCENARIO, name);
        command
    }

    fn play(scenario: &str) {
        match scenario {
            "print" => {
                assert!(outcomes(actor(), &["print noise"])[0].is_ok());
                println!("done");
            }
            "busy" => {
                let actor = actor().start().unwrap();
                let marks = ["hang", "spin"].map(|word| (word, scratch(word)));
                thread::scope(|scope| {
                    for (word, path) in &marks {
                        let busy = format!("{word} {}", path.display());
                        let actor = &actor;
                        scope.spawn(move || actor.call(&busy));
                    }
                    for (_, path) in &marks {
                        let pid = || fs::read_to_string(path).unwrap_or_default();
                        until("a task's start", || !pid().is_empty());
                        println!("{}", pid());
                        fs::remove_file(path).unwrap();
                    }
                });
            }
            "await" => {
                let path = env::var(LOG).unwrap();
                let _ = actor().start().unwrap().call(&format!("await {path}"));
            }
            "few" => {
                let actor = actor().start().unwrap();
                let run = (0..32).map(|_| order("slow")).futureproof(Raise);
                let run = run.num_threads(8).chunk_size(1);
                for task in run.map_tasks(actor.into_fn()) {
                    task.unwrap();
                }
                let is_it = |line: &String| line.contains("cannot start another");
                assert!(logged().iter().any(is_it));
                println!("cannot start another");
            }
            "closed" => {
                fork::close_fd().unwrap();
                let orders = ["length a", "length abc", "length x"];
                let print = outcomes(actor(), &["print noise, and a good deal more of it"; 4]);
                assert!(print.iter().all(Result::is_ok), "{print:?}");
                let found = outcomes(actor(), &orders);
                fs::write(env::var(LOG).unwrap(), format!("{found:?}")).unwrap();
            }
            "delete" | "replace" => {
                let path = env::current_exe().unwrap();
                fs::remove_file(&path).unwrap();
                if scenario == "replace" {
                    fs::copy("/bin/true", path).unwrap();
                }
                assert_eq!(outcomes(actor(), &["length abc"]), [Ok(order("3"))]);
            }
            "terminal" => {
                use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
                let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
                let ours = rustix::pty::openpt(flags).unwrap();
                rustix::pty::unlockpt(&ours).unwrap();
                let name = rustix::pty::ptsname(&ours, Vec::new()).unwrap();
                rustix::process::setsid().unwrap();
                let mut options = fs::File::options();
                let theirs = options.read(true).write(true).open(name.to_str().unwrap());
                let theirs = theirs.unwrap();
                rustix::process::ioctl_tiocsctty(&theirs).unwrap();
                let mut modes = tcgetattr(&theirs).unwrap();
                modes.local_modes |= LocalModes::TOSTOP;
                tcsetattr(&theirs, OptionalActions::Now, &modes).unwrap();
                let stderr = std::os::fd::AsFd::as_fd(&std::io::stderr())
                    .try_clone_to_owned()
                    .unwrap();
                rustix::stdio::dup2_stderr(&theirs).unwrap();
                let found = outcomes(actor().timeout(HANGS / 6), &["print noise"]);
                rustix::stdio::dup2_stderr(stderr).unwrap();
                assert!(found[0].is_ok(), "{found:?}");
                // Before the terminal is gone, which would end this process.
                process::exit(0);
            }
            "storm" => storm(),
            "endless" => {
                let actor = actor().timeout(SHORT).max_tasks(10).start().unwrap();
                // Not "abort": who ends the programs of a child that crashed is its parent.
                let orders = ["pid", "leave", "pid", "hang", "pid", "fork x"];
                let run = orders.iter().cycle().map(|text| order(text));
                let run = run.futureproof(Ignore).num_threads(3).chunk_size(1);
                let mut run = run.map_tasks(actor.into_fn());
                run.by_ref()
                    .for_each(|outcome| println!("{}", outcome.is_ok()));
            }
            "lose" => {
                let script = format!("echo start >> ${LOG}; \"$0\" </dev/null; true");
                let program = env::current_exe().unwrap();
                let actor = actor().program("/bin/sh").args([
                    "-c".as_ref(),
                    script.as_ref(),
                    program.as_os_str(),
                ]);
                let error = actor.start().unwrap().call(&order("pid")).unwrap_err();
                assert!(matches!(error, Error::Start(_)), "{error:?}");
            }
            _ => panic!("no scenario {scenario}"),
        }
    }

    macro_rules! tests {
        ($($test:ident)*) => {
            const TESTS: &[(&str, fn())] = &[$((stringify!($test), $test)),*];
        };
    }

    tests! {
        outputs_and_errors_come_back
        each_end_of_a_child_is_told_by_signal_or_code
        a_panic_is_told_and_its_child_lives_on
        a_memory_hog_costs_one_task
        a_late_task_is_killed_and_the_next_one_runs
        twenty_tasks_of_which_half_hang_or_crash_are_twenty_outcomes
        a_child_serves_so_many_tasks_with_the_state_it_began_with
        the_largest_limits_are_none
        a_function_can_be_told_from_another_in_a_log
        a_child_that_dies_without_a_task_is_replaced
        what_a_task_prints_goes_to_standard_error
        a_task_that_reads_standard_input_finds_it_empty
        large_items_come_through
        a_late_task_is_tried_again
        a_call_that_a_cancel_has_ended_says_so
        a_task_has_all_the_time_that_it_is_given
        a_cancel_kills_what_runs
        a_drop_kills_what_runs
        a_run_that_is_left_at_its_first_failure_is_killed
        a_deadline_kills_what_runs
        a_deadline_kills_though_nobody_asks_for_the_next_task
        what_runs_when_a_run_is_taken_to_pieces_is_waited_for
        a_stage_may_run_in_children
        a_storm_of_crashes_and_hangs_loses_nothing_and_leaves_nothing
        each_task_has_one_outcome_whatever_signals_hit_its_child
        a_parent_that_is_killed_at_any_moment_leaves_nothing
        children_of_a_killed_parent_end_even_amid_a_task
        a_program_that_never_gets_there_is_started_three_times
        a_program_that_does_not_say_hello_is_given_up
        a_program_that_is_not_there_is_named
        other_types_under_the_same_name_are_refused
        a_worker_starts_no_workers
        a_program_that_loses_its_standard_input_does_not_start_itself_without_end
        a_crash_is_seen_though_another_program_holds_the_socket
        ctrl_c_does_not_reach_a_child
        one_slow_start_is_no_end
        what_fails_on_its_way_costs_one_task_and_says_why
        values_come_through_unchanged_or_are_an_error
        a_task_that_no_child_has_read_goes_to_another
        dead_children_are_seen_before_they_are_used
        a_child_that_dies_with_a_task_that_it_has_not_read_is_seen
        programs_that_a_task_started_end_with_its_child
        programs_of_a_task_end_if_the_parent_is_killed
        a_child_with_a_grace_is_asked_to_end_and_then_killed
        without_a_grace_a_child_is_not_asked
        answers_of_a_forked_task_are_nobody_elses
        two_functions_of_one_name_are_refused
        a_program_that_is_away_for_a_moment_fails_no_task
        a_program_that_stays_away_fails_tasks_with_the_reason_and_is_tried_again
        a_cancel_ends_the_wait_for_a_program
        fewer_children_than_threads_are_no_failure
        closed_standard_streams_do_no_harm
        a_program_file_that_was_deleted_or_replaced_is_started_all_the_same
        a_terminal_that_stops_background_output_stops_no_child
        what_a_task_starts_is_no_worker
    }

    /// As much of the harness's command line as cargo and nextest use.
    pub(super) fn main() {
        let words: Vec<_> = env::args().skip(1).collect();
        match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [HOLD] => {
                // A shell gives what runs in the background another standard input, unless it is told.
                let script = "exec 3<&0; sleep 90 <&3 >/dev/null 2>&1 &";
                let status = Command::new("/bin/sh").args(["-c", script]).status();
                assert!(status.unwrap().success());
            }
            [SLOW, path] if fs::remove_file(path).is_ok() => thread::sleep(HANGS),
            _ => {}
        }
        // In a child these do not return.
        drop(actor());
        drop(fragile());
        drop(echo());
        drop(bomb());
        drop(doubled());
        crate::lines::collect_lines(log::LevelFilter::Warn);
        if let Ok(name) = env::var(SCENARIO) {
            // So that a test that waits for it does not wait for ever.
            thread::spawn(|| {
                thread::sleep(limit());
                process::exit(101)
            });
            return play(&name);
        }
        let args: Vec<_> = env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        let filters: Vec<_> = args
            .iter()
            .filter(|arg| !arg.starts_with('-') && *arg != "terse")
            .collect();
        let is_chosen = |name: &str| {
            filters.is_empty()
                || filters.iter().any(|filter| match has("--exact") {
                    true => name == *filter,
                    false => name.contains(filter.as_str()),
                })
        };
        for (name, test) in TESTS.iter().filter(|(name, _)| is_chosen(name)) {
            match (has("--list"), has("--ignored")) {
                (_, true) => {}
                (true, _) => println!("{name}: test"),
                (false, _) => watched(name, *test),
            }
        }
    }

    fn limit() -> Duration {
        match [TASKS, SIGNALS].iter().any(|name| env::var(name).is_ok()) {
            true => 20 * HANGS,
            false => HANGS,
        }
    }

    /// A test that hangs fails.
    fn watched(name: &'static str, test: fn()) {
        println!("{name}");
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let limit = limit();
        let watchdog = thread::spawn(move || {
            if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = waits.recv_timeout(limit) {
                eprintln!("{name} hangs");
                process::exit(101);
            }
        });
        test();
        drop(done);
        watchdog.join().unwrap();
    }
}
