//! What must not be printed is replaced, byte for byte, before anything keeps it. It knows no stream and no file.
//!
//! Offsets stay: each byte of a secret becomes one `*`. A secret that is printed in another form (encoded, cut in two by
//! other text) is not found: this keeps accidents out of a log, not an action that means to tell.

/// Shorter texts are parts of ordinary words; they are not looked for.
pub const MASKED_BYTES_MIN: usize = 8;

/// The texts that one action's output must not show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mask {
    /// Whole values, and the lines of those with several; longest first, so that the whole is found before its parts.
    texts: Vec<Vec<u8>>,
    /// Whether any begins with this byte: most bytes of an output begin none.
    begins: Vec<bool>,
}

impl Mask {
    pub(crate) fn new(values: &[Vec<u8>]) -> Self {
        let lines = values.iter().flat_map(|value| value.split(|byte| *byte == b'\n' || *byte == b'\r'));
        let mut texts: Vec<Vec<u8>> = values.iter().map(Vec::as_slice).chain(lines).map(<[u8]>::to_vec).collect();
        texts.retain(|text| text.len() >= MASKED_BYTES_MIN);
        texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        let mut begins = vec![false; 256];
        for text in &texts {
            begins[usize::from(text[0])] = true;
        }
        Self { texts, begins }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Replace every text in `data`; returns how much of it may be kept: what follows may be the beginning of a text.
    fn apply(&self, data: &mut [u8], ended: bool) -> usize {
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            if !self.begins[usize::from(rest[0])] {
                at += 1;
            } else if let Some(text) = self.texts.iter().find(|text| rest.starts_with(text)) {
                let end = at + text.len();
                data[at..end].fill(b'*');
                at = end;
            } else if !ended && self.texts.iter().any(|text| rest.len() < text.len() && text.starts_with(rest)) {
                return at;
            } else {
                at += 1;
            }
        }
        at
    }
}

/// One stream on its way through a mask.
#[derive(Debug, Default)]
pub(crate) struct Masked {
    held: Vec<u8>,
}

impl Masked {
    /// What may be kept of what was held and of `data`; `ended`: nothing follows.
    pub(crate) fn pass(&mut self, mask: &Mask, data: &[u8], ended: bool) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(data);
        let kept = mask.apply(&mut all, ended);
        self.held = all.split_off(kept);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(values: &[&[u8]], pieces: &[&[u8]]) -> Vec<u8> {
        let mask = Mask::new(&values.iter().map(|value| value.to_vec()).collect::<Vec<_>>());
        let mut stream = Masked::default();
        let mut kept: Vec<u8> = pieces.iter().flat_map(|piece| stream.pass(&mask, piece, false)).collect();
        kept.extend(stream.pass(&mask, b"", true));
        kept
    }

    #[test]
    fn a_secret_is_masked_wherever_it_is_cut() {
        assert_eq!(masked(&[b"hunter-2-x"], &[b"a hunter", b"-2", b"-x b\n"]), b"a ********** b\n");
        assert_eq!(masked(&[b"hunter-2-x"], &[b"a hunter-2"]), b"a hunter-2");
        assert_eq!(masked(&[b"aaaaaaab"], &[b"aaaaaaaaab"]), b"aa********");
    }

    #[test]
    fn lines_of_a_key_are_masked_too_and_short_ones_are_left() {
        let key = b"-----BEGIN-----\nAAAABBBBCCCC\n==\n";
        assert_eq!(masked(&[key], &[b"x AAAABBBBCCCC ==\n"]), b"x ************ ==\n");
        assert!(Mask::new(&[b"short".to_vec()]).is_empty());
    }

    #[test]
    fn only_what_may_begin_a_secret_is_held_back() {
        let mask = Mask::new(&[b"hunter-2-x".to_vec()]);
        let mut stream = Masked::default();
        assert_eq!(stream.pass(&mask, b"prompt: hun", false), b"prompt: ");
        assert_eq!(stream.pass(&mask, b"gry", false), b"hungry");
    }

    proptest! {
        #[test]
        fn pieces_change_nothing_and_no_secret_is_left(
            secret in "[ab]{8,12}", text in "[abc]{0,80}", cuts in prop::collection::vec(0usize..80, 0..6)
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            pieces.push(&bytes[from..]);
            let whole = masked(&[secret.as_bytes()], &[bytes]);
            prop_assert_eq!(&masked(&[secret.as_bytes()], &pieces), &whole);
            prop_assert_eq!(whole.len(), bytes.len());
            prop_assert!(!String::from_utf8_lossy(&whole).contains(&secret));
        }
    }
}
