//! Tests that could abort, hang or bend their process play in a child: this very binary, told to run that test alone.

use std::any::type_name;
use std::io::{BufRead, BufReader, Read};
use std::panic;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, thread};

/// Set in a child: the argument of what it plays.
const PLAYED: &str = "FUTUREPROOF_PLAYED";
const DONE: &str = "played to its end";

/// What a child came to, and what it has written.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
}

/// Plays in a child, which must end well.
pub(crate) fn in_child(play: impl FnOnce()) {
    Child::new("").must_survive(play);
}

/// A child to be. Where a test has several, each has another argument.
pub(crate) struct Child<'a> {
    argument: &'a str,
    variables: Vec<(&'a str, String)>,
    shell: Option<&'a str>,
    signal: Option<&'a str>,
}

impl<'a> Child<'a> {
    pub(crate) fn new(argument: &'a str) -> Self {
        Self {
            argument,
            variables: vec![("RUST_BACKTRACE", "0".into())],
            shell: None,
            signal: None,
        }
    }

    pub(crate) fn env(mut self, name: &'a str, value: impl ToString) -> Self {
        self.variables.push((name, value.to_string()));
        self
    }

    /// It forgets what is never freed; no sanitizer is to look for that.
    pub(crate) fn leaks(self) -> Self {
        self.env("ASAN_OPTIONS", "detect_leaks=0")
    }

    /// A shell runs this before it becomes the child.
    pub(crate) fn after(mut self, shell: &'a str) -> Self {
        self.shell = Some(shell);
        self
    }

    /// It gets this signal once it has written a line `ready`.
    pub(crate) fn signal(mut self, signal: &'a str) -> Self {
        self.signal = Some(signal);
        self
    }

    /// Plays in a child, which must end well.
    pub(crate) fn must_survive<F: FnOnce()>(self, play: F) {
        let argument = self.argument;
        let Some(ended) = self.run(play) else { return };
        let last = ended.text.lines().rev().take(12).collect::<Vec<_>>();
        assert!(
            ended.status.success(),
            "{argument}: {}: {last:#?}",
            ended.status
        );
        assert!(ended.text.contains(DONE), "{argument}: {last:#?}");
    }

    /// Plays in a child, and gives how that ended; in the child, `None` afterwards. `play` is a closure in the body of
    /// the test, of which it takes the name.
    pub(crate) fn run<F: FnOnce()>(self, play: F) -> Option<Ended> {
        if cfg!(miri) {
            return None; // It starts no processes.
        }
        let Ok(played) = env::var(PLAYED) else {
            return Some(watch(self.command(test_of::<F>()), self.signal));
        };
        if played == self.argument {
            // Only what an assertion says: to print each planned panic takes long.
            panic::set_hook(Box::new(|info| {
                if info.payload().is::<&str>() || info.payload().is::<String>() {
                    eprintln!("{info}");
                }
            }));
            play();
            println!("{DONE}");
        }
        None
    }

    fn command(&self, test: &str) -> Command {
        let program = env::current_exe().unwrap();
        let mut command = match self.shell {
            None => Command::new(program),
            Some(line) => {
                let mut shell = Command::new("sh");
                let line = format!("{line} && exec \"$0\" \"$@\"");
                shell.args(["-c", &line]).arg(program);
                shell
            }
        };
        command.args(["--exact", test, "--nocapture"]);
        let variables = self.variables.iter().map(|(name, value)| (name, value));
        command.envs(variables).env(PLAYED, self.argument);
        command
    }
}

/// The name of the test that has this closure in its body.
fn test_of<F>() -> &'static str {
    let path = type_name::<F>();
    let test = path.split("::{{closure}}").next().unwrap();
    test.split_once("::").unwrap().1
}

/// Runs `command` to its end; kills it after 50 s. `signal` is sent to it once it says that it is ready.
fn watch(mut command: Command, signal: Option<&str>) -> Ended {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        stdout
            .lines()
            .try_for_each(|line| sender.send(line.unwrap()))
    });
    // All along: whoever writes much of it must not wait for us.
    let mut stderr = child.stderr.take().unwrap();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let end = Instant::now() + Duration::from_secs(50);
    let mut text = String::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                text += &(line + "\n");
                if let Some(signal) = signal.filter(|_| text.ends_with("ready\n")) {
                    let pid = child.id().to_string();
                    let kill = Command::new("kill").args([signal, &pid]).status();
                    assert!(kill.unwrap().success());
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("the child hangs, after {text}");
            }
        }
    }
    text += &errors.join().unwrap().unwrap();
    let status = child.wait().unwrap();
    Ended { status, text }
}
