//! Reading protocols 2 to 5.

use std::borrow::Cow;
use std::cell::Cell;

use super::{Array, DType, PickleError, Value};

/// What a pickle may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the pickle itself.
    pub bytes: usize,
    /// Objects in it, counted once more for every place at which they stand.
    pub objects: usize,
    /// How deep objects may lie inside of each other.
    pub depth: usize,
}

impl Default for Bounds {
    /// Twenty times the largest observation that was seen (843 162 bytes, 60 objects), and a little more.
    fn default() -> Self {
        Self { bytes: 32 << 20, objects: 20_000, depth: 32 }
    }
}

/// Reads one pickle. What follows its end mark is ignored, as Python does.
///
/// # Errors
/// [`PickleError`]; never a panic, and no allocation beyond the pickle's own size and [`Bounds::objects`] small ones.
pub fn read<'a>(pickle: &'a [u8], bounds: &Bounds) -> Result<Value<'a>, PickleError> {
    if pickle.len() > bounds.bytes {
        return Err(PickleError::TooLarge { what: "bytes", limit: bounds.bytes });
    }
    let mut machine = Machine {
        input: pickle,
        at: 0,
        bounds: *bounds,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        links: 0,
        copied: Cell::new(0),
    };
    let root = machine.run()?;
    let mut budget = bounds.objects;
    machine.value(root, bounds.depth, &mut budget)
}

type Id = u32;

/// An object in the arena.
enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    Function(Function),
    /// A dtype, before and after `BUILD` told its byte order.
    DType(DType),
    /// What `_reconstruct` returns: `BUILD` fills it.
    EmptyArray,
    Array {
        dtype: DType,
        shape: Vec<usize>,
        fortran: bool,
        data: Id,
    },
    Scalar {
        dtype: DType,
        data: Id,
    },
}

/// The only names that a pickle may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
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

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    bounds: Bounds,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
    /// Places at which objects stand: stack pushes, memo entries.
    links: usize,
    /// Bytes that had to be copied (protocol 2 only).
    copied: Cell<usize>,
}

fn damaged(what: impl Into<String>) -> PickleError {
    PickleError::Damaged { what: what.into() }
}

