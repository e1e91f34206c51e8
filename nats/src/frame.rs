//! The messages: headers, and a payload as `format` writes it.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{format, shape};

const ID: &str = "Futureproof-Id";
const DEADLINE: &str = "Futureproof-Deadline-Ms";
const MAX_DELIVER: &str = "Futureproof-Max-Deliver";
const KIND: &str = "Futureproof-Kind";
const WORKER: &str = "Futureproof-Worker";
const DELIVERIES: &str = "Futureproof-Deliveries";

/// Room for the headers: the server's `max_payload` counts them too.
const HEADER_ROOM: usize = 1024;

/// The longest deadline, a week. No worker keeps a task and no caller waits for longer.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest text, such as a panic message. Longer ones are cut.
const MAX_TEXT: usize = 4096;

/// The caller's replies to a worker. To [`Kind::Wanted`], `YES` is followed by how often the task has been started.
pub(crate) const YES: Bytes = Bytes::from_static(b"+");
pub(crate) const NO: Bytes = Bytes::from_static(b"-");
/// Another worker has been quicker.
pub(crate) const NOT_YOU: Bytes = Bytes::from_static(b"=");

/// The reply to [`Kind::Wanted`] for a task that is.
pub(crate) fn wanted(started: u64) -> Bytes {
    format!("+{started}").into()
}

/// How often a task has been started, in such a reply.
pub(crate) fn started(reply: &[u8]) -> Option<u64> {
    std::str::from_utf8(reply.strip_prefix(b"+")?)
        .ok()?
        .parse()
        .ok()
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    format::encode(value, &mut bytes).map_err(|reason| text(&reason))?;
    Ok(bytes.into())
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    shape::check(bytes)?;
    format::decode(bytes).map_err(|reason| text(&reason))
}

/// Returns an error if the payload is larger than the server accepts. `what` names it in the error.
pub(crate) fn check_length(what: &str, payload: &[u8], client: &Client) -> Result<(), String> {
    let most = client.server_info().max_payload;
    let most = most.saturating_sub(HEADER_ROOM);
    let length = payload.len();
    if length <= most {
        return Ok(());
    }
    Err(format!(
        "the {what} is {length} bytes, more than the {most} that the server accepts: send less, or raise `max_payload`"
    ))
}

/// Cuts a text to `MAX_TEXT` bytes.
pub(crate) fn text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The headers of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskHead {
    pub(crate) id: u64,
    pub(crate) deadline: Duration,
    pub(crate) max_deliver: u64,
}

impl TaskHead {
    pub(crate) fn write(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID, self.id.to_string());
        headers.insert(DEADLINE, self.deadline.as_millis().to_string());
        headers.insert(MAX_DELIVER, self.max_deliver.to_string());
        headers
    }

    pub(crate) fn read(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers?;
        Some(Self {
            id: number(headers, ID)?,
            deadline: Duration::from_millis(number(headers, DEADLINE)?).min(MAX_DEADLINE),
            max_deliver: number(headers, MAX_DELIVER)?,
        })
    }
}

/// The kind of a message from a worker to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A question: does the caller still wait for this task?
    Wanted,
    /// A question: may this worker start a task that was delivered before?
    Start,
    /// A worker that has to end gives the task back: the start does not count.
    Returned,
    Ok,
    Err,
    Panicked,
    Lost,
    /// The worker cannot decode the item.
    Decode,
    /// The worker cannot send the output.
    Encode,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Wanted, "wanted"),
    (Kind::Start, "start"),
    (Kind::Returned, "returned"),
    (Kind::Ok, "ok"),
    (Kind::Err, "err"),
    (Kind::Panicked, "panicked"),
    (Kind::Lost, "lost"),
    (Kind::Decode, "decode"),
    (Kind::Encode, "encode"),
];

impl Kind {
    fn name(self) -> &'static str {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or_else(|| unreachable!("KINDS has every kind"), |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<Self> {
        KINDS
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(kind, _)| *kind)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) worker: String,
    pub(crate) deliveries: u64,
}

