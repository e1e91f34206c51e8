//! A web client that stays, and one that hangs up.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};

struct Server {
    child: Child,
    lines: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handler"));
        command
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self {
            child,
            lines,
            address: String::new(),
        };
        server.address = server
            .line()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&self, below: u64) -> TcpStream {
        let mut client = TcpStream::connect(&self.address).unwrap();
        let request = format!(
            "GET /primes?below={below} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        );
        client.write_all(request.as_bytes()).unwrap();
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_that_stays_gets_every_block() {
    let mut server = Server::start();
    let mut page = String::new();
    server.ask(20_000).read_to_string(&mut page).unwrap();
    let blocks = page.lines().filter_map(|line| line.split_once(' '));
    let counts = blocks
        .filter_map(|(start, count)| start.parse::<u64>().ok().zip(count.parse::<u64>().ok()));
    let counts: Vec<_> = counts.collect();
    // There are 2,262 primes below 20,000.
    assert_eq!(
        (
            counts.len(),
            counts.iter().map(|(_, count)| count).sum::<u64>()
        ),
        (20, 2_262)
    );
    assert_eq!(server.line(), "20 of 20 blocks");
}

#[test]
fn nothing_goes_on_for_a_client_that_hangs_up() {
    let mut server = Server::start();
    let total = 1_000_000;
    let mut client = BufReader::new(server.ask(total * 1_000));
    for _ in 0..20 {
        client.read_line(&mut String::new()).unwrap();
    }
    drop(client);
    let told = server.line();
    let (done, of) = told
        .strip_suffix(" blocks")
        .unwrap()
        .split_once(" of ")
        .unwrap();
    assert_eq!(of.parse(), Ok(total));
    assert!(done.parse::<u64>().unwrap() < total / 2, "{told}");
    // The next client finds the pool free.
    let mut page = String::new();
    server.ask(1_000).read_to_string(&mut page).unwrap();
    assert!(page.contains("0 168"), "{page}");
}
