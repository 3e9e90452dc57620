//! One direction under one key: AES-256-GCM as Noise numbers it (section 12.4), each number once, in place. Bytes are
//! sealed where they are sent from and opened where they came in: a second buffer would cost as much as the cipher.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::error::Unspecified;
use zeroize::Zeroizing;

pub(crate) const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// Of a new key alone (Noise section 4.2).
const REKEY_NUMBER: u64 = u64::MAX;

/// Seals or opens; whoever sends has one, and whoever receives has its like.
pub(crate) struct Cipher {
    /// "Less safe" since its numbers are for the caller to keep apart: they only rise here.
    key: LessSafeKey,
    number: u64,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self { key: of(key), number: 0 }
    }

    /// Seal `bytes` where they are; what belongs behind them is returned.
    pub(crate) fn seal(&mut self, bytes: &mut [u8]) -> Result<Tag, Unspecified> {
        let nonce = self.next()?;
        self.key.seal_in_place_separate_tag(nonce, Aad::empty(), bytes)
    }

    /// Open `sealed`, with the tag at its end, where it is; returns how many bytes at its beginning are open now. After an
    /// error there is nothing to be read in it.
    pub(crate) fn open(&mut self, sealed: &mut [u8]) -> Result<usize, Unspecified> {
        let nonce = self.next()?;
        let opened = self.key.open_in_place(nonce, Aad::empty(), sealed).map(|open| open.len());
        if opened.is_err() {
            // ring promises nothing of what is there then.
            sealed.fill(0);
        }
        opened
    }

    /// Go on under the next key (Noise section 4.2); numbers go on too.
    pub(crate) fn rekey(&mut self) -> Result<(), Unspecified> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        // Its tag is of no use.
        let _ = self.key.seal_in_place_separate_tag(nonce(REKEY_NUMBER), Aad::empty(), &mut key[..])?;
        self.key = of(&key);
        Ok(())
    }

    fn next(&mut self) -> Result<Nonce, Unspecified> {
        let number = self.number;
        if number == REKEY_NUMBER {
            return Err(Unspecified);
        }
        self.number += 1;
        Ok(nonce(number))
    }
}

fn of(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    #[expect(clippy::expect_used, reason = "a key of 32 bytes is one of AES-256")]
    let key = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes");
    LessSafeKey::new(key)
}

/// Four bytes of zero and the number, the highest byte first.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_once_and_the_last_one_never() {
        let mut cipher = Cipher::new(&[1; KEY_BYTES]);
        let (mut first, mut second) = ([0; 4], [0; 4]);
        let _ = cipher.seal(&mut first).unwrap();
        let _ = cipher.seal(&mut second).unwrap();
        assert_ne!(first, second);
        cipher.number = REKEY_NUMBER;
        assert!(cipher.seal(&mut [0; 4]).is_err());
        assert!(cipher.open(&mut [0; 20]).is_err());
    }
}
