//! Reading protocols 2 to 5: the machine; what it may call is in `calls`.

mod calls;

use std::borrow::Cow;
use std::cell::Cell;

use super::{Array, DType, PickleError, Value};
use calls::Function;

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
