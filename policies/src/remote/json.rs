//! OpenVLA's form of JSON: numpy arrays are objects with the key `__numpy__`.
//!
//! Follows json_numpy 2.1.1: `{"__numpy__": base64 of the bytes, "dtype": "<f4", "shape": [..]}`, a scalar with the shape
//! `[]`. Lists of numbers are read too, so that a request can be typed by hand.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use super::node::{Array, Budget, Dtype, Node, WireError};

const NUMPY: &str = "__numpy__";

/// Reads one message.
///
/// # Errors
/// [`WireError`] for anything but exactly one well-formed value: never a panic, never an allocation beyond a small multiple
/// of the message.
pub fn read(bytes: &[u8]) -> Result<Node<'_>, WireError> {
    let budget = Budget::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let node = Seed { budget: &budget, depth: 0 }.deserialize(&mut reader);
    let node = node.map_err(|e| WireError::new(e.to_string()))?;
    reader.end().map_err(|e| WireError::new(e.to_string()))?;
    Ok(node)
}

/// Writes a message as json_numpy would.
///
/// # Errors
/// [`WireError`] for a number that JSON has no word for.
pub fn write(node: &Node<'_>) -> Result<String, WireError> {
    serde_json::to_string(node).map_err(|e| WireError::new(e.to_string()))
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[derive(Clone, Copy)]
struct Seed<'b> {
    budget: &'b Budget,
    depth: usize,
}

impl Seed<'_> {
    fn inside(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Node<'de>, D::Error> {
        self.budget.spend(self.depth).map_err(D::Error::custom)?;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Nil)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Node<'de>, E> {
        Ok(Node::Int(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Node<'de>, E> {
        Ok(i64::try_from(n).map_or(Node::Uint(n), Node::Int))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Node<'de>, E> {
        Ok(Node::Float(x))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node<'de>, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self.inside())? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(Key(self.inside()))? {
            entries.push((key, map.next_value_seed(self.inside())?));
        }
        numpy(entries).map_err(A::Error::custom)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'b>(Seed<'b>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        match self.0.deserialize(reader)? {
            Node::Text(key) => Ok(key),
            other => Err(D::Error::custom(format!("{} as a key", other.kind()))),
        }
    }
}

fn numpy<'a>(entries: Vec<(Cow<'a, str>, Node<'a>)>) -> Result<Node<'a>, WireError> {
    if !entries.iter().any(|(key, _)| key == NUMPY) {
        return Ok(Node::Map(entries));
    }
    let (mut dtype, mut shape, mut data) = (None, None, None);
    for (key, value) in entries {
        match (&*key, value) {
            ("dtype", Node::Text(text)) => dtype = Some(Dtype::parse(&text)?),
            ("shape", Node::List(axes)) => {
                let axes: Option<Vec<usize>> = axes
                    .iter()
                    .map(|axis| axis.as_u64().and_then(|n| usize::try_from(n).ok()))
                    .collect();
                shape = Some(axes.ok_or_else(|| WireError::new("an array's shape"))?);
            }
            (NUMPY, Node::Text(text)) => data = Some(text),
            _ => {}
        }
    }
    let (Some(dtype), Some(shape), Some(text)) = (dtype, shape, data) else {
        return Err(WireError::new("an array without its __numpy__, dtype and shape"));
    };
    let bytes = STANDARD
        .decode(text.as_bytes())
        .map_err(|e| WireError::new(format!("an array's base64: {e}")))?;
    Array::new(dtype, shape, Cow::Owned(bytes)).map(Node::Array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_numpy_writes_is_read() {
        // json_numpy.dumps({"image": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "x": np.float32(1.5), "y": [1, 2.5]})
        let text = r#"{"image": {"__numpy__": "AAECAwQF", "dtype": "|u1", "shape": [1, 2, 3]},
            "x": {"__numpy__": "AADAPw==", "dtype": "<f4", "shape": []}, "y": [1, 2.5]}"#;
        let node = read(text.as_bytes()).unwrap();
        let Some(Node::Array(image)) = node.get("image") else { panic!("{node:?}") };
        assert_eq!((image.dtype(), image.shape()), (Dtype::U8, &[1, 2, 3][..]));
        assert_eq!(image.data(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(node.get("x").unwrap().numbers().unwrap(), (vec![], vec![1.5]));
        assert_eq!(node.get("y").unwrap().numbers().unwrap(), (vec![2], vec![1.0, 2.5]));
        assert_eq!(read(write(&node).unwrap().as_bytes()).unwrap(), node);
    }

    #[test]
    fn nan_depth_floods_and_false_arrays_are_refused() {
        let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
        let flood = format!("[{}0]", "0,".repeat(1 << 19));
        for (text, why) in [
            (r#"{"x": NaN}"#, "expected"),
            (&deep, "levels of nesting"),
            (&flood, "values"),
            ("{} {}", "trailing"),
            (r#"{"__numpy__": "AAEC", "dtype": "|u1", "shape": [4]}"#, "in 3 bytes"),
            (r#"{"__numpy__": "A", "dtype": "|u1", "shape": [1]}"#, "base64"),
            (r#"{"__numpy__": "AAEC", "dtype": "|O", "shape": [3]}"#, "|O"),
            (r#"{"__numpy__": "AAEC", "dtype": [["a", "<f4"]], "shape": [3]}"#, "without"),
            (r#"{"__numpy__": "AAEC", "dtype": "|u1", "shape": [-3]}"#, "shape"),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
