//! The handful of functions that a pickle may call, and what they make: numpy's arrays, types and scalars, sets, bytes.

use std::borrow::Cow;

use super::{Id, Machine, Node, damaged, unsupported};
use crate::widowx::pickle::{DType, PickleError};

/// The only names that a pickle may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Reconstruct,
    Scalar,
    NdArray,
    DType,
    FromBuffer,
    Encode,
    Set,
    FrozenSet,
    ByteArray,
    Bytes,
}

impl Function {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Self::Reconstruct
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("numpy", "ndarray") => Self::NdArray,
            ("numpy", "dtype") => Self::DType,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "set") => Self::Set,
            ("builtins" | "__builtin__", "frozenset") => Self::FrozenSet,
            ("builtins" | "__builtin__", "bytearray") => Self::ByteArray,
            ("builtins" | "__builtin__", "bytes") => Self::Bytes,
            _ => return None,
        })
    }
}

/// A dtype's state has eight parts, nine where it holds metadata; no call has more.
const MAX_ARGUMENTS: usize = 9;

impl<'a> Machine<'a> {
    pub(super) fn push_function(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let function = Function::named(module, name);
        let function = function.ok_or_else(|| {
            let short = |text: &str| text.chars().take(60).collect::<String>();
            unsupported(format!("a call of `{}.{}`", short(module), short(name)))
        })?;
        self.push(Node::Function(function))
    }

    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let parts = self.pop_n(2)?;
        let (Node::Function(function), Node::Tuple(args)) =
            (self.node(parts[0]), self.node(parts[1]))
        else {
            return Err(damaged("it calls something that is no function"));
        };
        if args.len() > MAX_ARGUMENTS {
            return Err(damaged("a call has too many arguments"));
        }
        let (function, args) = (*function, args.clone());
        let wrong = || damaged(format!("arguments of {function:?}"));
        let made = match (function, args.as_slice()) {
            (Function::Reconstruct, [class, _, _]) => match self.node(*class) {
                Node::Function(Function::NdArray) => Node::EmptyArray,
                _ => return Err(unsupported("a subclass of ndarray")),
            },
            (Function::DType, [code, ..]) => match self.node(*code) {
                Node::Str(code) => Node::DType(
                    DType::parse(code)
                        .ok_or_else(|| unsupported(format!("dtype `{}`", code.escape_debug())))?,
                ),
                _ => return Err(wrong()),
            },
            (Function::Scalar, [dtype, data]) => match (self.node(*dtype), self.node(*data)) {
                (Node::DType(dtype), Node::Bytes(bytes)) if bytes.len() == dtype.size() => {
                    Node::Scalar { dtype: *dtype, data: *data }
                }
                _ => return Err(wrong()),
            },
            (Function::FromBuffer, [data, dtype, shape, order]) => {
                let Node::DType(dtype) = *self.node(*dtype) else { return Err(wrong()) };
                let Node::Str(order @ ("C" | "F")) = *self.node(*order) else {
                    return Err(wrong());
                };
                self.filled(dtype, *shape, order == "F", *data)?
            }
            (Function::Encode, [text, _]) => match self.node(*text) {
                Node::Str(text) => Node::Bytes(Cow::Owned(self.latin1(text)?)),
                _ => return Err(wrong()),
            },
            (Function::Set | Function::FrozenSet, [items]) => match self.node(*items) {
                Node::List(items) | Node::Tuple(items) => Node::Set(items.clone()),
                _ => return Err(wrong()),
            },
            (Function::Set | Function::FrozenSet, []) => Node::Set(Vec::new()),
            (Function::Bytes | Function::ByteArray, []) => Node::Bytes(Cow::Borrowed(&[])),
            (Function::ByteArray, [data]) => Node::Bytes(self.bytes(*data)?),
            _ => return Err(wrong()),
        };
        if let Node::Set(items) = &made {
            self.links += items.len();
            self.link()?;
        }
        self.push(made)
    }

    fn latin1(&self, text: &str) -> Result<Vec<u8>, PickleError> {
        self.copy(text.len())?;
        text.chars()
            .map(|c| u8::try_from(c).map_err(|_| damaged("bytes hold a character above 255")))
            .collect()
    }

    /// Counts bytes that are copied: one largest pickle's worth in all, however often it repeats them.
    pub(super) fn copy(&self, len: usize) -> Result<(), PickleError> {
        self.copied.set(self.copied.get() + len);
        if self.copied.get() > self.bounds.bytes {
            return Err(PickleError::TooLarge { what: "bytes", limit: self.bounds.bytes });
        }
        Ok(())
    }

    pub(super) fn build(&mut self) -> Result<(), PickleError> {
        let parts = self.pop_n(2)?;
        let Node::Tuple(state) = self.node(parts[1]) else {
            return Err(damaged("the state of an object is not a tuple"));
        };
        if state.len() > MAX_ARGUMENTS {
            return Err(damaged("the state of an object has too many parts"));
        }
        let state = state.clone();
        let filled = match self.node(parts[0]) {
            Node::DType(dtype) => {
                // (3, order, subarray, names, fields, itemsize, alignment, flags)
                let order = state.get(1).map(|order| self.node(*order));
                let plain = state.get(2..5).is_some_and(|parts| {
                    parts.iter().all(|part| matches!(self.node(*part), Node::None))
                });
                match order {
                    Some(Node::Str("<" | "|" | "=")) if plain => Node::DType(*dtype),
                    Some(Node::Str(">")) => return Err(unsupported("a big-endian array")),
                    _ => return Err(unsupported("a dtype with parts")),
                }
            }
            Node::EmptyArray => {
                // (1, shape, dtype, is Fortran-ordered, data)
                let [_, shape, dtype, fortran, data] = state[..] else {
                    return Err(damaged("an array's state has not five parts"));
                };
                let (&Node::DType(dtype), &Node::Bool(fortran)) =
                    (self.node(dtype), self.node(fortran))
                else {
                    return Err(damaged("an array's state"));
                };
                self.filled(dtype, shape, fortran, data)?
            }
            _ => return Err(damaged("it gives a state to an object that has none")),
        };
        self.nodes[parts[0] as usize] = filled;
        self.link()?;
        self.stack.push(parts[0]);
        Ok(())
    }

    /// An array whose bytes are as many as its shape says.
    fn filled(
        &self,
        dtype: DType,
        shape: Id,
        fortran: bool,
        data: Id,
    ) -> Result<Node<'a>, PickleError> {
        let Node::Tuple(sides) = self.node(shape) else {
            return Err(damaged("an array's shape is not a tuple"));
        };
        if sides.len() > 8 {
            return Err(PickleError::TooLarge { what: "dimensions", limit: 8 });
        }
        let mut shape = Vec::with_capacity(sides.len());
        for side in sides {
            match self.node(*side) {
                Node::Int(n) if *n >= 0 => shape.push(*n as usize),
                _ => return Err(damaged("an array's shape")),
            }
        }
        let Node::Bytes(bytes) = self.node(data) else {
            return Err(unsupported("an array of objects"));
        };
        let expected =
            shape.iter().try_fold(dtype.size(), |product, side| product.checked_mul(*side));
        if expected != Some(bytes.len()) {
            return Err(damaged(format!(
                "an array of shape {shape:?} and type {} has {} bytes",
                dtype.code(),
                bytes.len()
            )));
        }
        Ok(Node::Array { dtype, shape, fortran, data })
    }
}
