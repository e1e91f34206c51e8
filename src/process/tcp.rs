//! The transport on systems without socket pairs: the loopback interface.
//!
//! The child's standard streams are not used, so nothing that a task prints gets in between.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub(super) type Stream = TcpStream;

/// How often to check a child that is starting.
const LOOK: Duration = Duration::from_millis(2);

/// Starts a child. `variable` tells it which function to serve, and where to connect.
pub(super) fn spawn(
    mut command: Command,
    variable: &str,
    name: &str,
    end: Option<Instant>,
) -> io::Result<(Child, Stream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    // Keeps other programs on this machine from posing as the child.
    let secret = RandomState::new().build_hasher().finish();
    command.env(variable, format!("{port} {secret} {name}"));
    // Standard output may be a pipe to another program.
    command.stdin(Stdio::null()).stdout(io::stderr());
    let mut child = command.spawn()?;
    loop {
        match accept(&listener, secret) {
            Ok(stream) => return Ok((child, stream)),
            Err(_) if end.is_none_or(|end| Instant::now() < end) && child.try_wait()?.is_none() => {
                thread::sleep(LOOK)
            }
            Err(error) => {
                let _ = child.kill();
                let status = child.wait()?;
                let text = format!("it ended before it called back ({status}): {error}");
                return Err(io::Error::other(text));
            }
        }
    }
}

fn accept(listener: &TcpListener, secret: u64) -> io::Result<Stream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    if bytes != secret.to_le_bytes() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// The program at `path`, which this process runs.
pub(super) fn itself(path: &Path) -> PathBuf {
    path.to_owned()
}

/// The name of the function that this process serves.
pub(super) fn meant(value: &str) -> Option<&str> {
    Some(value.splitn(3, ' ').nth(2)?)
}

/// Connects to the parent.
pub(super) fn adopt(value: &str) -> io::Result<Stream> {
    let mut parts = value.splitn(3, ' ');
    let port = parts.next().and_then(|part| part.parse::<u16>().ok());
    let secret = parts.next().and_then(|part| part.parse::<u64>().ok());
    let (Some(port), Some(secret)) = (port, secret) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.write_all(&secret.to_le_bytes())?;
    Ok(stream)
}

/// Whether `try_read` and `try_write` never block. Here, only whole streams can be set to non-blocking.
pub(super) const LOOKS: bool = false;

/// Reads what is there. Blocks if there is nothing.
pub(super) fn try_read(stream: &mut Stream, buffer: &mut [u8]) -> io::Result<usize> {
    stream.read(buffer)
}

/// Writes. Blocks if there is no room.
pub(super) fn try_write(stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
    stream.write(bytes)
}

/// Blocks until the parent is gone.
pub(super) fn await_orphaned(stream: &Stream) {
    // A pending message will be read soon; then this blocks again.
    while stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
        thread::sleep(Duration::from_millis(100));
    }
}

/// Ends this process.
pub(super) fn die() -> ! {
    std::process::abort()
}

/// Whether `child` has ended.
pub(super) fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// Kills `child`.
pub(super) fn kill(child: &mut Child) {
    let _ = child.kill();
}

/// There is no way to ask.
pub(super) fn terminate(child: &mut Child) {
    kill(child);
}

pub(super) fn limit_memory(_: u64) -> Result<(), String> {
    Err("a memory limit is not supported on this system".to_owned())
}

pub(super) fn signal(_: ExitStatus) -> Option<i32> {
    None
}
