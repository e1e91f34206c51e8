//! Which subscriber is told, where there are several, and until when.

use std::sync::{Arc, Mutex};

use futureproof::prelude::*;
use tracing::Dispatch;
use tracing::dispatcher::{set_global_default, with_default};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Keeps where each event was, and the spans that were closed.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn dispatch(&self) -> Dispatch {
        Dispatch::new(Registry::default().with(self.clone()))
    }

    fn take(&self) -> Vec<String> {
        let mut seen = std::mem::take(&mut *self.0.lock().unwrap());
        seen.sort_unstable();
        seen
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let scope = context.event_scope(event).into_iter().flatten();
        let mut names: Vec<_> = scope.map(|span| span.name()).collect();
        names.reverse();
        self.0.lock().unwrap().push(names.join("/"));
    }

    fn on_close(&self, id: tracing::Id, context: Context<'_, S>) {
        let name = context.span(&id).unwrap().name();
        self.0.lock().unwrap().push(format!("-{name}"));
    }
}

fn event(n: &u32) {
    tracing::info!("from inside {n}");
}

#[test]
fn the_subscriber_of_the_caller_is_told_on_the_workers_too() {
    let (everybody, mine) = (Recorder::default(), Recorder::default());
    set_global_default(everybody.dispatch()).unwrap();
    with_default(&mine.dispatch(), || {
        let _outer = tracing::info_span!("program").entered();
        let run = (0..3u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let mut run = run.map_tasks(infallible(event));
        let count = run.by_ref().filter(Result::is_ok).count();
        assert_eq!(count, 3);
        // The run has ended, though it is still there.
        let task = "program/run/task";
        let seen = ["-run", "-task", "-task", "-task", task, task, task];
        assert_eq!(mine.take(), seen);
        drop(run);
    });
    assert_eq!(mine.take(), ["-program"]);
    assert_eq!(everybody.take(), [""; 0]);

    let run = (0..3u32).futureproof(Raise).num_threads(2).chunk_size(1);
    assert_eq!(run.map_tasks(infallible(event)).flatten().count(), 3);
    let seen = [
        "-run", "-task", "-task", "-task", "run/task", "run/task", "run/task",
    ];
    assert_eq!(everybody.take(), seen);
    assert_eq!(mine.take(), [""; 0]);
}

/// Where the spans of tasks are not wanted, a subscriber gets what the function tells all the same.
#[test]
fn a_subscriber_without_spans_is_told_what_the_function_tells() {
    let mine = Recorder::default();
    let filter = tracing_subscriber::filter::LevelFilter::WARN;
    let dispatch = Dispatch::new(Registry::default().with(filter).with(mine.clone()));
    with_default(&dispatch, || {
        let run = (0..3u32).futureproof(Raise).num_threads(2);
        let run = run.map_tasks(infallible(|n: &u32| tracing::warn!("from inside {n}")));
        assert_eq!(run.count(), 3);
    });
    assert_eq!(mine.take(), [""; 3]);
}
