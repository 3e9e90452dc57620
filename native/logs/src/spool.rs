//! Records of one segment of a spooled log (src/buildnet/edge/log_spool.py has their form). What is not whole is not read.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use buildnet_raw::Message;
use bytes::Bytes;

use crate::buffers::{self, BUFFER_BYTES};

/// Stream (1 byte, 3 of padding), bytes of data (4), their offset in the stream (8), Unix milliseconds (8); little-endian.
pub const RECORD_HEADER_BYTES: usize = 24;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 1 is stdout, 2 is stderr.
    pub stream: u8,
    /// Of its first byte in the stream.
    pub offset: u64,
    /// When it was printed; 0 where that is not known.
    pub printed_at_unix_ms: u64,
    /// What was printed.
    pub data: Message,
}

impl Record {
    fn header(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0] = self.stream;
        // Python bounds what one has.
        header[4..8].copy_from_slice(&u32::try_from(self.data.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[8..16].copy_from_slice(&self.offset.to_le_bytes());
        header[16..].copy_from_slice(&self.printed_at_unix_ms.to_le_bytes());
        header
    }
}

/// The whole records of `file` between `position` and `end`, as many as one read gives, and how many bytes of the file they
/// are. Without `waits` None, where the kernel does not have them in memory (preadv2(2), RWF_NOWAIT).
///
/// # Errors
/// The file cannot be read.
pub fn records(file: &File, position: u64, end: u64, waits: bool) -> io::Result<Option<(Vec<Record>, u64)>> {
    let size = usize::try_from(end.saturating_sub(position)).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
    let data = buffers::filled(size, |buffer| {
        if waits { buffers::read_at(file, buffer, position) } else { read_cached_at(file, buffer, position) }
    });
    let data = match data {
        Err(error) if !waits && matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)) => {
            return Ok(None);
        }
        data => data?,
    };
    let (records, used) = parsed(&data);
    // Less than there is: the rest is on the disk alone.
    Ok((waits || used > 0 || data.len() == size).then_some((records, used as u64)))
}

/// As many as one call takes (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// Write records behind the first `position` bytes of `file`; returns where they end. Where they cannot be written the file
/// ends at `position`.
///
/// # Errors
/// The file cannot be written.
pub fn append(file: &File, position: u64, records: &[Record]) -> io::Result<u64> {
    let headers: Vec<_> = records.iter().map(Record::header).collect();
    let pieces = headers.iter().zip(records).flat_map(|(header, record)| {
        std::iter::once(IoSlice::new(header)).chain(record.data.pieces().iter().map(|piece| IoSlice::new(piece)))
    });
    let mut parts: Vec<IoSlice<'_>> = pieces.collect();
    let mut rest = parts.as_mut_slice();
    let mut end = position;
    while !rest.is_empty() {
        match write_at(file, &rest[..rest.len().min(PARTS_MAX)], end) {
            Ok(count) => {
                IoSlice::advance_slices(&mut rest, count);
                end += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                file.set_len(position)?;
                return Err(error);
            }
        }
    }
    Ok(end)
}

fn write_at(file: &File, parts: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
    let count = libc::c_int::try_from(parts.len()).map_err(io::Error::other)?;
    let position = libc::off_t::try_from(position).map_err(io::Error::other)?;
    // SAFETY: an IoSlice is an iovec (std::io::IoSlice), and the memory that these name lives for the call.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr().cast(), count, position) };
    match usize::try_from(written) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written.map_err(|_| io::Error::last_os_error()),
    }
}

fn read_cached_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let position = libc::off_t::try_from(position).map_err(io::Error::other)?;
    // SAFETY: one part, whose memory is exclusively ours for the call.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, position, libc::RWF_NOWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn parsed(data: &Bytes) -> (Vec<Record>, usize) {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((header, rest)) = data[at..].split_first_chunk::<RECORD_HEADER_BYTES>() {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let size = usize::try_from(number(&header[4..8])).unwrap_or(usize::MAX);
        if size > rest.len() {
            break;
        }
        let start = at + RECORD_HEADER_BYTES;
        let (offset, printed_at_unix_ms) = (number(&header[8..16]), number(&header[16..]));
        let data = data.slice(start..start + size).into();
        found.push(Record { stream: header[0], offset, printed_at_unix_ms, data });
        at = start + size;
    }
    (found, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn record(stream: u8, offset: u64, at_ms: u64, data: &[u8]) -> Vec<u8> {
        let size = u32::try_from(data.len()).unwrap();
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend(size.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(at_ms.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"12345678").unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn whole_records_are_read_and_a_torn_one_is_left() {
        let whole = [record(1, 300, 1_700_000_000_123, b"out"), record(2, 0, 0, b"error")].concat();
        let torn = &record(1, 303, 1, b"more")[..26];
        let file = file(&[&whole[..], torn].concat());
        let end = 8 + (whole.len() + torn.len()) as u64;
        let (found, used) = records(&file, 8, end, true).unwrap().unwrap();
        assert_eq!(used, whole.len() as u64);
        let out =
            Record { stream: 1, offset: 300, printed_at_unix_ms: 1_700_000_000_123, data: Bytes::from("out").into() };
        let error = Record { stream: 2, offset: 0, printed_at_unix_ms: 0, data: Bytes::from("error").into() };
        assert_eq!(found, [out, error]);
        assert_eq!(records(&file, 8, 8 + 30, true).unwrap().unwrap().1, 27, "nothing beyond the end that is told");
        assert_eq!(records(&file, end, end, true).unwrap(), Some((vec![], 0)));
    }

    #[test]
    fn the_largest_records_come_one_read_each() {
        let large = vec![b'x'; 512 << 10];
        let bytes = [record(1, 0, 5, &large), record(1, large.len() as u64, 6, &large)].concat();
        let file = file(&bytes);
        let (mut position, end) = (8, 8 + bytes.len() as u64);
        for offset in [0, large.len() as u64] {
            let (found, used) = records(&file, position, end, true).unwrap().unwrap();
            assert_eq!((found.len(), found[0].offset, found[0].data.joined()), (1, offset, Bytes::from(large.clone())));
            position += used;
        }
        assert_eq!(position, end);
    }

    #[test]
    fn what_is_in_memory_needs_no_waiting() {
        let file = file(&record(1, 0, 5, b"just written"));
        // A file system that cannot tell says so, and its caller waits.
        if let Some((found, _)) = records(&file, 8, 8 + 36, false).unwrap() {
            assert_eq!(found[0].data.joined(), "just written");
        }
    }

    #[test]
    fn what_is_appended_is_read_again_whatever_its_pieces() {
        let mut data = Message::from(Bytes::from_static(b"in "));
        for _ in 0..2000 {
            data.push(Bytes::from_static(b"pieces "));
        }
        let one = Record { stream: 1, offset: 7, printed_at_unix_ms: 5, data };
        let other = Record { stream: 2, offset: 0, printed_at_unix_ms: 0, data: Bytes::from_static(b"other").into() };
        let file = file(b"what was torn is written over");
        let end = append(&file, 8, &[one.clone(), other.clone()]).unwrap();
        assert_eq!(end, 8 + (2 * RECORD_HEADER_BYTES + one.data.len() + 5) as u64);
        assert_eq!(records(&file, 8, end, true).unwrap(), Some((vec![one, other], end - 8)));
        assert_eq!(append(&file, end, &[]).unwrap(), end);
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"1234").unwrap();
        let record = Record { stream: 1, offset: 0, printed_at_unix_ms: 0, data: Bytes::from_static(b"lost").into() };
        append(&File::open(&path).unwrap(), 4, &[record]).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"1234");
    }
}
