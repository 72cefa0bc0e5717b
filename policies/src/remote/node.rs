//! A message as a bounded tree that borrows from its bytes.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};
use thiserror::Error;

/// The deepest nesting that is read.
pub(super) const MAX_DEPTH: usize = 16;
/// The most values that are read from one message: a 256 × 256 image as nested lists fits, a hostile list does not.
pub(super) const MAX_NODES: usize = 1 << 18;
/// The most axes of an array.
const MAX_AXES: usize = 8;

/// A message that is not what it should be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct WireError(pub String);

impl WireError {
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Self(detail.into())
    }
}

/// A value of either wire form.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// Nothing.
    Nil,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Float(f64),
    /// Words.
    Text(Cow<'a, str>),
    /// Bytes without a meaning.
    Bytes(Cow<'a, [u8]>),
    /// Values in order.
    List(Vec<Node<'a>>),
    /// Named values in the order of the message; the last of two with one name counts.
    Map(Vec<(Cow<'a, str>, Node<'a>)>),
    /// A numpy array or scalar.
    Array(Array<'a>),
}

impl<'a> Node<'a> {
    /// A map from names to values.
    pub fn map<const N: usize>(entries: [(&'a str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect())
    }

    /// The entry called `name` of a map.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The entry called `path` of a map, or the one that its parts between `/` lead to: `images/top` is either a key or
    /// `top` inside of `images`.
    pub fn find(&self, path: &str) -> Option<&Self> {
        self.get(path).or_else(|| {
            let (first, rest) = path.split_once('/')?;
            self.get(first)?.find(rest)
        })
    }

    /// The words of a text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            Self::Uint(n) => Some(*n),
            _ => None,
        }
    }

    /// A yes or no, as a boolean, 0 or 1.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            Self::Int(n @ 0..=1) => Some(*n == 1),
            Self::Array(array) if array.dtype == Dtype::Bool && array.data.len() == 1 => {
                Some(array.data[0] != 0)
            }
            _ => None,
        }
    }

    /// What kind of value it is, in words for people.
    pub fn kind(&self) -> String {
        match self {
            Self::Nil => "nothing".to_owned(),
            Self::Bool(_) => "a boolean".to_owned(),
            Self::Int(_) | Self::Uint(_) | Self::Float(_) => "a number".to_owned(),
            Self::Text(_) => "text".to_owned(),
            Self::Bytes(_) => "bytes".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
            Self::Array(array) => format!("an array {:?} of {}", array.shape, array.dtype.numpy()),
        }
    }

    /// Numbers with their shape: of an array, of lists in lists, or of a single number. Values are cast to f32.
    ///
    /// # Errors
    /// [`WireError`] for anything else, lists of unequal length, or a number that is no finite f32.
    pub fn numbers(&self) -> Result<(Vec<usize>, Vec<f32>), WireError> {
        let mut shape = Vec::new();
        let mut values = Vec::new();
        self.gather(0, &mut shape, &mut values)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(WireError::new(format!("number {at} is not finite")));
        }
        Ok((shape, values))
    }

    /// `depth` lists are around this node; `shape[depth..]` is known from its elder siblings, if there are any.
    fn gather(
        &self,
        depth: usize,
        shape: &mut Vec<usize>,
        values: &mut Vec<f32>,
    ) -> Result<(), WireError> {
        let mut fits = |own: &[usize]| {
            if values.is_empty() && shape.len() == depth {
                shape.extend_from_slice(own);
            }
            if shape.get(depth..) == Some(own)
                || (own.len() == 1 && shape.get(depth) == own.first())
            {
                return Ok(());
            }
            Err(WireError::new("lists of unequal shape"))
        };
        match self {
            Self::Int(n) => {
                fits(&[])?;
                values.push(*n as f32);
            }
            Self::Uint(n) => {
                fits(&[])?;
                values.push(*n as f32);
            }
            Self::Float(x) => {
                fits(&[])?;
                values.push(*x as f32);
            }
            Self::Array(array) => {
                fits(&array.shape)?;
                array.extend_f32(values);
            }
            Self::List(nodes) => {
                fits(&[nodes.len()])?;
                for node in nodes {
                    node.gather(depth + 1, shape, values)?;
                }
            }
            other => return Err(WireError::new(format!("{} where numbers belong", other.kind()))),
        }
        Ok(())
    }
}

/// The element types of numpy that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `|b1`
    Bool,
    /// `|i1`
    I8,
    /// `<i2`
    I16,
    /// `<i4`
    I32,
    /// `<i8`
    I64,
    /// `|u1`
    U8,
    /// `<u2`
    U16,
    /// `<u4`
    U32,
    /// `<u8`
    U64,
    /// `<f2`
    F16,
    /// `<f4`
    F32,
    /// `<f8`
    F64,
}

