//! Streams on tokio's runtimes.

use std::time::Duration;

use futureproof::prelude::*;
use futures_util::StreamExt;

fn stream() -> impl futures_util::Stream<Item = u64> + Unpin {
    let run = (0..10_000u64).futureproof(Raise).num_threads(2);
    let run = run.map_tasks(infallible(|n: &u64| n + 1));
    run.into_stream().map(|task| task.unwrap().output)
}

async fn sum() -> u64 {
    stream().fold(0, async |sum, output| sum + output).await
}

const SUM: u64 = 50_005_000;

#[tokio::test]
async fn one_thread_serves_several_streams_at_once() {
    let (one, other) = tokio::join!(sum(), sum());
    assert_eq!((one, other), (SUM, SUM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_move_between_threads() {
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(sum())).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), SUM);
    }
}

/// The runtime has one thread: if a poll blocked, the timer would come late, and the stream first.
#[tokio::test]
async fn other_tasks_go_on_while_a_stream_waits() {
    let (sender, gate) = std::sync::mpsc::channel::<()>();
    let run = [gate].into_iter().futureproof(Raise).num_threads(1);
    let run = run.map_tasks(infallible(|gate: &std::sync::mpsc::Receiver<()>| {
        gate.recv().is_err()
    }));
    let mut stream = run.into_stream();
    let waiting = tokio::time::timeout(Duration::from_millis(20), stream.next());
    assert!(waiting.await.is_err());
    drop(sender);
    assert!(stream.next().await.unwrap().unwrap().output);
    assert!(stream.next().await.is_none());
}
