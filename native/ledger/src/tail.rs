//! Records of the tail: index of the entry, bytes of its body, CRC-32 of both and the body, little-endian, and the body.

use std::io::{self, Write};

const HEADER_BYTES: usize = 16;
const SUMMED_BYTES: usize = 12;

/// Append a record of each body, numbered from `first` on, by one call; how many bytes they are.
///
/// # Errors
/// The file took none of them, or a part of them that the caller is to cut off: ENOSPC when it took too few.
pub fn append_records<'a>(
    mut file: impl Write,
    first: u64,
    bodies: impl Iterator<Item = &'a [u8]> + Clone,
) -> io::Result<usize> {
    let size_bytes = bodies.clone().map(|body| HEADER_BYTES + body.len()).sum();
    let mut records = Vec::with_capacity(size_bytes);
    for (index, body) in (first..).zip(bodies) {
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let start = records.len();
        records.extend_from_slice(&index.to_le_bytes());
        records.extend_from_slice(&length.to_le_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(&records[start..start + SUMMED_BYTES]);
        sum.update(body);
        records.extend_from_slice(&sum.finalize().to_le_bytes());
        records.extend_from_slice(body);
    }
    // Not `write_all`: what a full disk took of a record is no record.
    if file.write(&records)? == size_bytes { Ok(size_bytes) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_one_behind_the_other() {
        let mut file = Vec::new();
        let bodies: [&[u8]; 2] = [b"one", b""];
        assert_eq!(append_records(&mut file, 7, bodies.iter().copied()).ok(), Some(35));
        let (head, rest) = file.split_at(19);
        assert_eq!(head[..12], [7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(head[16..], *b"one");
        assert_eq!(rest[..12], [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(rest[12..], crc32fast::hash(&rest[..12]).to_le_bytes());
    }

    #[test]
    fn a_file_that_takes_a_part_took_none() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                Ok(data.len() - 1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bodies: [&[u8]; 1] = [b"one"];
        let refused = append_records(Full, 0, bodies.iter().copied());
        assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(libc::ENOSPC)));
    }
}
