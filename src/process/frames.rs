//! Messages over a stream: a head with length, number and kind, then the message.

use std::cmp::Ordering;
use std::io::{self, ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::transport::{LOOKS, Stream, try_read, try_write};

/// The longest message, in bytes. A longer length is an error.
pub(super) const LONGEST: usize = 1 << 30;
/// Four bytes of length, eight of the number, one of the kind.
const HEADER: usize = 13;
/// The smallest read buffer.
const STEP: usize = 1 << 16;
/// Larger buffers are not kept for the next message.
const KEPT: usize = 1 << 23;

/// What a message is besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of the task. An answer bears the number of its task, so that it cannot be taken for another's.
    pub(super) number: u64,
    pub(super) kind: u8,
}

/// Why there is no message.
#[derive(Debug)]
pub(super) enum Broken {
    /// The time is up.
    Late,
    /// The other side is gone, and has not read all that was sent.
    Unread,
    /// The other side is gone, or unusable.
    Gone,
    /// What came is no message.
    Garbled,
}

/// Sends and receives messages, one side at a time.
#[derive(Debug)]
pub(super) struct Frames {
    stream: Stream,
    outgoing: Vec<u8>,
    /// How many bytes of `outgoing` have been sent.
    sent: usize,
    incoming: Vec<u8>,
    /// How many bytes of the next message have been read.
    filled: usize,
    /// The end of the last message in `incoming`.
    end: usize,
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
            sent: 0,
            incoming: Vec::new(),
            filled: 0,
            end: HEADER,
            limits_reads: false,
            limits_writes: false,
            lookout: Lookout::new(),
        }
    }

    /// Prepares a message that `write` appends to a buffer. It leaves with [`send`](Self::send).
    pub(super) fn prepare(
        &mut self,
        head: Head,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        outgoing.extend([0; HEADER]);
        write(&mut outgoing)?;
        let header = header(outgoing.len() - HEADER, head)?;
        outgoing[..HEADER].copy_from_slice(&header);
        self.outgoing = outgoing;
        self.sent = 0;
        Ok(())
    }

    /// Sends what is prepared. On [`Broken::Late`], the caller may go on with it.
    pub(super) fn send(&mut self, end: Option<Instant>) -> Result<(), Broken> {
        // Mostly all of it fits into the socket's buffer, and no timeout need be set.
        let mut is_first = LOOKS;
        while self.sent < self.outgoing.len() {
            let outcome = match std::mem::take(&mut is_first) {
                true => try_write(&mut self.stream, &self.outgoing[self.sent..]),
                false => self.write(left(end)?),
            };
            match outcome {
                Ok(count) => self.sent += count,
                // It has not read the whole message, whatever the error says.
                Err(error) => check(&error).map_err(|_| Broken::Unread)?,
            }
        }
        shorten(&mut self.outgoing);
        self.sent = self.outgoing.len();
        Ok(())
    }

    fn write(&mut self, left: Option<Duration>) -> io::Result<usize> {
        if left.is_some() || self.limits_writes {
            self.limits_writes = left.is_some();
            self.stream.set_write_timeout(left)?;
        }
        self.stream.write(&self.outgoing[self.sent..])
    }

    /// Waits for a message, which is then the [`body`](Self::body). On [`Broken::Late`], what was read is kept, and
    /// the caller may wait again.
    pub(super) fn receive(&mut self, end: Option<Instant>) -> Result<Head, Broken> {
        if self.filled == 0 {
            shorten(&mut self.incoming);
        }
        loop {
            let filled = self.filled;
            let head = match self.incoming[..filled].first_chunk() {
                Some(header) => Some(parse(*header)?),
                None => None,
            };
            let wanted = HEADER + head.map_or(0, |(length, _)| length);
            match (filled.cmp(&wanted), head) {
                (Ordering::Equal, Some((_, head))) => {
                    (self.filled, self.end) = (0, wanted);
                    return Ok(head);
                }
                (Ordering::Greater, _) => return Err(Broken::Garbled),
                _ => {}
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

    /// The message that was received last.
    pub(super) fn body(&self) -> &[u8] {
        &self.incoming[HEADER..self.end]
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
fn header(length: usize, head: Head) -> Result<[u8; HEADER], String> {
    if length > LONGEST {
        return Err(format!(
            "{length} bytes, and a message has {LONGEST} at most"
        ));
    }
    let mut header = [head.kind; HEADER];
    header[..4].copy_from_slice(&(length as u32).to_le_bytes());
    header[4..12].copy_from_slice(&head.number.to_le_bytes());
    Ok(header)
}

/// The length and the rest that `header` gives.
fn parse(header: [u8; HEADER]) -> Result<(usize, Head), Broken> {
    let [a, b, c, d, number @ .., kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let number = u64::from_le_bytes(number);
    match length <= LONGEST {
        true => Ok((length, Head { number, kind })),
        false => Err(Broken::Garbled),
    }
}

/// Whether a failed read or write should be repeated. The time limit is checked then.
fn check(error: &io::Error) -> Result<(), Broken> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        // What Linux says of a socket pair whose other end was closed before it was read.
        ErrorKind::ConnectionReset => Err(Broken::Unread),
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

    const HEAD: Head = Head { number: 7, kind: 3 };

    fn pair() -> (Frames, Stream) {
        let (ours, theirs) = Stream::pair().unwrap();
        (Frames::new(ours), theirs)
    }

    fn send(frames: &mut Frames, bytes: &[u8]) -> Result<(), Broken> {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend(bytes);
            Ok(())
        };
        frames.prepare(HEAD, write).unwrap();
        frames.send(None)
    }

    #[test]
    fn a_message_may_be_so_long_and_no_longer() {
        let longest = header(LONGEST, HEAD).unwrap();
        assert_eq!(longest, [0, 0, 0, 0x40, 7, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(parse(longest).unwrap(), (LONGEST, HEAD));
        let text = header(LONGEST + 1, HEAD).unwrap_err();
        assert!(text.starts_with("1073741825 bytes"), "{text}");
        let mut longer = longest;
        longer[0] = 1;
        assert!(matches!(parse(longer), Err(Broken::Garbled)));
    }

    #[test]
    fn what_is_no_message_is_not_waited_for() {
        let (mut frames, mut other) = pair();
        other.write_all(b"what a task prints").unwrap();
        assert!(matches!(frames.receive(None), Err(Broken::Garbled)));
    }

    #[test]
    fn what_comes_behind_a_message_is_none() {
        for length in [0, 1] {
            let (mut frames, mut other) = pair();
            other.write_all(&header(length, HEAD).unwrap()).unwrap();
            other.write_all(&[7; 2]).unwrap();
            assert!(matches!(frames.receive(None), Err(Broken::Garbled)));
        }
    }

    #[test]
    fn messages_come_with_number_and_kind_and_may_be_empty() {
        let (mut frames, other) = pair();
        let mut other = Frames::new(other);
        for bytes in [&b""[..], b"abc", b""] {
            send(&mut frames, bytes).unwrap();
            assert_eq!(other.receive(None).unwrap(), HEAD);
            assert_eq!(other.body(), bytes);
        }
    }

    #[test]
    fn a_promise_takes_no_memory() {
        let (mut frames, mut other) = pair();
        other.write_all(&header(LONGEST, HEAD).unwrap()).unwrap();
        drop(other);
        assert!(matches!(frames.receive(None), Err(Broken::Gone)));
        assert!(frames.incoming.len() <= 2 * STEP);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_not_read_is_told_from_what_was() {
        let (mut frames, other) = pair();
        drop(other);
        assert!(matches!(send(&mut frames, b"x"), Err(Broken::Unread)));

        // More than a socket buffers; the other side reads one byte.
        let (mut frames, mut other) = pair();
        let sender = thread::spawn(move || send(&mut frames, &[7; 1 << 23]));
        other.read_exact(&mut [0]).unwrap();
        drop(other);
        assert!(matches!(sender.join().unwrap(), Err(Broken::Unread)));

        // All was sent, and waits in the socket's buffer.
        let (mut frames, mut other) = pair();
        send(&mut frames, b"x").unwrap();
        other.read_exact(&mut [0; HEADER]).unwrap();
        drop(other);
        assert!(matches!(frames.receive(None), Err(Broken::Unread)));

        let (mut frames, mut other) = pair();
        send(&mut frames, b"x").unwrap();
        other.read_exact(&mut [0; HEADER + 1]).unwrap();
        drop(other);
        assert!(matches!(frames.receive(None), Err(Broken::Gone)));
    }

    #[test]
    fn what_is_sent_in_part_goes_on_later() {
        let (mut frames, other) = pair();
        let bytes = vec![7; 1 << 23];
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend(&bytes);
            Ok(())
        };
        frames.prepare(HEAD, write).unwrap();
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(matches!(frames.send(Some(soon)), Err(Broken::Late)));
        let receiver = thread::spawn(move || {
            let mut frames = Frames::new(other);
            frames.receive(None).unwrap();
            frames.body().to_vec()
        });
        frames.send(None).unwrap();
        assert!(receiver.join().unwrap() == bytes);
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

    #[test]
    fn what_has_come_in_part_is_kept() {
        let (mut frames, mut other) = pair();
        let bytes = vec![7; 2 * KEPT];
        other
            .write_all(&header(bytes.len(), HEAD).unwrap())
            .unwrap();
        let sender = thread::spawn(move || {
            other.write_all(&bytes[..KEPT + 1]).unwrap();
            (other, bytes)
        });
        while frames.filled <= HEADER + KEPT {
            let soon = Instant::now() + Duration::from_millis(1);
            assert!(matches!(frames.receive(Some(soon)), Err(Broken::Late)));
        }
        let (mut other, bytes) = sender.join().unwrap();
        let sender = thread::spawn(move || {
            other.write_all(&bytes[KEPT + 1..]).unwrap();
            (other, bytes)
        });
        frames.receive(None).unwrap();
        let (mut other, bytes) = sender.join().unwrap();
        assert!(frames.body() == bytes);
        // What was needed for it is given back.
        other.write_all(&header(0, HEAD).unwrap()).unwrap();
        frames.receive(None).unwrap();
        assert!(frames.incoming.len() <= KEPT);
    }
}
