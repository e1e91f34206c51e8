//! Who is inside whom.

use std::sync::{Arc, Mutex};

use futureproof::prelude::*;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let scope = context.event_scope(event).into_iter().flatten();
        let mut names: Vec<_> = scope.map(|span| span.name()).collect();
        names.reverse();
        self.0.lock().unwrap().push(names.join("/"));
    }

    fn on_new_span(
        &self,
        _: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        context: Context<'_, S>,
    ) {
        let span = context.span(id).unwrap();
        let names: Vec<_> = span.scope().from_root().map(|span| span.name()).collect();
        self.0.lock().unwrap().push(format!("+{}", names.join("/")));
    }
}

#[test]
fn a_task_is_inside_its_run_on_whatever_thread() {
    let recorder = Recorder::default();
    tracing::subscriber::set_global_default(Registry::default().with(recorder.clone())).unwrap();
    let _outer = tracing::info_span!("program").entered();
    let run = (0..4u32).futureproof(Ignore).num_threads(2).chunk_size(1);
    let run = run.map_tasks(|n| match n {
        2 => Err("failed"),
        3 => panic!("panicked"),
        _ => {
            tracing::info!("from inside");
            Ok(())
        }
    });
    assert_eq!(run.count(), 4);
    let mut seen = recorder.0.lock().unwrap().clone();
    seen.sort_unstable();
    let task = "program/run/task";
    let spans = [
        "+program",
        "+program/run",
        "+program/run/task",
        "+program/run/task",
        "+program/run/task",
        "+program/run/task",
    ];
    // A panic is told when it has already left its task.
    assert_eq!(
        seen,
        [&spans[..], &["program/run", task, task, task]].concat()
    );
}
