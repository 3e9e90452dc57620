//! The first bytes of a session, in the clear, and the prologue that both ends hash: whoever alters the one ends the
//! handshake. No other protocol of the port begins so: HTTP begins with a letter, TLS with 0x16.

use crate::SessionError;

/// What every session begins with; the first byte is no letter and no TLS record.
pub const MAGIC: [u8; 6] = [0xb5, b'B', b'N', b'E', b'T', 0x0a];
/// Magic, version, pattern, and the term as 8 bytes, the highest first.
pub const PREAMBLE_BYTES: usize = 16;
/// An organisation's name.
pub const ORGANISATION_BYTES_MAX: usize = 255;
pub(crate) const VERSION: u8 = 1;
const PROLOGUE: &[u8] = b"buildnet session 1\0";

/// The handshake's pattern (Noise section 7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The initiator knows the responder's session key: one round trip.
    Ik,
    /// Neither knows the other's: one round trip and a half; a token may be shown.
    Xx,
}

/// What an initiator says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) pattern: Pattern,
    pub(crate) term: u64,
}

impl Preamble {
    pub(crate) fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6] = VERSION;
        bytes[7] = match self.pattern {
            Pattern::Ik => 1,
            Pattern::Xx => 2,
        };
        bytes[8..].copy_from_slice(&self.term.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, SessionError> {
        if bytes[..6] != MAGIC {
            return Err(SessionError::NotASession);
        }
        if bytes[6] != VERSION {
            return Err(SessionError::Version(bytes[6]));
        }
        let pattern = match bytes[7] {
            1 => Pattern::Ik,
            2 => Pattern::Xx,
            other => return Err(SessionError::Pattern(other)),
        };
        let mut term = [0; 8];
        term.copy_from_slice(&bytes[8..]);
        Ok(Self { pattern, term: u64::from_be_bytes(term) })
    }

    /// What both ends must agree on besides: the preamble, which holds the term, and the organisation.
    pub(crate) fn prologue(self, organisation: &str) -> Vec<u8> {
        [PROLOGUE, &self.encode(), organisation.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(term: u64, xx: bool) {
            let preamble = Preamble { pattern: if xx { Pattern::Xx } else { Pattern::Ik }, term };
            prop_assert_eq!(Preamble::decode(&preamble.encode()).unwrap(), preamble);
        }

        /// No other preamble is taken for one: each that is accepted is written the same way again.
        #[test]
        fn each_preamble_has_one_form(bytes: [u8; PREAMBLE_BYTES], begins_well: bool) {
            let mut bytes = bytes;
            if begins_well {
                bytes[..6].copy_from_slice(&MAGIC);
                bytes[6] = VERSION;
                bytes[7] %= 4;
            }
            if let Ok(preamble) = Preamble::decode(&bytes) {
                prop_assert_eq!(preamble.encode(), bytes);
            }
        }
    }

    #[test]
    fn no_other_protocol_of_the_port_begins_so() {
        for other in
            [&b"PRI * HTTP/2.0\r\n"[..], b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcde"]
        {
            assert_ne!(other[0], MAGIC[0]);
            assert!(matches!(Preamble::decode(other[..16].try_into().unwrap()), Err(SessionError::NotASession)));
        }
    }
}
