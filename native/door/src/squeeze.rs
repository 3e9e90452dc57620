//! zstd both ways (RFC 8878). What unpacks to more than it says stops there, and what wants a huge window is refused:
//! neither memory nor disk is the client's to spend.

use buildnet_formats::NativeError;
use bytes::Bytes;
use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::{CParameter, DParameter};

/// Fast, and close to the best ratio per second for build outputs.
const LEVEL: i32 = 3;
/// Windows up to 8 MiB, which every decoder should have (RFC 8878 section 3.1.1.1.2).
const WINDOW_LOG_MAX: u32 = 23;
const STEP_BYTES: usize = 128 << 10;

fn refuse(error: impl std::fmt::Display) -> NativeError {
    NativeError::invalid("data", format!("the bytes are not zstd that can be unpacked here: {error}"))
}

/// Unpacks a stream piece by piece.
pub(crate) struct Unpacker {
    decoder: Decoder<'static>,
    step: Vec<u8>,
    /// Whether the bytes so far end a frame.
    whole: bool,
}

impl Unpacker {
    pub(crate) fn new() -> Result<Self, NativeError> {
        let mut decoder = Decoder::new().map_err(refuse)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(refuse)?;
        Ok(Self { decoder, step: vec![0; STEP_BYTES], whole: true })
    }

    /// Hand what these bytes unpack to to `sink`, which stops it by an error.
    pub(crate) fn feed(
        &mut self,
        packed: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), NativeError>,
    ) -> Result<(), NativeError> {
        let mut input = InBuffer::around(packed);
        loop {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            let before = input.pos();
            let hint = self.decoder.run(&mut input, &mut output).map_err(refuse)?;
            let (made, full) = (output.pos(), output.pos() == output.capacity());
            // Asked again without anything to do, as when the end just filled the step, it speaks of the next frame.
            if made > 0 || input.pos() > before {
                self.whole = hint == 0;
            }
            sink(&self.step[..made])?;
            let rest = input.pos() < packed.len();
            if !full && (!rest || (input.pos() == before && made == 0)) {
                return if rest { Err(refuse("it makes no progress")) } else { Ok(()) };
            }
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn finish(&self) -> Result<(), NativeError> {
        if self.whole { Ok(()) } else { Err(refuse("the stream ends within a frame")) }
    }
}

/// Pack bytes in memory.
pub(crate) fn pack(data: &[u8]) -> Result<Bytes, NativeError> {
    zstd::bulk::compress(data, LEVEL).map(Bytes::from).map_err(|e| NativeError::internal(format!("zstd: {e}")))
}

/// Packs a stream piece by piece into one frame.
pub(crate) struct Packer {
    encoder: Encoder<'static>,
    step: Vec<u8>,
}

impl Packer {
    pub(crate) fn new() -> Result<Self, NativeError> {
        let failed = |e: std::io::Error| NativeError::internal(format!("zstd: {e}"));
        let mut encoder = Encoder::new(LEVEL).map_err(failed)?;
        encoder.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        Ok(Self { encoder, step: vec![0; STEP_BYTES] })
    }

    /// What these bytes pack to so far; with `last` the rest too.
    pub(crate) fn feed(&mut self, data: &[u8], last: bool) -> Result<Vec<u8>, NativeError> {
        let failed = |e: std::io::Error| NativeError::internal(format!("zstd: {e}"));
        let mut packed = Vec::new();
        let mut input = InBuffer::around(data);
        while input.pos() < data.len() {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            self.encoder.run(&mut input, &mut output).map_err(failed)?;
            packed.extend_from_slice(output.as_slice());
        }
        if !last {
            return Ok(packed);
        }
        loop {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            let left = self.encoder.finish(&mut output, true).map_err(failed)?;
            packed.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(packed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Unpack at most `size_bytes`.
    fn unpack(packed: &[u8], size_bytes: usize) -> Result<Vec<u8>, NativeError> {
        let mut unpacked = Vec::with_capacity(size_bytes.min(packed.len().saturating_mul(20)));
        let mut unpacker = Unpacker::new()?;
        unpacker.feed(packed, |more| {
            if unpacked.len() + more.len() > size_bytes {
                return Err(refuse(format!("it unpacks to more than the {size_bytes} bytes that its digest says")));
            }
            unpacked.extend_from_slice(more);
            Ok(())
        })?;
        unpacker.finish()?;
        Ok(unpacked)
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_in_any_pieces(data: Vec<u8>, cut in 1usize..50) {
            let mut packer = Packer::new().unwrap();
            let mut packed = packer.feed(&data, false).unwrap();
            packed.extend(packer.feed(&[], true).unwrap());
            let mut unpacked = Vec::new();
            let mut unpacker = Unpacker::new().unwrap();
            for piece in packed.chunks(cut) {
                unpacker.feed(piece, |more| { unpacked.extend_from_slice(more); Ok(()) }).unwrap();
            }
            unpacker.finish().unwrap();
            prop_assert_eq!(&unpacked, &data);
            prop_assert_eq!(unpack(&pack(&data).unwrap(), data.len()).unwrap(), data);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = unpack(&bytes, 1 << 16);
        }
    }

    #[test]
    fn a_bomb_stops_at_the_size_that_was_said() {
        let bomb = pack(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 1 << 16);
        assert_eq!(unpack(&bomb, 1000).unwrap_err().code, "invalid_request");
    }

    #[test]
    fn a_stream_cut_short_is_refused() {
        let packed = pack(&[7; 5000]).unwrap();
        assert!(unpack(&packed[..packed.len() - 1], 5000).is_err());
        assert_eq!(unpack(&[packed.as_ref(), packed.as_ref()].concat(), 10_000).unwrap(), vec![7; 10_000]);
    }
}
