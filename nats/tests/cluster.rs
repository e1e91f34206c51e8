//! Three servers, one of which is killed.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use common::*;
use futureproof::prelude::*;
use futureproof_nats::{Worker, connect};

/// Ports that nobody uses.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A server of the cluster, and the port where it tells who is connected.
struct Member {
    server: NatsServer,
    monitoring: u16,
}

impl Member {
    fn ask(&self, page: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitoring)).unwrap();
        let request = format!("GET {page} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn is_healthy(&self) -> bool {
        self.ask("/healthz").starts_with("HTTP/1.1 200")
    }

    fn has_caller(&self, name: &str) -> bool {
        self.ask("/connz?subs=1")
            .contains(&format!("futureproof.{name}.answer."))
    }
}

fn start_cluster() -> Vec<Member> {
    let ports: [u16; 6] = free_ports();
    let (clusters, monitors) = ports.split_at(3);
    let routes: Vec<_> = clusters
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect();
    let routes = routes.join(",");
    let members =
        clusters
            .iter()
            .zip(monitors)
            .enumerate()
            .map(|(index, (cluster, &monitoring))| {
                let server = NatsServer::start_with(&[
                    "--name",
                    &format!("server-{index}"),
                    "--cluster_name",
                    "test",
                    "--cluster",
                    &format!("nats://127.0.0.1:{cluster}"),
                    "--routes",
                    &routes,
                    "-m",
                    &monitoring.to_string(),
                ]);
                Member { server, monitoring }
            });
    members.collect()
}

/// As the documentation says: `nats stream edit futureproof-NAME --replicas=3`. Returns when all have everything.
fn replicate(url: &str, name: &str) {
    raw(url, async |client| {
        let context = async_nats::jetstream::new(client);
        let mut stream = stream(&context, name).await;
        let mut config = stream.cached_info().config.clone();
        config.num_replicas = 3;
        context.update_stream(config).await.unwrap();
        let is_everywhere = |info: &Info| {
            let cluster = info.cluster.as_ref().unwrap();
            cluster.leader.is_some()
                && cluster.replicas.len() == 2
                && cluster.replicas.iter().all(|peer| peer.current)
        };
        while !stream.info().await.is_ok_and(is_everywhere) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_server_of_three_is_killed_and_each_task_comes_back_exactly_once() {
    let _dog = watchdog(180);
    let mut members = start_cluster();
    let urls: Vec<_> = members.iter().map(|member| member.server.url()).collect();
    let url = urls.join(",");
    eventually("the cluster has a leader", || {
        members.iter().all(Member::is_healthy)
    });

    let three = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("three");
    // It lives on after the run, to tell workers what it no longer wants: an acknowledgement may be lost.
    let three = Arc::new(three.max_deliver(50).start().unwrap());
    replicate(&urls[0], "three");
    let worker = LocalWorker::start(Worker::new(&*url, "three").num_threads(8), work);

    let called = Arc::clone(&three);
    let jobs = (0..200u64).map(|n| {
        if n % 2 == 0 {
            Job::Double(n)
        } else {
            Job::Sleep(10)
        }
    });
    let run = jobs
        .futureproof(Raise)
        .num_threads(16)
        .map_tasks(move |job| called.call(job));
    let mut seen = [0; 200];
    for (count, task) in run.enumerate() {
        let task = task.unwrap();
        let expected = if task.index % 2 == 0 {
            task.index * 2
        } else {
            10
        };
        assert_eq!(task.output.output.number, expected);
        seen[task.index as usize] += 1;
        if count == 100 {
            let caller = members.iter().position(|member| member.has_caller("three"));
            members.remove(caller.unwrap()).server.crash();
        }
    }
    assert!(seen.iter().all(|&times| times == 1));
    assert_eq!(three.counters().answered, 200);
    let left = members[0].server.url();
    eventually("the queue is empty", || queued(&left, "three") == 0);
    worker.stop();
}
