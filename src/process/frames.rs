//! Messages over a stream: a length of four bytes, then the message.

use std::cmp::Ordering;
use std::io::{self, ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transport::{LOOKS, Stream, try_read};

/// The longest message, in bytes. A longer length is an error.
pub(super) const LONGEST: usize = 1 << 30;
const HEADER: usize = 4;
/// The smallest read buffer.
const STEP: usize = 1 << 16;
/// Larger buffers are not kept for the next message.
const KEPT: usize = 1 << 23;

/// Why there is no message.
#[derive(Debug)]
pub(super) enum Broken {
    /// The time is up.
    Late,
    /// The other side was gone before a byte was sent.
    Unsent,
    /// The other side is gone, or unusable.
    Gone,
    /// The value cannot be serialized, or the message cannot be read.
    Garbled(String),
}

/// Sends and receives messages, one side at a time.
#[derive(Debug)]
pub(super) struct Frames {
    stream: Stream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// How many bytes of the next message have been read.
    filled: usize,
    /// Whether reads and writes of the stream have a timeout set.
    limits_reads: bool,
    limits_writes: bool,
    lookout: Lookout,
}

impl Frames {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            filled: 0,
            limits_reads: false,
            limits_writes: false,
            lookout: Lookout::new(),
        }
    }

    /// Sends `value`. On [`Broken::Garbled`], nothing was sent.
    pub(super) fn send<V: Serialize>(
        &mut self,
        value: &V,
        end: Option<Instant>,
    ) -> Result<(), Broken> {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        outgoing.extend([0; HEADER]);
        let outgoing = postcard::to_extend(value, outgoing)
            .map_err(|error| Broken::Garbled(error.to_string()))?;
        let header = header(outgoing.len() - HEADER)?;
        self.outgoing = outgoing;
        self.outgoing[..HEADER].copy_from_slice(&header);
        let mut sent = 0;
        while sent < self.outgoing.len() {
            let left = left(end)?;
            if left.is_some() || self.limits_writes {
                self.limits_writes = left.is_some();
                let set = self.stream.set_write_timeout(left);
                set.map_err(|_| Broken::Gone)?;
            }
            match self.stream.write(&self.outgoing[sent..]) {
                Ok(count) => sent += count,
                Err(error) => match check(&error) {
                    Err(Broken::Gone) if sent == 0 => return Err(Broken::Unsent),
                    outcome => outcome?,
                },
            }
        }
        shorten(&mut self.outgoing);
        Ok(())
    }

    /// Waits for a message. On [`Broken::Late`], what was read is kept, and the caller may wait again.
    pub(super) fn receive<V: DeserializeOwned>(
        &mut self,
        end: Option<Instant>,
    ) -> Result<V, Broken> {
        if self.filled == 0 {
            shorten(&mut self.incoming);
        }
        loop {
            let filled = self.filled;
            let wanted = match self.incoming[..filled].first_chunk() {
                Some(header) => HEADER + length(*header)?,
                None => HEADER,
            };
            match filled.cmp(&wanted) {
                Ordering::Less => {}
                Ordering::Equal => {
                    self.filled = 0;
                    return postcard::from_bytes(&self.incoming[HEADER..wanted])
                        .map_err(|error| Broken::Garbled(error.to_string()));
                }
                Ordering::Greater => return Err(nonsense()),
            }
            // The buffer grows with what was read, not with what the header says.
            let room = wanted.min(2 * filled).max(filled + STEP);
            if self.incoming.len() < room {
                self.incoming.resize(room, 0);
            }
            match self.read(filled, left(end)?) {
                Ok(0) => return Err(Broken::Gone),
                Ok(count) => self.filled += count,
                Err(error) => check(&error)?,
            }
        }
    }

    /// Reads more bytes, blocking for up to `left`. Polls before it blocks if the last wait was short.
    fn read(&mut self, filled: usize, left: Option<Duration>) -> io::Result<usize> {
        let buffer = &mut self.incoming[filled..];
        let start = Instant::now();
        while LOOKS && self.lookout.is_worth_it(start) {
            let outcome = try_read(&mut self.stream, buffer);
            self.lookout.looked(start, start.elapsed());
            match outcome {
                // The other side may need this core.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                outcome => return outcome,
            }
        }
        if left.is_some() || self.limits_reads {
            self.limits_reads = left.is_some();
            self.stream.set_read_timeout(left)?;
        }
        let outcome = self.stream.read(buffer);
        self.lookout.waited(start.elapsed());
        outcome
    }
}

/// How long to block at most until `end`.
fn left(end: Option<Instant>) -> Result<Option<Duration>, Broken> {
    let left = end.map(|end| end.saturating_duration_since(Instant::now()));
    match left {
        Some(Duration::ZERO) => Err(Broken::Late),
        left => Ok(left),
    }
}

/// Decides whether to poll for a message before blocking.
#[derive(Debug)]
struct Lookout {
    /// Whether the last wait was short.
    is_near: bool,
    /// Until then the machine is too busy to poll.
    calm_until: Instant,
}

/// Waits shorter than this are polled for, because falling asleep and waking up takes about as long, or longer if the
/// core sleeps as well.
const NEAR: Duration = Duration::from_micros(100);
/// A poll that took this long was interrupted by someone else who used the core.
const FAR: Duration = Duration::from_millis(1);
/// After such a poll, do not poll for this many times its duration. So it costs a hundredth at most.
const CALM: u32 = 100;

impl Lookout {
    fn new() -> Self {
        Self {
            is_near: false,
            calm_until: Instant::now(),
        }
    }

    /// Whether to poll, for a wait that began at `start`.
    fn is_worth_it(&self, start: Instant) -> bool {
        self.is_near && start >= self.calm_until
    }

