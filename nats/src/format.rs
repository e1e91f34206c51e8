//! Values as bytes: MessagePack, with the names of fields and variants.
//!
//! MessagePack writes `None` and `()` as the same byte, and `Some(value)` as `value`. So `Some(None)` and `Some(())` would
//! be read as `None`. Such a value is refused before it is sent.
//!
//! `futureproof` and `futureproof-nats` have this file in common, word for word.

use std::any::type_name;
use std::fmt::{self, Display};

use rmp_serde::{Deserializer, Serializer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::ser::{
    self, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

/// What `None` and `()` are as bytes.
const NIL: u8 = 0xc0;

/// Appends `value` to `bytes`.
pub(crate) fn encode<V: Serialize>(value: &V, bytes: &mut Vec<u8>) -> Result<(), String> {
    let start = bytes.len();
    // As text where a type has a choice: within `flatten` and `untagged`, serde reads no other form of an `IpAddr`.
    let mut serializer = Serializer::new(&mut *bytes)
        .with_struct_map()
        .with_human_readable();
    value
        .serialize(&mut serializer)
        .map_err(|error| error.to_string())?;
    // Looking for the byte is much cheaper than walking through the value.
    if has_nil(&bytes[start..]) {
        value
            .serialize(FindLost)
            .map_err(|lost| lost.text(type_name::<V>()))?;
    }
    Ok(())
}

/// Reads a value.
pub(crate) fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, String> {
    let mut deserializer = Deserializer::from_read_ref(bytes).with_human_readable();
    V::deserialize(&mut deserializer).map_err(|error| error.to_string())
}

/// In parts that are compared as a whole, which takes a third of the time of `contains`.
fn has_nil(bytes: &[u8]) -> bool {
    let mut parts = bytes.chunks(256);
    parts.any(|part| {
        part.iter()
            .fold(false, |found, byte| found | (*byte == NIL))
    })
}

/// Finds what would be read back as `None` and is not. Gives whether the value is written as [`NIL`].
struct FindLost;

/// Where it is, the innermost name first.
#[derive(Debug)]
struct Lost {
    fields: Vec<&'static str>,
    what: String,
}

impl Lost {
    fn within(mut self, field: &'static str) -> Self {
        self.fields.push(field);
        self
    }

    fn text(mut self, root: &'static str) -> String {
        self.fields.push(root);
        self.fields.reverse();
        format!("{}: {}", self.fields.join("."), self.what)
    }
}

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Lost {}

impl ser::Error for Lost {
    fn custom<T: Display>(what: T) -> Self {
        let (fields, what) = (Vec::new(), what.to_string());
        Self { fields, what }
    }
}

macro_rules! never_nil {
    ($($method:ident: $type:ty)*) => {
        $(fn $method(self, _: $type) -> Result<bool, Lost> {
            Ok(false)
        })*
    };
}

impl ser::Serializer for FindLost {
    type Ok = bool;
    type Error = Lost;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    never_nil! {
        serialize_bool: bool serialize_char: char serialize_str: &str serialize_bytes: &[u8]
        serialize_i8: i8 serialize_i16: i16 serialize_i32: i32 serialize_i64: i64 serialize_i128: i128
        serialize_u8: u8 serialize_u16: u16 serialize_u32: u32 serialize_u64: u64 serialize_u128: u128
        serialize_f32: f32 serialize_f64: f64
    }

    fn serialize_none(self) -> Result<bool, Lost> {
        Ok(true)
    }

    fn serialize_unit(self) -> Result<bool, Lost> {
        Ok(true)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<bool, Lost> {
        match value.serialize(self)? {
            true => Err(ser::Error::custom(format_args!(
                "`Some` of an empty `{}` would be read back as `None`; use an enum instead",
                type_name::<T>()
            ))),
            false => Ok(false),
        }
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<bool, Lost> {
        Ok(false)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<bool, Lost> {
        Ok(false)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<bool, Lost> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<bool, Lost> {
        value.serialize(self).map_err(|lost| lost.within(variant))?;
        Ok(false)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Lost> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Lost> {
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        true
    }
}

macro_rules! parts {
    ($($trait:ident: $($method:ident)*;)*) => {
        $(impl $trait for FindLost {
            type Ok = bool;
            type Error = Lost;

            $(fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Lost> {
                value.serialize(Self).map(drop)
            })*

            fn end(self) -> Result<bool, Lost> {
                Ok(false)
            }
        })*
    };
}

parts! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
    SerializeMap: serialize_key serialize_value;
}

macro_rules! fields {
    ($($trait:ident)*) => {
        $(impl $trait for FindLost {
            type Ok = bool;
            type Error = Lost;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Lost> {
                value.serialize(Self).map(drop).map_err(|lost| lost.within(name))
            }

            fn end(self) -> Result<bool, Lost> {
                Ok(false)
            }
        })*
    };
}

fields! { SerializeStruct SerializeStructVariant }

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;
    use std::net::IpAddr;
    use std::time::Duration;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    fn trip<V: Serialize, W: DeserializeOwned>(value: &V) -> Result<W, String> {
        let mut bytes = b"before".to_vec();
        encode(value, &mut bytes)?;
        decode(bytes.strip_prefix(b"before").unwrap())
    }

    fn comes_back<V: Serialize + DeserializeOwned + PartialEq + Debug>(value: V) {
        assert_eq!(trip(&value).as_ref(), Ok(&value));
    }

    /// What was wrong with it, by the sender and before the receiver reads another value.
    fn refused<V: Serialize + DeserializeOwned + Debug>(value: V) -> String {
        trip::<V, V>(&value).unwrap_err()
    }

    fn is_zero(n: &u8) -> bool {
        *n == 0
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Skips {
        #[serde(default, skip_serializing_if = "is_zero")]
        a: u8,
        b: Vec<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        c: Option<u8>,
        #[serde(default, skip_serializing_if = "is_zero")]
        d: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat<V> {
        a: u8,
        #[serde(flatten)]
        rest: V,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        nothing: (),
        maybe: Option<Option<u8>>,
        letter: char,
        address: IpAddr,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    }

    fn inner(maybe: Option<Option<u8>>) -> Flat<Inner> {
        let address = [1, 2, 3, 4].into();
        let bytes = vec![0, 200];
        let rest = Inner {
            nothing: (),
            maybe,
            letter: 'x',
            address,
            bytes,
        };
        Flat { a: 1, rest }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wide {
        n: i128,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u64),
        Signed(i64),
        Float(f64),
        Text(String),
        List(Vec<u8>),
        Named { a: u8 },
        Nothing,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Named { x: u8 },
        New(Skips),
        Nothing,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", content = "content")]
    enum Adjacent {
        Named { x: u8 },
        Pair(u8, u8),
        Nothing,
        Maybe(Option<()>),
    }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    enum Plain {
        Named { x: Option<()> },
        Pair(u8, Option<()>),
        Nothing,
        Maybe(Option<()>),
        Unit(()),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New<V>(V);

    #[test]
    fn attributes_of_serde_work() {
        let skips = |a, c, d| Skips {
            a,
            b: vec![3, 1],
            c,
            d,
        };
        comes_back([skips(0, None, 0), skips(1, Some(2), 3)]);
        comes_back(inner(None));
        comes_back(inner(Some(Some(1))));
        let value = json!({"a": [1, -1, 1.5, null, {"": u64::MAX}]});
        comes_back(Flat {
            a: 1,
            rest: BTreeMap::from([("k".to_owned(), value)]),
        });
        comes_back([
            Untagged::Number(u64::MAX),
            Untagged::Signed(-1),
            Untagged::Float(1.0),
            Untagged::Text("x".to_owned()),
            Untagged::List(vec![1]),
            Untagged::Named { a: 1 },
            Untagged::Nothing,
        ]);
        comes_back([
            Tagged::Named { x: 1 },
            Tagged::New(skips(0, None, 0)),
            Tagged::Nothing,
        ]);
        let maybe = Adjacent::Maybe(None);
        comes_back([
            Adjacent::Named { x: 1 },
            Adjacent::Pair(1, 2),
            Adjacent::Nothing,
            maybe,
        ]);
    }

    #[test]
    fn values_come_back_unchanged() {
        let pair = Plain::Pair(1, None);
        comes_back([
            Plain::Named { x: None },
            pair,
            Plain::Nothing,
            Plain::Maybe(None),
            Plain::Unit(()),
        ]);
        comes_back(json!({"a": [null, true, 1, -1, 1.0, u64::MAX, i64::MIN, "x", {}], "": null}));
        comes_back((
            (),
            Unit,
            None::<()>,
            Some(Unit),
            Some([(); 0]),
            New(()),
            None::<Option<u8>>,
            Some(Some(1)),
        ));
        comes_back((
            i128::MIN,
            i128::MAX,
            u128::MAX,
            -1i128,
            u64::MAX,
            i64::MIN,
            -128i8,
        ));
        comes_back(BTreeMap::from([
            ((None, 'x'), Plain::Nothing),
            ((Some(1u8), '\u{10ffff}'), Plain::Unit(())),
        ]));
        comes_back(BTreeMap::from([(u64::MAX, true), (0, false)]));
        comes_back((
            Duration::from_nanos(1),
            IpAddr::from([0; 16]),
            Ok::<(), u8>(()),
            ["", "é"].map(str::to_owned),
        ));
        comes_back((f64::INFINITY, -0.0, 5e-324, f32::MIN));
        for bits in [
            0x7ff8_0000_0000_0000,
            0x7ff0_0000_dead_beef,
            0xfff8_0000_0000_0001,
        ] {
            assert_eq!(
                trip::<f64, f64>(&f64::from_bits(bits)).map(f64::to_bits),
                Ok(bits)
            );
        }
        for length in [0, 1, 255, 65_536, 64 << 20] {
            comes_back(serde_bytes::ByteBuf::from(vec![NIL; length]));
        }
        comes_back(vec![NIL; 65_536]);
    }

    #[test]
    fn what_would_be_read_as_none_is_refused_with_its_place() {
        let nothing = "would be read back as `None`";
        for text in [
            refused(Some(())),
            refused(Some(None::<u8>)),
            refused(Some(New(()))),
            refused(Some(Value::Null)),
            refused(Some(Untagged::Nothing)),
            refused(vec![None, Some(None::<u8>)]),
            refused(BTreeMap::from([(Some(()), 1)])),
        ] {
            assert!(text.contains(nothing) && text.contains("Option<"), "{text}");
        }
        for (text, place) in [
            (refused(inner(Some(None))), "Flat<"),
            (refused(New(New(Plain::Named { x: Some(()) }))), "New<"),
            (refused(Plain::Named { x: Some(()) }), "Plain.x: "),
            (refused(Plain::Pair(1, Some(()))), "Plain: "),
            (refused(Plain::Maybe(Some(()))), "Plain.Maybe: "),
            (refused(Adjacent::Maybe(Some(()))), "Adjacent.content: "),
        ] {
            assert!(text.contains(nothing) && text.contains(place), "{text}");
        }
        // serde's own buffer for `flatten` has no such numbers.
        assert_eq!(
            refused(Flat {
                a: 1,
                rest: Wide { n: 5 }
            }),
            "i128 is not supported"
        );
    }

    #[test]
    fn a_field_that_has_a_default_may_be_added_and_others_are_an_error() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Old {
            a: u8,
            b: String,
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct New {
            b: String,
            #[serde(default)]
            added: Option<u32>,
            a: u8,
        }
        #[derive(Debug, Deserialize)]
        struct Other {
            _a: u8,
            _must: u8,
        }
        let old = Old {
            a: 1,
            b: "x".to_owned(),
        };
        let new = New {
            b: "x".to_owned(),
            added: None,
            a: 1,
        };
        assert_eq!(trip(&old).as_ref(), Ok(&new));
        assert_eq!(
            trip(&New {
                added: Some(1),
                ..new
            })
            .as_ref(),
            Ok(&old)
        );
        let error = trip::<_, Other>(&old).unwrap_err();
        assert!(error.contains("missing field `_a`"), "{error}");
        trip::<_, Flat<()>>(&BTreeMap::from([("a", "text")])).unwrap_err();
        let error = trip::<_, Plain>(&"Unknown").unwrap_err();
        assert!(error.contains("unknown variant `Unknown`"), "{error}");
    }

    #[test]
    fn the_users_own_words_are_the_error() {
        struct Bad;
        impl Serialize for Bad {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(ser::Error::custom("why not"))
            }
        }
        impl<'de> Deserialize<'de> for Bad {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Err(serde::de::Error::custom("why not"))
            }
        }
        assert_eq!(encode(&Bad, &mut Vec::new()), Err("why not".to_owned()));
        assert_eq!(decode::<Bad>(&[NIL]).err(), Some("why not".to_owned()));
    }

    #[test]
    fn what_is_searched_for_what_is_lost_is_told_as_it_is_written() {
        assert!(has_nil(&[&[0; 300][..], &[NIL]].concat()));
        assert!(!has_nil(&[0; 300]));
        assert_eq!(<Lost as ser::Error>::custom("broken").to_string(), "broken");
        assert!(ser::Serializer::is_human_readable(&FindLost));
        // A variant without a value is written by its name, and can be told from nothing.
        comes_back((None::<u8>, Some(Plain::Nothing)));
    }
}
