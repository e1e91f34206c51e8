//! The transport on Unix: a socket pair. One end is the child's standard input.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use rustix::process::{
    Resource, Rlimit, Signal, getpid, getppid, getrlimit, kill_process, setrlimit,
};

pub(super) type Stream = UnixStream;

/// How often a child checks for a new parent, in case the socket is still open.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Starts a child. `variable` tells it which function to serve.
pub(super) fn spawn(
    mut command: Command,
    variable: &str,
    name: &str,
    _: Option<Instant>,
) -> io::Result<(Child, Stream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mark = inode(&theirs)?;
    command.env(variable, format!("{mark} {name}"));
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    // Ctrl-C is for the parent, which may want running tasks to finish.
    command.process_group(0);
    let child = command.spawn()?;
    // Dropping `command` closes our copy of the child's end.
    Ok((child, ours))
}

/// The name of the function that this process serves, if `value` is meant for it.
///
/// A program that a child starts inherits the variable, but not the socket.
pub(super) fn meant(value: &str) -> Option<&str> {
    let (mark, name) = value.split_once(' ')?;
    let stdin = inode(&io::stdin()).ok()?;
    (mark.parse() == Ok(stdin)).then_some(name)
}

fn inode(fd: &impl AsFd) -> io::Result<u64> {
    let file = File::from(fd.as_fd().try_clone_to_owned()?).metadata()?;
    match file.file_type().is_socket() {
        true => Ok(file.ino()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Takes the child's end. Afterwards standard input is empty, so that no task reads messages.
pub(super) fn adopt(_: &str) -> io::Result<Stream> {
    // The copy is closed in programs that the child starts.
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(fd))
}

/// Whether [`try_read`] never blocks.
pub(super) const LOOKS: bool = true;

/// Reads what is there, without blocking.
pub(super) fn try_read(stream: &mut Stream, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = recv(stream, buffer, RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// Blocks until the parent is gone.
pub(super) fn await_orphaned(stream: &Stream) {
    let parent = getppid();
    loop {
        // Asks for no event: a message does not wake it, a hang-up does.
        let mut fds = [PollFd::new(stream, PollFlags::empty())];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) if getppid() == parent => {}
            _ => return,
        }
    }
}

/// Ends this process. No handler, destructor or lock of a busy task can delay it.
pub(super) fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Limits the address space of this process.
pub(super) fn limit_memory(bytes: u64) -> Result<(), String> {
    let maximum = getrlimit(Resource::As).maximum;
    let current = Some(maximum.map_or(bytes, |maximum| bytes.min(maximum)));
    let limit = Rlimit { current, maximum };
    setrlimit(Resource::As, limit)
        .map_err(|error| format!("the memory limit of {bytes} bytes could not be set: {error}"))
}

pub(super) fn signal(status: ExitStatus) -> Option<i32> {
    status.signal()
}
