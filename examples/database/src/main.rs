//! Gives each worker a database connection of its own: what the orders of a shop come to, looked up
//! in parallel in one SQLite file. A `Connection` cannot be shared between threads, so a worker opens
//! one for the first order it gets, and keeps it, and the statements it prepared, for the others.
//!
//! ```sh
//! cargo run --release -p database                # in a temporary directory
//! cargo run --release -p database -- shop.db     # makes this file, and keeps it
//! ```

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use futureproof::prelude::*;
use rusqlite::{Connection, OpenFlags};

/// 300 products, and 5000 orders of up to seven lines. Every thousandth was cancelled and has none.
const SHOP: &str = "BEGIN;
    CREATE TABLE product (id INTEGER PRIMARY KEY, cents INTEGER);
    CREATE TABLE line (order_id, product_id, quantity, PRIMARY KEY (order_id, product_id));
    CREATE VIEW amount AS
        SELECT order_id, quantity * cents AS cents FROM line JOIN product ON id = product_id;
    WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300)
        INSERT INTO product SELECT n, 99 + n * 7919 % 5000 FROM n;
    WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
        INSERT INTO line SELECT n, 1 + (n * 31 + id * 17) % 300, 1 + (n + id) % 5
        FROM n JOIN product ON id <= 1 + n % 7 WHERE n % 1000 <> 0;
COMMIT;";
const THREADS: usize = 4;
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// An order whose worker cannot open its connection fails, and the worker's next one tries again.
fn total(state: &mut Option<Connection>, path: &Path, order: i64) -> rusqlite::Result<i64> {
    let connection = match state {
        Some(connection) => connection,
        None => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            OPENED.fetch_add(1, Ordering::Relaxed);
            state.insert(connection)
        }
    };
    let sql = "SELECT sum(cents) FROM amount WHERE order_id = ? GROUP BY order_id";
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_one([order], |row| row.get(0))
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let dir = tempfile::tempdir()?;
    let arg = std::env::args_os().nth(1).map(PathBuf::from);
    let path = arg.unwrap_or_else(|| dir.path().join("shop.db"));
    File::create_new(&path)?; // A file that is there already is left alone.
    let shop = Connection::open(&path)?;
    shop.execute_batch(SHOP)?;

    let total = with_state(|| None, move |state, order| total(state, &path, *order));
    let run = (1..=5000).futureproof(Tolerate(10)).num_threads(THREADS);
    let run = run.map_tasks(total);
    let run = run.describe(|failure| match failure.error() {
        Some(error) => format!("order {}: {error}", failure.input()),
        None => failure.to_string(),
    });
    let (mut answered, mut failed, mut cents) = (0, 0, 0);
    for task in run {
        match task {
            Ok(task) => (answered, cents) = (answered + 1, cents + task.output),
            Err(_) => failed += 1,
        }
    }
    let opened = OPENED.load(Ordering::Relaxed);
    println!("{answered} orders come to {cents} cents; {failed} failed; {opened} connections");
    assert!(opened <= THREADS);
    let all: i64 = shop.query_one("SELECT sum(cents) FROM amount", [], |row| row.get(0))?;
    if cents != all {
        return Err(format!("all orders come to {all} cents").into());
    }
    Ok(())
}