impl Dtype {
    const ALL: [(Self, &'static str, &'static str, usize); 12] = [
        (Self::Bool, "|b1", "bool", 1),
        (Self::I8, "|i1", "int8", 1),
        (Self::I16, "<i2", "int16", 2),
        (Self::I32, "<i4", "int32", 4),
        (Self::I64, "<i8", "int64", 8),
        (Self::U8, "|u1", "uint8", 1),
        (Self::U16, "<u2", "uint16", 2),
        (Self::U32, "<u4", "uint32", 4),
        (Self::U64, "<u8", "uint64", 8),
        (Self::F16, "<f2", "float16", 2),
        (Self::F32, "<f4", "float32", 4),
        (Self::F64, "<f8", "float64", 8),
    ];

    /// From numpy's `dtype.str` (`<f4`) or name (`float32`). Big-endian, complex, text and object types are refused.
    ///
    /// # Errors
    /// [`WireError`] naming the type.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let found = Self::ALL.iter().find(|(_, code, name, _)| text == *code || text == *name);
        found.map(|(dtype, ..)| *dtype).ok_or_else(|| {
            let shown: String = text.chars().take(24).collect();
            WireError::new(format!(
                "the array type {shown:?}; little-endian integers, floats and booleans are read"
            ))
        })
    }

    fn row(self) -> (&'static str, &'static str, usize) {
        let row = Self::ALL.iter().find(|(dtype, ..)| *dtype == self);
        row.map_or(("|u1", "uint8", 1), |(_, code, name, bytes)| (code, name, *bytes))
    }

    /// numpy's `dtype.str`.
    pub fn code(self) -> &'static str {
        self.row().0
    }

    /// numpy's name.
    pub fn numpy(self) -> &'static str {
        self.row().1
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        self.row().2
    }
}

/// A numpy array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// Joins bytes to their type and shape.
    ///
    /// # Errors
    /// [`WireError`] for more than eight axes, or bytes that do not fill the shape exactly.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: Cow<'a, [u8]>) -> Result<Self, WireError> {
        if shape.len() > MAX_AXES {
            return Err(WireError::new(format!("an array of {} axes", shape.len())));
        }
        let bytes = shape.iter().try_fold(dtype.bytes(), |n, &axis| n.checked_mul(axis));
        if bytes != Some(data.len()) {
            return Err(WireError::new(format!(
                "an array {shape:?} of {} in {} bytes",
                dtype.numpy(),
                data.len()
            )));
        }
        Ok(Self { dtype, shape, data })
    }

    /// `[..shape]` f32.
    ///
    /// # Errors
    /// As [`Array::new`].
    pub fn f32(shape: &[usize], values: impl Iterator<Item = f32>) -> Result<Self, WireError> {
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Self::new(Dtype::F32, shape.to_vec(), Cow::Owned(data))
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements in C order, little-endian.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    fn extend_f32(&self, values: &mut Vec<f32>) {
        fn each<const N: usize>(data: &[u8], values: &mut Vec<f32>, to: impl Fn([u8; N]) -> f32) {
            values.extend(data.as_chunks::<N>().0.iter().map(|bytes| to(*bytes)));
        }
        let data = &self.data[..];
        match self.dtype {
            Dtype::Bool => values.extend(data.iter().map(|b| f32::from(u8::from(*b != 0)))),
            Dtype::U8 => values.extend(data.iter().map(|b| f32::from(*b))),
            Dtype::I8 => each(data, values, |b| f32::from(i8::from_le_bytes(b))),
            Dtype::I16 => each(data, values, |b| f32::from(i16::from_le_bytes(b))),
            Dtype::U16 => each(data, values, |b| f32::from(u16::from_le_bytes(b))),
            Dtype::I32 => each(data, values, |b| i32::from_le_bytes(b) as f32),
            Dtype::U32 => each(data, values, |b| u32::from_le_bytes(b) as f32),
            Dtype::I64 => each(data, values, |b| i64::from_le_bytes(b) as f32),
            Dtype::U64 => each(data, values, |b| u64::from_le_bytes(b) as f32),
            Dtype::F16 => each(data, values, |b| half(u16::from_le_bytes(b))),
            Dtype::F32 => each(data, values, f32::from_le_bytes),
            Dtype::F64 => each(data, values, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

/// IEEE 754 binary16 to f32.
fn half(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + fraction / 1024.0) * 2f32.powi(e - 15),
    }
}

impl Serialize for Node<'_> {
    /// As `json_numpy` writes it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Nil => serializer.serialize_unit(),
            Node::Bool(b) => serializer.serialize_bool(*b),
            Node::Int(n) => serializer.serialize_i64(*n),
            Node::Uint(n) => serializer.serialize_u64(*n),
            Node::Float(x) => serializer.serialize_f64(*x),
            Node::Text(text) => serializer.serialize_str(text),
            Node::Bytes(bytes) => serializer.serialize_str(&super::json::base64(bytes)),
            Node::List(nodes) => {
                let mut list = serializer.serialize_seq(Some(nodes.len()))?;
                for node in nodes {
                    list.serialize_element(node)?;
                }
                list.end()
            }
            Node::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Node::Array(array) => {
                let mut map = serializer.serialize_map(Some(3))?;
                map.serialize_entry("__numpy__", &super::json::base64(&array.data))?;
                map.serialize_entry("dtype", array.dtype.code())?;
                map.serialize_entry("shape", &array.shape)?;
                map.end()
            }
        }
    }
}

