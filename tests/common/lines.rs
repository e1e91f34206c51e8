//! What is logged. A process has one logger, so this is all that there is.

use std::sync::{Arc, Mutex};

use log::{Level, LevelFilter, Log, Metadata, Record};

type OnLog = Arc<dyn Fn(&Record<'_>) + Send + Sync>;

static ON_LOG: Mutex<Option<OnLog>> = Mutex::new(None);
static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        let on_log = ON_LOG.lock().unwrap().clone();
        if let Some(on_log) = on_log {
            on_log(record);
        }
    }
    fn flush(&self) {}
}

/// Calls `f` with each record up to this level from now on, and nothing else.
pub(crate) fn on_log(level: LevelFilter, f: impl Fn(&Record<'_>) + Send + Sync + 'static) {
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
    *ON_LOG.lock().unwrap() = Some(Arc::new(f));
}

/// Keeps the lines up to this level from now on.
pub(crate) fn collect_lines(level: LevelFilter) {
    on_log(level, |record| {
        assert_eq!(record.target(), "futureproof");
        let line = (record.level(), record.args().to_string());
        LINES.lock().unwrap().push(line);
    });
}

/// What the run of this name has logged, without the name.
pub(crate) fn lines_of(name: &str) -> Vec<(Level, String)> {
    let prefix = format!("{name}: ");
    let lines = LINES.lock().unwrap();
    let own = lines
        .iter()
        .filter_map(|(level, line)| Some((*level, line.strip_prefix(&prefix)?.to_owned())));
    own.collect()
}