    /// Records a poll that ended this long after `start`.
    fn looked(&mut self, start: Instant, after: Duration) {
        if after > FAR {
            self.calm_until = start + after * CALM;
        }
        self.waited(after);
    }

    /// Records how long the wait took.
    fn waited(&mut self, time: Duration) {
        self.is_near = time < NEAR;
    }
}

/// The header of a message of `length` bytes.
fn header(length: usize) -> Result<[u8; HEADER], Broken> {
    if length > LONGEST {
        let text = format!("{length} bytes, and a message has {LONGEST} at most");
        return Err(Broken::Garbled(text));
    }
    Ok((length as u32).to_le_bytes())
}

/// The length that `header` gives.
fn length(header: [u8; HEADER]) -> Result<usize, Broken> {
    let length = u32::from_le_bytes(header) as usize;
    if length > LONGEST {
        return Err(nonsense());
    }
    Ok(length)
}

fn nonsense() -> Broken {
    let text =
        "what came is no message; did the function write to a descriptor that is not its own?";
    Broken::Garbled(text.to_owned())
}

/// Whether a failed read or write should be repeated. The time limit is checked then.
fn check(error: &io::Error) -> Result<(), Broken> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        _ => Err(Broken::Gone),
    }
}

fn shorten(buffer: &mut Vec<u8>) {
    if buffer.len() > KEPT {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn pair() -> (Frames, Stream) {
        let (ours, theirs) = Stream::pair().unwrap();
        (Frames::new(ours), theirs)
    }

    fn is_nonsense<V>(outcome: &Result<V, Broken>) -> bool {
        matches!(outcome, Err(Broken::Garbled(text)) if text.starts_with("what came is no message"))
    }

    #[test]
    fn a_message_may_be_so_long_and_no_longer() {
        let longest = header(LONGEST).unwrap();
        assert_eq!(longest, 0x4000_0000_u32.to_le_bytes());
        assert_eq!(length(longest).unwrap(), LONGEST);
        let outcome = header(LONGEST + 1);
        assert!(
            matches!(&outcome, Err(Broken::Garbled(text)) if text.starts_with("1073741825 bytes")),
            "{outcome:?}"
        );
        assert!(is_nonsense(&length(0x4000_0001_u32.to_le_bytes())));
    }

    #[test]
    fn what_is_no_message_is_not_waited_for() {
        let (mut frames, mut other) = pair();
        other.write_all(b"hello, world").unwrap();
        assert!(is_nonsense(&frames.receive::<u8>(None)));
    }

    #[test]
    fn what_comes_behind_a_message_is_none() {
        for length in [0, 1] {
            let (mut frames, mut other) = pair();
            other.write_all(&[length, 0, 0, 0, 7, 7]).unwrap();
            assert!(is_nonsense(&frames.receive::<()>(None)));
        }
    }

    #[test]
    fn a_message_may_be_empty() {
        let (mut frames, other) = pair();
        frames.send(&(), None).unwrap();
        Frames::new(other).receive::<()>(None).unwrap();
    }

    #[test]
    fn a_promise_takes_no_memory() {
        let (mut frames, mut other) = pair();
        other.write_all(&header(LONGEST).unwrap()).unwrap();
        drop(other);
        assert!(matches!(frames.receive::<u8>(None), Err(Broken::Gone)));
        assert!(frames.incoming.len() <= 2 * STEP);
    }

    #[test]
    fn what_was_not_sent_is_told_from_what_was_half_sent() {
        let (mut frames, other) = pair();
        drop(other);
        assert!(matches!(frames.send(&1_u8, None), Err(Broken::Unsent)));

        // More than a socket buffers; the other side reads one byte.
        let (mut frames, mut other) = pair();
        let sender = thread::spawn(move || frames.send(&vec![7_u8; 1 << 23], None));
        other.read_exact(&mut [0]).unwrap();
        drop(other);
        assert!(matches!(sender.join().unwrap(), Err(Broken::Gone)));
    }

    #[test]
    fn who_looks_in_vain_blocks() {
        let (mut frames, _other) = pair();
        frames.lookout.is_near = true;
        frames.incoming = vec![0; STEP];
        let moment = Duration::from_millis(20);
        frames.stream.set_read_timeout(Some(moment)).unwrap();
        let error = frames.read(0, None).unwrap_err();
        assert!(check(&error).is_ok());
        // Found by blocking, not by polling.
        assert!(!frames.lookout.is_near);
    }

    #[test]
    fn only_what_was_near_is_looked_for() {
        let mut lookout = Lookout::new();
        let start = lookout.calm_until;
        assert!(!lookout.is_worth_it(start));
        lookout.waited(NEAR - Duration::from_nanos(1));
        assert!(lookout.is_worth_it(start));
        lookout.waited(NEAR);
        assert!(!lookout.is_worth_it(start));
    }

    #[test]
    fn a_busy_machine_is_left_alone_for_a_while() {
        let mut lookout = Lookout::new();
        let start = lookout.calm_until;
        lookout.looked(start, FAR);
        lookout.waited(Duration::ZERO);
        assert!(lookout.is_worth_it(start));
        let far = 2 * FAR;
        lookout.looked(start, far);
        lookout.waited(Duration::ZERO);
        let calm = far * CALM;
        assert!(!lookout.is_worth_it(start + calm - Duration::from_nanos(1)));
        assert!(lookout.is_worth_it(start + calm));
    }

    #[test]
    fn only_buffers_of_a_usual_size_are_kept() {
        let most = 8 << 20;
        let mut buffer = vec![0; most];
        shorten(&mut buffer);
        assert_eq!(buffer.len(), most);
        buffer.push(0);
        shorten(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }
}