impl AnswerHead {
    pub(crate) fn write(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID, self.id.to_string());
        headers.insert(KIND, self.kind.name());
        headers.insert(WORKER, self.worker.as_str());
        headers.insert(DELIVERIES, self.deliveries.to_string());
        headers
    }

    pub(crate) fn read(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers?;
        Some(Self {
            id: number(headers, ID)?,
            kind: Kind::from_name(headers.get(KIND)?.as_str())?,
            worker: text(headers.get(WORKER)?.as_str()),
            deliveries: number(headers, DELIVERIES)?,
        })
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf(u64),
        Text(String),
        Nodes { nodes: Vec<Tree> },
        Boxed(Box<Tree>),
        Empty,
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(Tree::Leaf),
            ".*".prop_map(Tree::Text),
            Just(Tree::Empty)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|nodes| Tree::Nodes { nodes }),
                inner.prop_map(|tree| Tree::Boxed(Box::new(tree))),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(tree in tree()) {
            prop_assert_eq!(decode::<Tree>(&encode(&tree).unwrap()), Ok(tree));
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Tree>(&bytes);
            let _ = decode::<Vec<Vec<String>>>(&bytes);
            let _ = decode::<(u8, Option<String>, Vec<()>)>(&bytes);
        }

        #[test]
        fn a_changed_byte_is_an_error_or_a_value(tree in tree(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = encode(&tree).unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode::<Tree>(&bytes);
        }

        #[test]
        fn hostile_headers_are_refused_or_read(id in ".*", kind in ".*", deliveries in "[0-9]{0,30}") {
            let mut headers = HeaderMap::new();
            let plain = |text: &str| text.replace(['\r', '\n'], "");
            headers.insert(ID, plain(&id));
            headers.insert(KIND, plain(&kind));
            headers.insert(WORKER, "w");
            headers.insert(DELIVERIES, deliveries);
            let _ = AnswerHead::read(Some(&headers));
            let _ = TaskHead::read(Some(&headers));
        }
    }

    #[test]
    fn a_length_that_is_not_there_costs_no_memory() {
        // An array, a string and bytes of 4 GiB each.
        for head in [0xdd, 0xdb, 0xc6] {
            let bytes = [head, 0xff, 0xff, 0xff, 0xff];
            assert!(decode::<Vec<u64>>(&bytes).is_err());
            assert!(decode::<String>(&bytes).is_err());
            assert!(decode::<Vec<()>>(&bytes).is_err());
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| {
            let mut bytes = vec![];
            for _ in 0..depth {
                bytes.extend([0x81, 0xa5]); // a map of one, and the variant's name
                bytes.extend(b"Boxed");
            }
            bytes.push(0xa5);
            bytes.extend(b"Empty");
            bytes
        };
        assert!(decode::<Tree>(&nested(120)).is_ok());
        assert!(decode::<Tree>(&nested(130)).is_err());
        assert!(decode::<Tree>(&nested(100_000)).is_err());
    }

    #[test]
    fn every_kind_of_value_passes() {
        fn passes<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
            assert_eq!(decode(&encode(&value).unwrap()), Ok(value));
        }
        for bits in 0..64 {
            passes(u64::MAX >> bits);
            passes(i64::MIN >> bits);
        }
        passes((0.5f32, 0.25f64, (), true, None::<u8>, Some('x')));
        for len in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            passes("x".repeat(len));
            passes(vec![1u8; len]);
            passes(
                (0..len)
                    .map(|n| (n, n))
                    .collect::<std::collections::BTreeMap<_, _>>(),
            );
        }
    }

    #[test]
    fn what_is_left_over_is_an_error() {
        assert_eq!(
            decode::<u8>(&[1, 2]),
            Err("1 bytes after the end of the value".to_owned())
        );
    }

    #[test]
    fn heads_come_back_as_they_were() {
        let task = TaskHead {
            id: u64::MAX,
            deadline: Duration::from_millis(1500),
            max_deliver: 3,
        };
        assert_eq!(TaskHead::read(Some(&task.write())), Some(task));
        for (kind, _) in KINDS {
            let answer = AnswerHead {
                id: 7,
                kind,
                worker: "host-1".to_owned(),
                deliveries: 2,
            };
            assert_eq!(AnswerHead::read(Some(&answer.write())), Some(answer));
        }
        assert_eq!(TaskHead::read(None), None);
        assert_eq!(AnswerHead::read(Some(&task.write())), None);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "é".repeat(MAX_TEXT);
        assert_eq!(text(&long).len(), MAX_TEXT);
        assert_eq!(text(&format!("x{long}")).len(), MAX_TEXT - 1);
    }
}
