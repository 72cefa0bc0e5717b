//! openpi's form of msgpack: numpy arrays are maps with the key `__ndarray__`.
//!
//! Follows `openpi_client/msgpack_numpy.py` of openpi-client 0.1.2: an array is `{b"__ndarray__": True, b"data": bytes,
//! b"dtype": "<f4", b"shape": [..]}`, a scalar `{b"__npgeneric__": True, b"data": number, b"dtype": ..}`. Object, void and
//! complex types do not exist there. Keys of our own writing are of the same types.
//!
//! The reader is our own because it must not allocate by what a length claims: strings, bytes and arrays are borrowed
//! from the message, and the number of values is bounded.

use std::borrow::Cow;

use super::node::{Array, Budget, Dtype, Node, WireError};

const NDARRAY: &str = "__ndarray__";
const GENERIC: &str = "__npgeneric__";

/// Reads one message.
///
/// # Errors
/// [`WireError`] for anything but exactly one well-formed value: never a panic, never an allocation beyond a small multiple
/// of the message.
pub fn read(bytes: &[u8]) -> Result<Node<'_>, WireError> {
    let budget = Budget::default();
    let mut reader = Reader { left: bytes };
    let node = reader.node(&budget, 0)?;
    if !reader.left.is_empty() {
        return Err(WireError::new(format!("{} bytes after the message", reader.left.len())));
    }
    Ok(node)
}

struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self
            .left
            .split_at_checked(n)
            .ok_or_else(|| WireError::new("the message ends in the middle of a value"))?;
        self.left = tail;
        Ok(head)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    /// A big-endian length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, WireError> {
        let bytes = self.fixed::<N>()?;
        Ok(bytes.iter().fold(0usize, |n, b| n << 8 | usize::from(*b)))
    }

    fn text(&mut self, n: usize) -> Result<Cow<'a, str>, WireError> {
        let bytes = self.take(n)?;
        let text = std::str::from_utf8(bytes);
        text.map(Cow::Borrowed).map_err(|_| WireError::new("text that is not UTF-8"))
    }

    fn node(&mut self, budget: &Budget, depth: usize) -> Result<Node<'a>, WireError> {
        budget.spend(depth)?;
        let [tag] = self.fixed()?;
        Ok(match tag {
            0x00..=0x7f => Node::Int(i64::from(tag)),
            0x80..=0x8f => self.map(usize::from(tag & 0x0f), budget, depth)?,
            0x90..=0x9f => self.list(usize::from(tag & 0x0f), budget, depth)?,
            0xa0..=0xbf => Node::Text(self.text(usize::from(tag & 0x1f))?),
            0xc0 => Node::Nil,
            0xc2 => Node::Bool(false),
            0xc3 => Node::Bool(true),
            0xc4 => self.length::<1>().and_then(|n| self.bytes(n))?,
            0xc5 => self.length::<2>().and_then(|n| self.bytes(n))?,
            0xc6 => self.length::<4>().and_then(|n| self.bytes(n))?,
            0xca => Node::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            0xcb => Node::Float(f64::from_be_bytes(self.fixed()?)),
            0xcc => Node::Int(i64::from(u8::from_be_bytes(self.fixed()?))),
            0xcd => Node::Int(i64::from(u16::from_be_bytes(self.fixed()?))),
            0xce => Node::Int(i64::from(u32::from_be_bytes(self.fixed()?))),
            0xcf => {
                let n = u64::from_be_bytes(self.fixed()?);
                i64::try_from(n).map_or(Node::Uint(n), Node::Int)
            }
            0xd0 => Node::Int(i64::from(i8::from_be_bytes(self.fixed()?))),
            0xd1 => Node::Int(i64::from(i16::from_be_bytes(self.fixed()?))),
            0xd2 => Node::Int(i64::from(i32::from_be_bytes(self.fixed()?))),
            0xd3 => Node::Int(i64::from_be_bytes(self.fixed()?)),
            0xd9 => self.length::<1>().and_then(|n| self.text(n)).map(Node::Text)?,
            0xda => self.length::<2>().and_then(|n| self.text(n)).map(Node::Text)?,
            0xdb => self.length::<4>().and_then(|n| self.text(n)).map(Node::Text)?,
            0xdc => self.length::<2>().and_then(|n| self.list(n, budget, depth))?,
            0xdd => self.length::<4>().and_then(|n| self.list(n, budget, depth))?,
            0xde => self.length::<2>().and_then(|n| self.map(n, budget, depth))?,
            0xdf => self.length::<4>().and_then(|n| self.map(n, budget, depth))?,
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(WireError::new(format!("a value of the type {tag:#04x}")));
            }
            0xe0..=0xff => Node::Int(i64::from(tag as i8)),
        })
    }

    fn bytes(&mut self, n: usize) -> Result<Node<'a>, WireError> {
        self.take(n).map(|bytes| Node::Bytes(Cow::Borrowed(bytes)))
    }

    fn list(&mut self, n: usize, budget: &Budget, depth: usize) -> Result<Node<'a>, WireError> {
        // Grows with what is there, not with what is claimed.
        let mut nodes = Vec::with_capacity(n.min(64));
        for _ in 0..n {
            nodes.push(self.node(budget, depth + 1)?);
        }
        Ok(Node::List(nodes))
    }

    fn map(&mut self, n: usize, budget: &Budget, depth: usize) -> Result<Node<'a>, WireError> {
        let mut entries = Vec::with_capacity(n.min(16));
        for _ in 0..n {
            let key = match self.node(budget, depth + 1)? {
                Node::Text(key) => key,
                Node::Bytes(Cow::Borrowed(key)) => std::str::from_utf8(key)
                    .map(Cow::Borrowed)
                    .map_err(|_| WireError::new("a key that is not UTF-8"))?,
                other => return Err(WireError::new(format!("{} as a key", other.kind()))),
            };
            entries.push((key, self.node(budget, depth + 1)?));
        }
        numpy(entries)
    }
}

