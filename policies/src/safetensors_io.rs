//! Safetensors files: named tensors on disk, without the pickles of `.pt` files.
//!
//! The layout is Hugging Face's (<https://huggingface.co/docs/safetensors>): eight bytes of header length, a JSON header,
//! raw little-endian data. Reading trusts nothing: the header is bounded and checked against the file's length before
//! any tensor is made, and tensors are read one by one, so that memory stays near the file's size.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::PolicyError;

/// Headers above this are refused: parsing can take 16 bytes of memory per byte. One tensor takes about 100 bytes.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// Ends of file names that mean a pickle or another format that can run code or that we cannot read.
const REFUSED_EXTENSIONS: [&str; 8] = ["pt", "pth", "bin", "pkl", "pickle", "ckpt", "ot", "zip"];

/// Reads every tensor of the file at `path` into memory, as stored (f64, f32, f16, bf16, i64, i32, i16, i8, u8, bool).
///
/// # Errors
/// [`PolicyError::Refused`] for a pickle or a zip (by name or by content), [`PolicyError::File`] for a file that is not
/// there, is truncated, or whose header is wrong.
pub fn load(path: &Path) -> Result<BTreeMap<String, Tensor>, PolicyError> {
    refuse_pickles(path)?;
    let fail = |detail: String| PolicyError::File { path: path.to_owned(), detail };
    let mut file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let length = file.metadata().map_err(|e| fail(e.to_string()))?.len();
    let header = read_header(&mut file, length).map_err(fail)?;

    let mut tensors = BTreeMap::new();
    let mut bytes = Vec::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let fail = |detail: String| fail(format!("tensor `{name}`: {detail}"));
        let kind = kind_of(info.dtype)
            .ok_or_else(|| fail(format!("numbers of type {} are not supported", info.dtype)))?;
        let shape = shape_of(&info.shape)
            .ok_or_else(|| fail(format!("shape {:?} is out of range", info.shape)))?;
        // Within the file's length: `read_header` compared the last offset with it.
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        file.read_exact(&mut bytes).map_err(|e| fail(e.to_string()))?;
        let tensor =
            Tensor::f_from_data_size(&bytes, &shape, kind).map_err(|e| fail(e.to_string()))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Writes `tensors` to `path` in order of name within each type, with the metadata `{"format": "pt"}` that Python's
/// loaders ask for, and waits until the bytes are on disk. The same tensors always give the same bytes. Callers that
/// must not leave half a file write to a temporary name and rename.
///
/// # Errors
/// [`PolicyError::File`] for a disk that is full or a folder that is not there, [`PolicyError::Config`] for a type of
/// number that the format lacks.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
    let fail =
        |e: std::io::Error| PolicyError::File { path: path.to_owned(), detail: e.to_string() };
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| PolicyError::Config {
            detail: format!("save `{name}`: safetensors has no type for {:?}", tensor.kind()),
        })?;
        order.push((dtype, name, tensor));
    }
    // Wide types first keeps every tensor aligned; the sort is stable, so names stay in order.
    order.sort_by_key(|(dtype, _, _)| std::cmp::Reverse(*dtype));
    let mut end = 0;
    let infos = order
        .iter()
        .map(|(dtype, name, tensor)| {
            let begin = end;
            end += tensor.numel() * dtype.bitsize() / 8;
            let shape = tensor.size().iter().map(|&n| n as usize).collect();
            ((*name).clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (begin, end) })
        })
        .collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos)
        .map_err(|e| e.to_string())
        .and_then(|m| serde_json::to_vec(&m).map_err(|e| e.to_string()));
    let mut header =
        header.map_err(|detail| PolicyError::File { path: path.to_owned(), detail })?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let file = File::create(path).map_err(fail)?;
    let mut writer = BufWriter::new(file);
    writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    writer.write_all(&header).map_err(fail)?;
    let mut bytes = Vec::new();
    for (dtype, _, tensor) in order {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let count = tensor.numel();
        bytes.resize(count * dtype.bitsize() / 8, 0);
        tensor.copy_data_u8(&mut bytes, count);
        writer.write_all(&bytes).map_err(fail)?;
    }
    let file = writer.into_inner().map_err(|e| fail(e.into_error()))?;
    file.sync_all().map_err(fail)
}

/// Refuses a file that is a pickle or a zip archive, by its name or its first bytes.
///
/// # Errors
/// [`PolicyError::Refused`].
pub fn refuse_pickles(path: &Path) -> Result<(), PolicyError> {
    let refuse =
        |what: &str| Err(PolicyError::Refused { path: path.to_owned(), what: what.to_owned() });
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    if let Some(extension) = extension
        && REFUSED_EXTENSIONS.contains(&extension.as_str())
    {
        return refuse(&format!("a `.{extension}` file"));
    }
    let mut magic = [0u8; 8];
    let read = File::open(path).and_then(|mut file| file.read(&mut magic));
    // Whoever reads the file next reports why it cannot be opened.
    let Ok(read) = read else { return Ok(()) };
    match &magic[..read] {
        // torch.save since 1.6 writes a zip.
        [b'P', b'K', 3 | 5, 4 | 6, ..] => refuse("a zip archive"),
        // Pickle protocol 2 to 5: PROTO, its number, then an opcode. As a header length this would be above our bound
        // unless bytes 3 to 7 are zero, and no opcode is zero.
        [0x80, 2..=5, op, ..] if *op != 0 && u64::from_le_bytes(magic) > MAX_HEADER_BYTES => {
            refuse("a pickle")
        }
        _ => Ok(()),
    }
}