impl From<&serde_json::Value> for Node<'static> {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Nil,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Self::Int(n),
                (_, Some(n)) => Self::Uint(n),
                _ => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Self::Text(Cow::Owned(text.clone())),
            Value::Array(values) => Self::List(values.iter().map(Self::from).collect()),
            Value::Object(entries) => Self::Map(
                entries.iter().map(|(k, v)| (Cow::Owned(k.clone()), Self::from(v))).collect(),
            ),
        }
    }
}

/// Counts what is read of one message.
#[derive(Debug)]
pub(super) struct Budget {
    left: std::cell::Cell<usize>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: std::cell::Cell::new(MAX_NODES) }
    }
}

impl Budget {
    /// One more value, inside of `depth` others.
    pub(super) fn spend(&self, depth: usize) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(WireError::new(format!("more than {MAX_DEPTH} levels of nesting")));
        }
        let left = self.left.get().checked_sub(1).ok_or_else(|| {
            WireError::new(format!("more than {MAX_NODES} values; send arrays as arrays"))
        })?;
        self.left.set(left);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_floats_are_ieee() {
        // From Python: numpy.float16(x).view('u2').
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half(bits), value, "{bits:#x}");
        }
        assert!(half(0x7e00).is_nan() && half(0x7c00).is_infinite());
    }

    #[test]
    fn an_array_must_fill_its_shape_exactly() {
        let make = |shape: Vec<usize>, bytes: usize| {
            Array::new(Dtype::F32, shape, Cow::Owned(vec![0; bytes]))
        };
        assert!(make(vec![2, 3], 24).is_ok() && make(vec![], 4).is_ok());
        assert!(make(vec![2, 3], 23).is_err() && make(vec![2, 3], 28).is_err());
        // 2^62 * 4 wraps to 0, 2^62 * 4 * 4 too.
        assert!(make(vec![1 << 62], 0).is_err() && make(vec![1 << 62, 4], 0).is_err());
        assert!(make(vec![1; 9], 4).is_err());
    }

    #[test]
    fn numbers_of_lists_have_the_shape_of_the_lists() {
        let row = |values: &[i64]| Node::List(values.iter().map(|v| Node::Int(*v)).collect());
        let (shape, values) = Node::List(vec![row(&[1, 2]), row(&[3, 4])]).numbers().unwrap();
        assert_eq!((shape, values), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
        assert!(Node::List(vec![row(&[1, 2]), row(&[3])]).numbers().is_err());
        assert!(Node::List(vec![row(&[1]), Node::Int(3)]).numbers().is_err());
        assert!(Node::List(vec![Node::Int(3), row(&[1])]).numbers().is_err());
        assert!(Node::List(vec![Node::Nil]).numbers().is_err());
        assert!(Node::Float(f64::NAN).numbers().is_err());
        assert!(Node::Float(1e39).numbers().is_err(), "infinite as f32");
        let array = |v: f32| Node::Array(Array::f32(&[2], [v, v].into_iter()).unwrap());
        let (shape, values) = Node::List(vec![array(1.0), array(2.0)]).numbers().unwrap();
        assert_eq!((shape, values), (vec![2, 2], vec![1.0, 1.0, 2.0, 2.0]));
    }

    #[test]
    fn a_path_is_a_key_or_a_way() {
        let inner = Node::map([("top", Node::Int(1))]);
        let flat = Node::map([("images/top", Node::Int(2))]);
        assert_eq!(Node::map([("images", inner)]).find("images/top"), Some(&Node::Int(1)));
        assert_eq!(flat.find("images/top"), Some(&Node::Int(2)));
        assert_eq!(flat.find("images"), None);
    }
}