/// A map, or what openpi writes as one.
fn numpy<'a>(entries: Vec<(Cow<'a, str>, Node<'a>)>) -> Result<Node<'a>, WireError> {
    let has = |name: &str| entries.iter().any(|(key, _)| key == name);
    let (array, scalar) = (has(NDARRAY), has(GENERIC));
    if !array && !scalar {
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
            ("data", value) => data = Some(value),
            _ => {}
        }
    }
    match (dtype, shape, data) {
        (Some(dtype), Some(shape), Some(Node::Bytes(data))) if array => {
            Array::new(dtype, shape, data).map(Node::Array)
        }
        (
            Some(_),
            _,
            Some(data @ (Node::Int(_) | Node::Uint(_) | Node::Float(_) | Node::Bool(_))),
        ) if !array => Ok(data),
        _ => Err(WireError::new("an array without its dtype, shape and data")),
    }
}

/// Writes a message as `openpi_client.msgpack_numpy` would.
pub fn write(node: &Node<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    append(node, &mut out);
    out
}

fn append(node: &Node<'_>, out: &mut Vec<u8>) {
    match node {
        Node::Nil => out.push(0xc0),
        Node::Bool(b) => out.push(0xc2 + u8::from(*b)),
        Node::Int(n @ 0..=0x7f) => out.push(*n as u8),
        Node::Int(n) => {
            out.push(0xd3);
            out.extend(n.to_be_bytes());
        }
        Node::Uint(n) => {
            out.push(0xcf);
            out.extend(n.to_be_bytes());
        }
        Node::Float(x) => {
            out.push(0xcb);
            out.extend(x.to_be_bytes());
        }
        Node::Text(text) => {
            if text.len() < 32 {
                out.push(0xa0 | text.len() as u8);
            } else {
                length(out, text.len(), [Some(0xd9), Some(0xda), Some(0xdb)]);
            }
            out.extend(text.as_bytes());
        }
        Node::Bytes(bytes) => {
            length(out, bytes.len(), [Some(0xc4), Some(0xc5), Some(0xc6)]);
            out.extend(&bytes[..]);
        }
        Node::List(nodes) => {
            list_head(out, nodes.len());
            for node in nodes {
                append(node, out);
            }
        }
        Node::Map(entries) => {
            if entries.len() < 16 {
                out.push(0x80 | entries.len() as u8);
            } else {
                length(out, entries.len(), [None, Some(0xde), Some(0xdf)]);
            }
            for (key, value) in entries {
                append(&Node::Text(Cow::Borrowed(key)), out);
                append(value, out);
            }
        }
        Node::Array(array) => {
            // Its client looks the keys up as bytes.
            let key = |name: &'static str| Node::Bytes(Cow::Borrowed(name.as_bytes()));
            out.push(0x84);
            append(&key(NDARRAY), out);
            out.push(0xc3);
            append(&key("data"), out);
            append(&Node::Bytes(Cow::Borrowed(array.data())), out);
            append(&key("dtype"), out);
            append(&Node::Text(Cow::Borrowed(array.dtype().code())), out);
            append(&key("shape"), out);
            list_head(out, array.shape().len());
            for &axis in array.shape() {
                append(&Node::Int(axis as i64), out);
            }
        }
    }
}

