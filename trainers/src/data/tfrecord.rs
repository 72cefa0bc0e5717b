//! TFRecord files: records with checksums, one after the other.
//!
//! A record is u64le length, u32le masked CRC-32C of those eight bytes, payload, u32le masked CRC-32C of the payload;
//! `mask(c) = rotr(c, 15) + 0xa282ead8` (TensorFlow `lib/hash/crc32c.h`). TFDS stores one episode per record, TensorBoard
//! one event. Compressed files, which nobody publishes demonstrations in, fail at their first checksum.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::DataError;

/// Bytes before a payload, and in all beside it.
const HEAD: u64 = 12;
const FRAME: u64 = 16;

/// A TFRecord file whose records can be read in any order, from several threads.
#[derive(Debug)]
pub struct TfRecords {
    path: PathBuf,
    /// Offset and length of each payload. The file is opened for each read: a data set may have more shards than a
    /// process may have files.
    places: Vec<(u64, usize)>,
}

impl TfRecords {
    /// Opens a file and walks over the headers of its records.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Broken`] naming the record whose header is damaged or that is cut short.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(DataError::io("open", path))?;
        let size = file.metadata().map_err(DataError::io("read", path))?.len();
        let mut places = Vec::new();
        let mut at = 0;
        while at < size {
            let record = places.len();
            let cut = || {
                DataError::broken(
                    path,
                    format!("record {record} is cut short at byte {size}; copy the file again"),
                )
            };
            if size - at < FRAME {
                return Err(cut());
            }
            let mut head = [0; HEAD as usize];
            file.seek(SeekFrom::Start(at)).map_err(DataError::io("read", path))?;
            file.read_exact(&mut head).map_err(DataError::io("read", path))?;
            let [a, b, c, d, e, f, g, h, crc @ ..] = head;
            let length = [a, b, c, d, e, f, g, h];
            if masked_crc(&length) != u32::from_le_bytes(crc) {
                return Err(DataError::broken(
                    path,
                    format!(
                        "the length of record {record} at byte {at} does not match its checksum"
                    ),
                ));
            }
            let length = u64::from_le_bytes(length);
            if length > size - at - FRAME {
                return Err(cut());
            }
            places.push((at + HEAD, length as usize));
            at += length + FRAME;
        }
        Ok(Self { path: path.to_owned(), places })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The payload of a record, its checksum checked.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Broken`] for a wrong checksum or a record that does not exist.
    pub fn read(&self, record: usize) -> Result<Vec<u8>, DataError> {
        let &(offset, length) = self.places.get(record).ok_or_else(|| {
            DataError::broken(&self.path, format!("there is no record {record} of {}", self.len()))
        })?;
        // `open` found that the file has these bytes, so the length is bounded by the file's.
        let mut bytes = vec![0; length + 4];
        let file = File::open(&self.path).map_err(DataError::io("open", &self.path))?;
        file.read_exact_at(&mut bytes, offset).map_err(DataError::io("read", &self.path))?;
        let crc = bytes.split_off(length);
        if masked_crc(&bytes).to_le_bytes() != crc[..] {
            return Err(DataError::broken(
                &self.path,
                format!("record {record} does not match its checksum; copy the file again"),
            ));
        }
        Ok(bytes)
    }
}

/// Writes one record.
///
/// # Errors
/// The writer's.
pub fn write_record(out: &mut impl Write, payload: &[u8]) -> std::io::Result<()> {
    let length = (payload.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(payload)?;
    out.write_all(&masked_crc(payload).to_le_bytes())
}

/// Rotated and shifted, so that the checksum of data with checksums in it is harmless.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (tempfile::TempDir, PathBuf, Vec<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tfrecord");
        let records = vec![b"hello".to_vec(), Vec::new(), (0..=255).collect()];
        let mut bytes = Vec::new();
        for record in &records {
            write_record(&mut bytes, record).unwrap();
        }
        std::fs::write(&path, bytes).unwrap();
        (folder, path, records)
    }

    #[test]
    fn records_come_back() {
        let (_folder, path, records) = sample();
        let file = TfRecords::open(&path).unwrap();
        let back: Vec<Vec<u8>> = (0..file.len()).map(|i| file.read(i).unwrap()).collect();
        assert_eq!(back, records);
        assert!(file.read(3).is_err());
    }

    /// `tf.io.TFRecordWriter` on `b"hello"`: length 5, its masked CRC, payload, its masked CRC. The checksum of the empty
    /// string is the mask itself.
    #[test]
    fn the_mask_is_tensorflows() {
        assert_eq!(masked_crc(b""), 0xa282_ead8);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283); // the CRC-32C check value
        assert_eq!(
            masked_crc(b"123456789"),
            0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let (_folder, path, _) = sample();
        let whole = std::fs::read(&path).unwrap();
        let broken = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match TfRecords::open(&path) {
                Err(_) => true,
                Ok(file) => (0..3).any(|i| file.read(i).is_err()),
            }
        };
        assert!(!broken(&whole));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(broken(&bytes), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert!(broken(&whole[..cut]), "cut at {cut}");
        }
    }
}
