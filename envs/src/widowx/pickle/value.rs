//! What a pickle of the robot's protocol can hold.

use std::borrow::Cow;

/// One Python object. Strings and bytes borrow from the pickle they were read from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `bool`.
    Bool(bool),
    /// `int`, as far as it fits.
    Int(i64),
    /// `float`.
    Float(f64),
    /// `str`.
    Str(Cow<'a, str>),
    /// `bytes` or `bytearray`.
    Bytes(Cow<'a, [u8]>),
    /// `list`.
    List(Vec<Value<'a>>),
    /// `tuple`.
    Tuple(Vec<Value<'a>>),
    /// `dict`, in the order of insertion.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// `set` or `frozenset`, in the order of the pickle.
    Set(Vec<Value<'a>>),
    /// `numpy.ndarray`.
    Array(Array<'a>),
    /// A numpy scalar such as `np.float64`: an array without dimensions.
    Scalar(Array<'a>),
}

/// The element type of a numpy array. Only numbers without a byte order of their own, and little-endian ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// `bool`, one byte.
    Bool,
    /// `int8` to `int64`, of so many bytes.
    Int(u8),
    /// `uint8` to `uint64`, of so many bytes.
    Uint(u8),
    /// `float16` to `float64`, of so many bytes.
    Float(u8),
}

impl DType {
    /// From numpy's letter and width, e.g. `f8`.
    pub fn parse(code: &str) -> Option<Self> {
        Some(match code {
            "b1" => Self::Bool,
            "i1" => Self::Int(1),
            "i2" => Self::Int(2),
            "i4" => Self::Int(4),
            "i8" => Self::Int(8),
            "u1" => Self::Uint(1),
            "u2" => Self::Uint(2),
            "u4" => Self::Uint(4),
            "u8" => Self::Uint(8),
            "f2" => Self::Float(2),
            "f4" => Self::Float(4),
            "f8" => Self::Float(8),
            _ => return None,
        })
    }

    /// Numpy's letter and width.
    pub fn code(self) -> String {
        match self {
            Self::Bool => "b1".to_owned(),
            Self::Int(n) => format!("i{n}"),
            Self::Uint(n) => format!("u{n}"),
            Self::Float(n) => format!("f{n}"),
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Int(n) | Self::Uint(n) | Self::Float(n) => usize::from(n),
        }
    }
}

/// A numpy array: little-endian elements, and bytes as many as the shape says.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    /// The element type.
    pub dtype: DType,
    /// The shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Whether the first index runs fastest.
    pub fortran: bool,
    /// The elements.
    pub data: Cow<'a, [u8]>,
}

impl Array<'static> {
    /// A C-ordered float64 array; `None` unless `shape` holds exactly `values`.
    pub fn of_f64(shape: &[usize], values: &[f64]) -> Option<Self> {
        (shape.iter().product::<usize>() == values.len()).then(|| Self {
            dtype: DType::Float(8),
            shape: shape.to_vec(),
            fortran: false,
            data: Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        })
    }
}

impl Array<'_> {
    /// The elements of a float32 or float64 array in the order of memory; `None` for other types.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        match self.dtype {
            DType::Float(4) => Some(
                self.data
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                    .collect(),
            ),
            DType::Float(8) => Some(
                self.data
                    .chunks_exact(8)
                    .filter_map(|b| Some(f64::from_le_bytes(b.try_into().ok()?)))
                    .collect(),
            ),
            _ => None,
        }
    }
}

impl<'a> Value<'a> {
    /// A string.
    pub fn str(text: &'a str) -> Self {
        Self::Str(Cow::Borrowed(text))
    }

    /// A dict with string keys.
    pub fn dict(entries: impl IntoIterator<Item = (&'a str, Value<'a>)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (Self::str(key), value)).collect())
    }

    /// The entry of a dict under a string key.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let Self::Dict(entries) = self else { return None };
        entries.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The number of an int (not of a bool).
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The Python name of its type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Set(_) => "set",
            Self::Array(_) => "ndarray",
            Self::Scalar(_) => "numpy scalar",
        }
    }
}
