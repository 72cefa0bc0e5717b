//! `tf.train.Example`: named lists of bytes, floats or integers (TensorFlow `core/example/{example,feature}.proto`).

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::Bytes;

/// The message; `features.feature` is a map.
#[derive(Clone, PartialEq, Message)]
pub struct Example {
    /// What it holds.
    #[prost(message, optional, tag = "1")]
    pub features: Option<Features>,
}

/// Features by name.
#[derive(Clone, PartialEq, Message)]
pub struct Features {
    /// Name to list.
    #[prost(btree_map = "string, message", tag = "1")]
    pub feature: BTreeMap<String, Feature>,
}

/// One list; a list of no element may be of no kind.
#[derive(Clone, PartialEq, Message)]
pub struct Feature {
    /// Which list.
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub kind: Option<Kind>,
}

/// The kinds of lists.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Text, encoded images, serialised tensors.
    #[prost(message, tag = "1")]
    Bytes(BytesList),
    /// f32.
    #[prost(message, tag = "2")]
    Float(FloatList),
    /// Integers and booleans.
    #[prost(message, tag = "3")]
    Int64(Int64List),
}

/// Byte strings; they share the record's memory.
#[derive(Clone, PartialEq, Message)]
pub struct BytesList {
    /// The strings.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub value: Vec<Bytes>,
}

/// Floats.
#[derive(Clone, PartialEq, Message)]
pub struct FloatList {
    /// The numbers.
    #[prost(float, repeated, tag = "1")]
    pub value: Vec<f32>,
}

/// Integers.
#[derive(Clone, PartialEq, Message)]
pub struct Int64List {
    /// The numbers.
    #[prost(int64, repeated, tag = "1")]
    pub value: Vec<i64>,
}

impl Example {
    /// Parses a record.
    ///
    /// # Errors
    /// The parser's message.
    pub fn parse(record: Vec<u8>) -> Result<BTreeMap<String, Feature>, String> {
        let example = Self::decode(Bytes::from(record)).map_err(|e| e.to_string())?;
        Ok(example.features.unwrap_or_default().feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tf.train.Example(features={"a": float_list [1, 2]})` as TensorFlow serialises it, the floats packed.
    #[test]
    fn tensorflows_bytes_are_read() {
        let mut bytes =
            vec![0x0a, 0x13, 0x0a, 0x11, 0x0a, 0x01, b'a', 0x12, 0x0c, 0x12, 0x0a, 0x0a, 0x08];
        bytes.extend([1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
        let features = Example::parse(bytes.clone()).unwrap();
        let expected = Kind::Float(FloatList { value: vec![1.0, 2.0] });
        assert_eq!(features["a"].kind.as_ref(), Some(&expected));
        bytes.pop();
        assert!(Example::parse(bytes).is_err());
    }
}
