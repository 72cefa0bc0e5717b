//! Writing protocol 4.

use super::{Array, Value};

const PROTO: u8 = 0x80;
const FRAME: u8 = 0x95;

/// The value as a pickle of protocol 4, in one frame.
///
/// Nothing is shared by reference: a value that stands twice is written twice.
pub fn write(value: &Value<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, value);
    body.push(b'.');
    let mut out = vec![PROTO, 4, FRAME];
    out.extend((body.len() as u64).to_le_bytes());
    out.extend(body);
    out
}

fn put(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Int(number) => int(out, *number),
        Value::Float(number) => {
            out.push(b'G');
            out.extend(number.to_be_bytes());
        }
        Value::Str(text) => string(out, text),
        Value::Bytes(bytes) => put_bytes(out, bytes),
        Value::List(items) => {
            out.push(b']');
            collection(out, items, b'e');
        }
        Value::Set(items) => {
            out.push(0x8f);
            collection(out, items, 0x90);
        }
        Value::Tuple(items) => {
            if items.is_empty() {
                out.push(b')');
                return;
            }
            out.push(b'(');
            for item in items {
                put(out, item);
            }
            out.push(b't');
        }
        Value::Dict(entries) => {
            out.push(b'}');
            if entries.is_empty() {
                return;
            }
            out.push(b'(');
            for (key, value) in entries {
                put(out, key);
                put(out, value);
            }
            out.push(b'u');
        }
        Value::Array(array) => {
            global(out, "numpy.core.multiarray", "_reconstruct");
            global(out, "numpy", "ndarray");
            int(out, 0);
            out.push(0x85); // (0,)
            put_bytes(out, b"b");
            out.extend([0x87, b'R']);
            // The state: version, shape, dtype, order, data.
            out.push(b'(');
            int(out, 1);
            out.push(b'(');
            for side in &array.shape {
                int(out, *side as i64);
            }
            out.push(b't');
            dtype(out, array);
            out.push(if array.fortran { 0x88 } else { 0x89 });
            put_bytes(out, &array.data);
            out.extend(b"tb");
        }
        Value::Scalar(array) => {
            global(out, "numpy.core.multiarray", "scalar");
            dtype(out, array);
            put_bytes(out, &array.data);
            out.extend([0x86, b'R']);
        }
    }
}

fn collection(out: &mut Vec<u8>, items: &[Value<'_>], opcode: u8) {
    if items.is_empty() {
        return;
    }
    out.push(b'(');
    for item in items {
        put(out, item);
    }
    out.push(opcode);
}

fn int(out: &mut Vec<u8>, number: i64) {
    if let Ok(byte) = u8::try_from(number) {
        out.extend([b'K', byte]);
    } else if let Ok(number) = i32::try_from(number) {
        out.push(b'J');
        out.extend(number.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend(number.to_le_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    if let Ok(len) = u8::try_from(text.len()) {
        out.extend([0x8c, len]);
    } else {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
    }
    out.extend(text.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    if let Ok(len) = u8::try_from(bytes.len()) {
        out.extend([b'C', len]);
    } else {
        out.push(b'B');
        out.extend((bytes.len() as u32).to_le_bytes());
    }
    out.extend(bytes);
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    string(out, module);
    string(out, name);
    out.push(0x93);
}

/// `numpy.dtype('f8', False, True)` with its state, as numpy itself writes it.
fn dtype(out: &mut Vec<u8>, array: &Array<'_>) {
    global(out, "numpy", "dtype");
    string(out, &array.dtype.code());
    out.extend([0x89, 0x88, 0x87, b'R', b'(']);
    int(out, 3);
    // A byte has no order.
    string(out, if array.dtype.size() == 1 { "|" } else { "<" });
    out.extend(b"NNN");
    int(out, -1);
    int(out, -1);
    int(out, 0);
    out.extend(b"tb");
}