/// The checked header; leaves the file at the first byte of data.
fn read_header(file: &mut File, length: u64) -> Result<Metadata, String> {
    let mut size = [0u8; 8];
    file.read_exact(&mut size)
        .map_err(|_| format!("{length} bytes are too few for a safetensors file"))?;
    let size = u64::from_le_bytes(size);
    if size > length - 8 {
        return Err(format!(
            "a header of {size} bytes does not fit into {length} bytes: the file is truncated or no safetensors file"
        ));
    }
    if size > MAX_HEADER_BYTES {
        return Err(format!("a header of {size} bytes is above the bound of {MAX_HEADER_BYTES}"));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(|e| e.to_string())?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("its header is wrong: {e}"))?;
    let data = header.data_len() as u64;
    if data != length - 8 - size {
        return Err(format!(
            "its header announces {data} bytes of data and {} are there: the file is truncated or damaged",
            length - 8 - size
        ));
    }
    Ok(header)
}

/// libtorch multiplies dimensions that are beside a zero too, so the product is bounded as if zeros were ones.
fn shape_of(shape: &[usize]) -> Option<Vec<i64>> {
    let mut product = 1i64;
    shape
        .iter()
        .map(|&n| {
            let n = i64::try_from(n).ok()?;
            product = product.checked_mul(n.max(1)).filter(|&p| p < 1 << 48)?;
            Some(n)
        })
        .collect()
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;
    use simloop_envs::SeedTree;

    use super::*;

    fn sample() -> BTreeMap<String, Tensor> {
        let x = Tensor::from_slice(&[1.5f32, -2.0, 0.25, 3.0, 1e-3, 7.0]).reshape([2, 3]);
        BTreeMap::from([
            ("b.half".to_owned(), x.to_kind(Kind::Half)),
            ("a.bf16".to_owned(), x.to_kind(Kind::BFloat16)),
            ("c.float".to_owned(), x.transpose(0, 1)),
            ("c.double".to_owned(), x.to_kind(Kind::Double)),
            ("i64".to_owned(), Tensor::from_slice(&[i64::MAX, -1])),
            ("u8".to_owned(), Tensor::from_slice(&[0u8, 255, 3])),
            ("flag".to_owned(), Tensor::from_slice(&[true, false, true])),
            ("scalar".to_owned(), Tensor::from(2.5f32)),
            ("empty".to_owned(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
        ])
    }

    #[test]
    fn what_is_saved_comes_back_with_its_type_and_shape() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
        let tensors = sample();
        save(&a, &tensors).unwrap();
        let back = load(&a).unwrap();
        assert_eq!(back.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(back[name].kind(), tensor.kind(), "{name}");
            assert_eq!(back[name].size(), tensor.size(), "{name}");
            assert!(back[name].equal(tensor), "{name}");
        }
        save(&b, &back).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let bytes = std::fs::read(&a).unwrap();
        let text = String::from_utf8_lossy(&bytes[8..40]).into_owned();
        assert!(text.starts_with(r#"{"__metadata__":{"format":"pt"}"#), "{text}");
    }

    #[test]
    fn the_reference_crate_reads_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &sample()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor("c.float").unwrap();
        assert_eq!(view.shape(), [3, 2]);
        let first: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(first, [1.5, 3.0, -2.0, 1e-3, 0.25, 7.0]);
    }

    #[test]
    fn pickles_are_refused_by_name_and_by_content() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["m.pt", "m.PTH", "pytorch_model.bin", "m.pkl", "m.ckpt", "m.ot"] {
            let error = load(&folder.path().join(name)).unwrap_err();
            assert!(matches!(error, PolicyError::Refused { .. }), "{error}");
        }
        for content in [&b"PK\x03\x04rest of a zip"[..], b"\x80\x02}q\x00X\x01\x00\x00"] {
            let path = folder.path().join("disguised.safetensors");
            std::fs::write(&path, content).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, PolicyError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn a_header_length_that_looks_like_a_pickle_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        // 0x0280 = 640 bytes of header, whose third byte is zero.
        let mut header = br#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_vec();
        header.resize(0x0280, b' ');
        let mut bytes = 0x0280u64.to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.push(9);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(load(&path).unwrap()["x"].int64_value(&[0]), 9);
    }

    #[test]
    fn shapes_beyond_all_bounds_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let header =
            format!(r#"{{"x":{{"dtype":"F32","shape":[0,{},3],"data_offsets":[0,0]}}}}"#, i64::MAX);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains('x') && !error.contains("truncated"), "{error}");
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("short.safetensors");
        save(&path, &sample()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("short.safetensors"), "{error}");
        }
        let error = load(&folder.path().join("absent.safetensors")).unwrap_err().to_string();
        assert!(error.contains("absent.safetensors"), "{error}");
    }

    /// `SIMLOOP_MUTATIONS` sets the number; the default keeps the suite quick.
    #[test]
    fn damaged_files_never_panic() {
        let rounds: u64 =
            std::env::var("SIMLOOP_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &sample()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut rng = SeedTree::new(0).child("mutations").rng();
        let mut refused = 0;
        for round in 0..rounds {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                // Mostly the header: a flipped number in the data is no fault that anybody could see.
                let end = if round % 8 == 0 { bytes.len() } else { header_end.min(bytes.len()) };
                if end == 0 {
                    break;
                }
                let at = rng.random_range(0..end);
                match rng.random_range(0..4) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = b"0123456789[]{},:\"-e."[rng.random_range(0..20)],
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            refused += u64::from(load(&path).is_err());
        }
        assert!(refused > rounds / 2, "only {refused} of {rounds} were refused");
    }
}
