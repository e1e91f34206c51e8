//! The transport on Unix: a socket pair. One end is the child's standard input.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpgid, getpgrp, getpid, getppid,
    getrlimit, kill_process, kill_process_group, setpgid, setrlimit, setsid, waitid,
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
    occupy_standard_streams()?;
    let (ours, theirs) = UnixStream::pair()?;
    let mark = inode(&theirs)?;
    command.env(variable, format!("{mark} {name}"));
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    // Standard output may be a pipe to another program.
    command.stdout(io::stderr());
    // Ctrl-C is for the parent, which may want running tasks to finish.
    command.process_group(0);
    let child = command.spawn()?;
    // Dropping `command` closes our copy of the child's end.
    Ok((child, ours))
}

/// Opens those of this process that are closed. Otherwise a socket would get such a number, and what is printed.
fn occupy_standard_streams() -> io::Result<()> {
    loop {
        let file = File::options().read(true).write(true).open("/dev/null")?;
        if file.as_raw_fd() > 2 {
            return Ok(());
        }
        let _stays_open = file.into_raw_fd();
    }
}

/// The program at `path`, which this process runs; it can be started even if that file was replaced or deleted.
pub(super) fn itself(path: &Path) -> PathBuf {
    let running = Path::new("/proc/self/exe");
    let file = |path: &Path| path.metadata().map(|data| (data.dev(), data.ino()));
    match (file(path), file(running)) {
        (Ok(found), Ok(meant)) if found == meant => path.to_owned(),
        (_, Ok(_)) => running.to_owned(),
        (_, Err(_)) => path.to_owned(),
    }
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
    leave_terminal();
    // The copy is closed in programs that the child starts.
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(fd))
}

/// Moves this process to a session of its own: a terminal stops processes in the background that read from it, and
/// after `stty tostop` also those that print. Where that is refused, nothing else changes.
fn leave_terminal() {
    // A session is not for the head of a group, so it joins its parent's first.
    let group = getpgid(getppid());
    if group.is_ok_and(|group| setpgid(None, Some(group)).is_ok()) && setsid().is_err() {
        let _ = setpgid(None, None);
    }
}

/// Whether [`try_read`] and [`try_write`] never block.
pub(super) const LOOKS: bool = true;

/// Reads what is there, without blocking.
pub(super) fn try_read(stream: &mut Stream, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = recv(stream, buffer, RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// Writes what there is room for, without blocking.
pub(super) fn try_write(stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(stream, bytes, SendFlags::DONTWAIT | NO_SIGNAL)?)
}

#[cfg(any(target_vendor = "apple", target_os = "redox"))]
const NO_SIGNAL: SendFlags = SendFlags::empty();
#[cfg(not(any(target_vendor = "apple", target_os = "redox")))]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;

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

/// Ends this process, and what it started. No handler, destructor or lock of a busy task can delay it.
pub(super) fn die() -> ! {
    // Not so a copy of a child, made by `fork`: its group is the child's.
    if getpgrp() == getpid() {
        let _ = kill_process_group(getpgrp(), Signal::KILL);
    }
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Whether `child` has ended. Until it is waited for, no other process or group gets its number.
pub(super) fn has_ended(child: &mut Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = pid(child).map(|pid| waitid(WaitId::Pid(pid), options));
    !matches!(status, Some(Ok(None) | Err(Errno::INTR)))
}

/// Kills `child` and what it started. Not to be called once it was waited for.
pub(super) fn kill(child: &mut Child) {
    send_signal(child, Signal::KILL);
}

/// Asks `child` and what it started to end.
pub(super) fn terminate(child: &mut Child) {
    send_signal(child, Signal::TERM);
}

/// A signal that fails cannot be helped; for a child that has ended it succeeds.
fn send_signal(child: &Child, signal: Signal) {
    if let Some(pid) = pid(child) {
        let group = kill_process_group(pid, signal);
        // On its way to a session of its own, a child is for a moment in no group that bears its number.
        if group.is_err() {
            let _ = kill_process(pid, signal);
        }
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().try_into().ok()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_started_by_its_path_while_that_leads_to_it() {
        let mine = std::env::current_exe().unwrap();
        assert_eq!(itself(&mine), mine);
        for other in ["/no/such/program", "/bin/sh"] {
            assert_eq!(itself(Path::new(other)), Path::new("/proc/self/exe"));
        }
    }
}
