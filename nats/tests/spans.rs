//! The spans and events of a worker's tasks, with a real server.

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use common::*;
use futureproof::prelude::*;
use futureproof_nats::Worker;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

type Fields = BTreeMap<&'static str, String>;

/// A span or an event, its fields, and those of the spans that it is in, innermost first.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    fields: Fields,
    inside: Vec<Fields>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

struct Read<'a>(&'a mut Fields);

impl tracing::field::Visit for Read<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        context: Context<'_, S>,
    ) {
        let mut fields = Fields::new();
        attributes.record(&mut Read(&mut fields));
        let span = context.span(id).unwrap();
        span.extensions_mut().insert(fields.clone());
        let parents = span.parent().into_iter().flat_map(|parent| parent.scope());
        let inside = parents.map(|span| span.extensions().get::<Fields>().unwrap().clone());
        let name = format!("span {} at {}", span.name(), span.metadata().level());
        let inside = inside.collect();
        self.0.lock().unwrap().push(Seen {
            name,
            fields,
            inside,
        });
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Read(&mut fields));
        let inside = context.event_scope(event).into_iter().flatten();
        let inside = inside.map(|span| span.extensions().get::<Fields>().unwrap().clone());
        let message = fields.remove("message").unwrap_or_default();
        let name = format!("{message} at {}", event.metadata().level());
        let inside = inside.collect();
        self.0.lock().unwrap().push(Seen {
            name,
            fields,
            inside,
        });
    }
}

#[test]
fn each_task_has_a_span_at_its_worker_and_a_failure_is_told_in_it() {
    let _dog = watchdog(120);
    let recorder = Recorder::default();
    tracing::subscriber::set_global_default(Registry::default().with(recorder.clone())).unwrap();
    let server = NatsServer::start();
    let worker = Worker::new(server.url(), "traced").num_threads(2);
    let worker = LocalWorker::start(worker, |job| {
        tracing::info!("runs");
        work(job)
    });
    let jobs = [Job::Double(1), Job::Fail(2), Job::Panic];
    let run = jobs.into_iter().futureproof(Ignore).num_threads(1);
    let run = run.map_tasks(remote(&server.url(), "traced").into_fn());
    assert_eq!(run.count(), 3);
    worker.stop();

    let seen = recorder.0.lock().unwrap().clone();
    let named =
        |name: &str| -> Vec<&Seen> { seen.iter().filter(|seen| seen.name == name).collect() };
    let at_worker = |seen: &&Seen| seen.fields.contains_key("function");
    let tasks: Vec<_> = named("span task at DEBUG")
        .into_iter()
        .filter(at_worker)
        .collect();
    let get = |task: &Seen, field: &str| task.fields[field].clone();
    let ids: Vec<_> = tasks.iter().map(|task| get(task, "id")).collect();
    // One caller's thread: one after the other.
    assert_eq!(ids, ["0", "1", "2"]);
    for task in &tasks {
        assert!(task.inside.is_empty());
        assert_eq!(
            (get(task, "function"), get(task, "deliveries")),
            ("traced".into(), "1".into())
        );
        assert_eq!(get(task, "run"), get(tasks[0], "run"));
        assert!(!get(task, "run").is_empty());
    }
    let told = |name: &str| -> Vec<(Fields, Vec<Fields>)> {
        let told = named(name)
            .into_iter()
            .map(|seen| (seen.fields.clone(), seen.inside.clone()));
        told.filter(|(_, inside)| {
            inside
                .first()
                .is_some_and(|span| span.contains_key("function"))
        })
        .collect()
    };
    let inside = |index: usize| vec![tasks[index].fields.clone()];
    let all: Vec<_> = told("runs at INFO")
        .into_iter()
        .map(|(_, inside)| inside)
        .collect();
    assert_eq!(all, [inside(0), inside(1), inside(2)]);
    assert_eq!(told("failed at DEBUG"), [(Fields::new(), inside(1))]);
    let panic = Fields::from([("panic", "the job says so".to_owned())]);
    assert_eq!(told("panicked at DEBUG"), [(panic, inside(2))]);
    // The run at the caller is seen too: what the error says is there.
    let failures = named("failed at DEBUG")
        .into_iter()
        .filter_map(|seen| seen.fields.get("error"));
    let failures: Vec<_> = failures.collect();
    assert_eq!(
        failures,
        [
            "Task(\"2 is refused\")",
            "Panicked { message: \"the job says so\" }"
        ]
    );
}