fn unsupported(what: impl Into<String>) -> PickleError {
    PickleError::Unsupported { what: what.into() }
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let opcode = self.u8("an opcode")?;
            match opcode {
                0x80 => {
                    let version = self.u8("the protocol's number")?;
                    if !(2..=5).contains(&version) {
                        return Err(unsupported(format!("protocol {version}")));
                    }
                }
                // Frames help buffered readers and mean nothing here; objects may lie across them.
                0x95 => {
                    self.take(8, "a frame's length")?;
                }
                b'.' => return self.pop(),
                b'(' => {
                    self.link()?;
                    self.marks.push(self.stack.len());
                }
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.until_mark()?;
                }
                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'K' => {
                    let number = self.u8("an int")?;
                    self.push(Node::Int(i64::from(number)))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array("an int")?);
                    self.push(Node::Int(i64::from(number)))?;
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.array("an int")?);
                    self.push(Node::Int(i64::from(number)))?;
                }
                0x8a => {
                    let len = usize::from(self.u8("an int's length")?);
                    let number = long(self.take(len, "an int")?)?;
                    self.push(Node::Int(number))?;
                }
                0x8b => {
                    let len = u32::from_le_bytes(self.array("an int's length")?) as usize;
                    let number = long(self.take(len, "an int")?)?;
                    self.push(Node::Int(number))?;
                }
                b'G' => {
                    let number = f64::from_be_bytes(self.array("a float")?);
                    self.push(Node::Float(number))?;
                }
                0x8c | b'X' | 0x8d => {
                    let len = self.length(opcode, 0x8c, b'X')?;
                    let text = self.take(len, "a string")?;
                    let text =
                        std::str::from_utf8(text).map_err(|_| damaged("a string is not UTF-8"))?;
                    self.push(Node::Str(text))?;
                }
                b'C' | b'B' | 0x8e | 0x96 => {
                    let len = self.length(opcode, b'C', b'B')?;
                    let bytes = self.take(len, "bytes")?;
                    self.push(Node::Bytes(Cow::Borrowed(bytes)))?;
                }
                b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                0x8f => self.push(Node::Set(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                0x85..=0x87 => {
                    let items = self.pop_n(usize::from(opcode - 0x84))?;
                    self.push(Node::Tuple(items))?;
                }
                b't' => {
                    let items = self.until_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x91 => {
                    let items = self.until_mark()?;
                    self.push(Node::Set(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.until_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let items = self.pop_n(2)?;
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.until_mark()?;
                    self.set_items(&items)?;
                }
                0x94 => {
                    let top = self.top()?;
                    self.link()?;
                    self.memo.push(Some(top));
                }
                b'q' => {
                    let index = usize::from(self.u8("a memo index")?);
                    self.memoize(index)?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array("a memo index")?) as usize;
                    self.memoize(index)?;
                }
                b'h' => {
                    let index = usize::from(self.u8("a memo index")?);
                    self.recall(index)?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array("a memo index")?) as usize;
                    self.recall(index)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_function(module, name)?;
                }
                0x93 => {
                    let names = self.pop_n(2)?;
                    match (self.node(names[0]), self.node(names[1])) {
                        (Node::Str(module), Node::Str(name)) => {
                            let (module, name) = (*module, *name);
                            self.push_function(module, name)?;
                        }
                        _ => return Err(damaged("a function's name is not a string")),
                    }
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => return Err(unsupported(format!("opcode 0x{other:02x}"))),
            }
        }
    }

    // Input.

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.input.len());
        let end = end.ok_or(PickleError::Truncated { what })?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, PickleError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A length of 1, 4 or 8 bytes, by opcode.
    fn length(&mut self, opcode: u8, one: u8, four: u8) -> Result<usize, PickleError> {
        let len = if opcode == one {
            u64::from(self.u8("a length")?)
        } else if opcode == four {
            u64::from(u32::from_le_bytes(self.array("a length")?))
        } else {
            u64::from_le_bytes(self.array("a length")?)
        };
        usize::try_from(len).map_err(|_| PickleError::Truncated { what: "a length" })
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.input[self.at..];
        let len = rest.iter().position(|b| *b == b'\n');
        let len = len.ok_or(PickleError::Truncated { what: "a function's name" })?;
        let line = std::str::from_utf8(&rest[..len])
            .map_err(|_| damaged("a function's name is not UTF-8"))?;
        self.at += len + 1;
        Ok(line)
    }

    // Stack, arena, memo.

    fn link(&mut self) -> Result<(), PickleError> {
        self.links += 1;
        if self.links > 8 * self.bounds.objects {
            return Err(PickleError::TooLarge { what: "objects", limit: self.bounds.objects });
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), PickleError> {
        if self.nodes.len() >= self.bounds.objects {
            return Err(PickleError::TooLarge { what: "objects", limit: self.bounds.objects });
        }
        self.link()?;
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, PickleError> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err(damaged("it takes from an empty stack")),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Id>, PickleError> {
        let start = self.stack.len().checked_sub(n).filter(|start| *start >= self.floor());
        let start = start.ok_or_else(|| damaged("it takes from an empty stack"))?;
        Ok(self.stack.split_off(start))
    }

    fn until_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn node(&self, id: Id) -> &Node<'a> {
        // Ids are only made by `push`, and nodes are never removed.
        &self.nodes[id as usize]
    }

    fn top_node(&mut self) -> Result<&mut Node<'a>, PickleError> {
        let top = self.top()? as usize;
        Ok(&mut self.nodes[top])
    }

    fn memoize(&mut self, index: usize) -> Result<(), PickleError> {
        let top = self.top()?;
        if index >= self.bounds.objects {
            return Err(PickleError::TooLarge { what: "objects", limit: self.bounds.objects });
        }
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), PickleError> {
        let id = self.memo.get(index).copied().flatten();
        let id = id.ok_or_else(|| damaged(format!("memo entry {index} does not exist")))?;
        self.link()?;
        self.stack.push(id);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        match self.top_node()? {
            Node::List(list) | Node::Set(list) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(damaged("it appends to something that is no list")),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        match self.top_node()? {
            Node::Dict(entries) if items.len().is_multiple_of(2) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err(damaged("it sets items of something that is no dict")),
        }
    }

    // Functions.

    fn push_function(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let function = Function::named(module, name);
        let function = function.ok_or_else(|| {
            let short = |text: &str| text.chars().take(60).collect::<String>();
            unsupported(format!("a call of `{}.{}`", short(module), short(name)))
        })?;
        self.push(Node::Function(function))
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
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
    fn copy(&self, len: usize) -> Result<(), PickleError> {
        self.copied.set(self.copied.get() + len);
        if self.copied.get() > self.bounds.bytes {
            return Err(PickleError::TooLarge { what: "bytes", limit: self.bounds.bytes });
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), PickleError> {
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

    // From the arena to a tree.

    fn value(&self, id: Id, depth: usize, budget: &mut usize) -> Result<Value<'a>, PickleError> {
        let too_many = PickleError::TooLarge { what: "objects", limit: self.bounds.objects };
        *budget = budget.checked_sub(1).ok_or(too_many)?;
        let too_deep = PickleError::TooLarge { what: "levels", limit: self.bounds.depth };
        let below = depth.checked_sub(1).ok_or(too_deep)?;
        let mut all = |items: &[Id]| -> Result<Vec<Value<'a>>, PickleError> {
            items.iter().map(|item| self.value(*item, below, budget)).collect()
        };
        Ok(match self.node(id) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Str(text) => Value::Str(Cow::Borrowed(*text)),
            Node::Bytes(_) => Value::Bytes(self.bytes(id)?),
            Node::List(items) => Value::List(all(items)?),
            Node::Tuple(items) => Value::Tuple(all(items)?),
            Node::Set(items) => Value::Set(all(items)?),
            Node::Dict(entries) => {
                let mut dict: Vec<(Value<'a>, Value<'a>)> = Vec::new();
                for (key, value) in entries {
                    let key = self.value(*key, below, budget)?;
                    let value = self.value(*value, below, budget)?;
                    // The last of equal string keys counts, as in Python.
                    let known = key
                        .as_str()
                        .and_then(|name| dict.iter().position(|(k, _)| k.as_str() == Some(name)));
                    match known {
                        Some(place) => dict[place].1 = value,
                        None => dict.push((key, value)),
                    }
                }
                Value::Dict(dict)
            }
            Node::Array { dtype, shape, fortran, data } => Value::Array(Array {
                dtype: *dtype,
                shape: shape.clone(),
                fortran: *fortran,
                data: self.bytes(*data)?,
            }),
            Node::Scalar { dtype, data } => Value::Scalar(Array {
                dtype: *dtype,
                shape: Vec::new(),
                fortran: false,
                data: self.bytes(*data)?,
            }),
            Node::Function(function) => {
                return Err(unsupported(format!("{function:?} as a value")));
            }
            Node::DType(_) => return Err(unsupported("a dtype as a value")),
            Node::EmptyArray => return Err(damaged("an array was never filled")),
        })
    }

    fn bytes(&self, id: Id) -> Result<Cow<'a, [u8]>, PickleError> {
        match self.node(id) {
            Node::Bytes(Cow::Borrowed(bytes)) => Ok(Cow::Borrowed(bytes)),
            Node::Bytes(Cow::Owned(bytes)) => {
                self.copy(bytes.len())?;
                Ok(Cow::Owned(bytes.clone()))
            }
            _ => Err(damaged("an array's data are not bytes")),
        }
    }
}

fn long(bytes: &[u8]) -> Result<i64, PickleError> {
    if bytes.len() > 8 {
        return Err(unsupported("an int of more than 64 bits"));
    }
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut full = [if negative { 0xff } else { 0 }; 8];
    full[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(full))
}
