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

/// The stages of the spans of tasks, as they begin.
#[derive(Clone, Default)]
struct StagesSeen(Arc<Mutex<Vec<u64>>>);

impl<S: tracing::Subscriber> Layer<S> for StagesSeen {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        _: &tracing::Id,
        _: Context<'_, S>,
    ) {
        attributes.record(&mut self.clone());
    }
}

impl tracing::field::Visit for StagesSeen {
    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "stage" {
            self.0.lock().unwrap().push(value);
        }
    }
}

#[test]
fn a_span_names_the_stage_where_there_are_several() {
    let seen = StagesSeen::default();
    let double = |n: &u32| Ok::<_, String>(2 * n);
    tracing::subscriber::with_default(Registry::default().with(seen.clone()), || {
        let run = (0..3u32).futureproof(Raise).map_tasks(double);
        assert_eq!(run.count(), 3);
        assert!(seen.0.lock().unwrap().is_empty());
        let run = (0..3u32).futureproof(Raise).stage(double).map_tasks(double);
        assert_eq!(run.count(), 3);
    });
    let mut seen = seen.0.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 0, 1, 1, 1]);
}