fn list_head(out: &mut Vec<u8>, n: usize) {
    if n < 16 {
        out.push(0x90 | n as u8);
    } else {
        length(out, n, [None, Some(0xdc), Some(0xdd)]);
    }
}

/// A length in the smallest of 1, 2 and 4 bytes for which there is a tag.
fn length(out: &mut Vec<u8>, n: usize, tags: [Option<u8>; 3]) {
    match (tags, n) {
        ([Some(tag), ..], 0..=0xff) => out.extend([tag, n as u8]),
        ([_, Some(tag), _], 0..=0xffff) => {
            out.push(tag);
            out.extend((n as u16).to_be_bytes());
        }
        ([.., tag], _) => {
            out.push(tag.unwrap_or(0xc1));
            out.extend((n as u32).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    /// From openpi-client 0.1.2:
    /// `msgpack_numpy.packb({"observation/state": np.array([1.5, -2], np.float32), "prompt": "go", "n": np.int64(3),
    /// "x": 2**64 - 1})`
    const GOLDEN: &str = "84b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c4080000c03f\
        000000c0c4056474797065a33c6634c40573686170659102a670726f6d7074a2676fa16e83c40d5f5f6e7067656e657269635f5fc3\
        c4046461746103c4056474797065a33c6938a178cfffffffffffffffff";

    #[test]
    fn what_openpis_client_packs_is_read() {
        let bytes = hex(&GOLDEN.replace(char::is_whitespace, ""));
        let node = read(&bytes).unwrap();
        let (shape, values) = node.get("observation/state").unwrap().numbers().unwrap();
        assert_eq!((shape, values), (vec![2], vec![1.5, -2.0]));
        assert_eq!(node.get("prompt").and_then(Node::as_str), Some("go"));
        assert_eq!(node.get("n"), Some(&Node::Int(3)));
        assert_eq!(node.get("x").and_then(Node::as_u64), Some(u64::MAX));
    }

    #[test]
    fn an_array_is_written_as_its_client_packs_it() {
        let array = Array::f32(&[2], [1.5, -2.0].into_iter()).unwrap();
        let golden = hex(&GOLDEN.replace(char::is_whitespace, ""));
        let written = write(&Node::map([("observation/state", Node::Array(array))]));
        assert_eq!(written[1..], golden[1..written.len()]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = "x".repeat(70_000);
        let image = Array::new(Dtype::U8, vec![40, 40, 3], Cow::Owned(vec![7; 4800])).unwrap();
        let many = Node::List((0..70_000).map(Node::Int).collect());
        let wide = Node::Map((0..20).map(|i| (Cow::Owned(format!("k{i}")), Node::Nil)).collect());
        let node = Node::map([
            ("a", Node::Text(Cow::Borrowed(&long))),
            ("b", Node::Array(image)),
            ("c", many),
            ("d", wide),
            ("e", Node::List(vec![Node::Int(-1), Node::Float(0.5), Node::Bool(true)])),
            ("f", Node::Uint(u64::MAX)),
        ]);
        assert_eq!(read(&write(&node)).unwrap(), node);
    }

    #[test]
    fn hostile_lengths_types_and_depths_are_refused() {
        for (bytes, why) in [
            (vec![0xdd, 0xff, 0xff, 0xff, 0xff], "ends in the middle"),
            (vec![0xc6, 0xff, 0xff, 0xff, 0xff, 0], "ends in the middle"),
            (vec![0x91; 100], "levels of nesting"),
            (vec![0xc7, 1, 1, 1], "0xc7"),
            (vec![0x81, 0x01, 0x01], "a number as a key"),
            (vec![0xc0, 0xc0], "1 bytes after"),
            (vec![0xa2, 0xff, 0xfe], "not UTF-8"),
            (vec![], "ends in the middle"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
        let mut flood = vec![0xdd, 0x00, 0x10, 0x00, 0x00];
        flood.resize(5 + (1 << 20), 0xc0);
        assert!(read(&flood).unwrap_err().to_string().contains("values"));
        let object = Node::map([("dtype", Node::Text("|O".into())), (NDARRAY, Node::Bool(true))]);
        assert!(read(&write(&object)).unwrap_err().to_string().contains("|O"));
    }
}
