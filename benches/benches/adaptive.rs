//! How soon a run finds its width: its throughput as a share of the best that a fixed width has, in each half second.
//!
//! `cargo bench -p futureproof-benches --bench adaptive`, with the names of some services to measure those alone. All take about three
//! minutes.

use std::hint::black_box;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futureproof::{Control, prelude::*};

const THREADS: usize = 64;
const SLICE: Duration = Duration::from_millis(500);

/// Something that calls go to, and that has its limits.
#[derive(Clone, Copy)]
enum Service {
    /// So many calls at a time are served, the others wait.
    Knee(usize),
    /// Past its knee, a call takes longer by the square of how far it is past.
    Slows(usize),
    /// No service: each task computes.
    Compute,
}

const EACH: Duration = Duration::from_millis(10);

#[derive(Clone)]
struct Calls {
    service: Service,
    inside: Arc<(Mutex<usize>, Condvar)>,
}

impl Calls {
    fn new(service: Service) -> Self {
        let inside = Arc::default();
        Self { service, inside }
    }

    fn call(&self) {
        let (inside, left) = &*self.inside;
        let mut now = inside.lock().unwrap();
        match self.service {
            Service::Knee(knee) => {
                now = left.wait_while(now, |now| *now >= knee).unwrap();
                *now += 1;
                drop(now);
                thread::sleep(EACH);
            }
            Service::Slows(knee) => {
                *now += 1;
                let over = (*now as f64 / knee as f64).max(1.0);
                drop(now);
                thread::sleep(EACH.mul_f64(over * over));
            }
            Service::Compute => {
                *now += 1;
                drop(now);
                // About 2 ms.
                black_box((0..2_000_000u64).fold(1u64, |sum, n| black_box(sum ^ n)));
            }
        }
        *inside.lock().unwrap() -= 1;
        left.notify_one();
    }
}

/// Calls that end in each slice.
fn run(service: Service, control: &Control, time: Duration) -> Vec<f64> {
    let calls = Calls::new(service);
    let run = (0u64..)
        .futureproof(Raise)
        .num_threads(THREADS)
        .control(control)
        .deadline(time);
    let start = Instant::now();
    let mut slices = vec![0.0; (time.as_secs_f64() / SLICE.as_secs_f64()) as usize];
    for _ in run.map_tasks(infallible(move |_: &u64| calls.call())) {
        let slice = start.elapsed().as_nanos() / SLICE.as_nanos();
        if let Some(slice) = slices.get_mut(slice as usize) {
            *slice += 1.0;
        }
    }
    slices
}

fn main() {
    let services = [
        ("a knee at 6", Service::Knee(6)),
        ("a knee at 40", Service::Knee(40)),
        ("slows past 6", Service::Slows(6)),
        ("slows past 40", Service::Slows(40)),
        ("computes", Service::Compute),
    ];
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with("--"))
        .collect();
    for (name, service) in services {
        if !wanted.is_empty() && !wanted.iter().any(|it| it == name) {
            continue;
        }
        let widths = [1, 2, 3, 4, 6, 8, 12, 20, 32, 40, 48, 64];
        let fixed = widths.map(|width| {
            let control = Control::new();
            control.set_concurrency(width);
            let slices = run(service, &control, 4 * SLICE);
            // Without the first one, in which threads are started.
            (slices[1..].iter().sum::<f64>() / 3.0, width)
        });
        let best = fixed
            .into_iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        let control = Control::adaptive();
        let shares = run(service, &control, 20 * SLICE)
            .into_iter()
            .map(|calls| calls / best.0);
        let shares: Vec<f64> = shares.collect();
        let late = shares[10..].iter().sum::<f64>() / 10.0;
        println!("{name}: best {:.0} calls at width {}", best.0, best.1);
        println!(
            "  adaptive, from second 5 to 10: {late:.2} of that; in the end {:?} wide",
            control.concurrency()
        );
        println!("  each half second: {shares:.2?}");
    }
}
