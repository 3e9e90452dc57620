//! What a tier was lately seen to hold, so that it is not asked again for each call. Bounded and short: a tier evicts
//! without saying so. It never remembers absence, since others write to the tier too.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use buildnet_formats::Digest;
use parking_lot::Mutex;

/// How long a tier is believed to hold what it held.
const KEEP: Duration = Duration::from_secs(30);
/// About 8 MiB.
const DIGESTS_MAX: usize = 65_536;

/// Digests and until when they are believed.
#[derive(Default)]
pub(crate) struct Existence(Mutex<HashMap<Digest, Instant>>);

impl Existence {
    pub(crate) fn holds(&self, digest: &Digest, now: Instant) -> bool {
        self.0.lock().get(digest).is_some_and(|until| now < *until)
    }

    pub(crate) fn saw(&self, digests: impl IntoIterator<Item = Digest>, now: Instant) {
        let mut known = self.0.lock();
        for digest in digests {
            if known.len() >= DIGESTS_MAX {
                known.retain(|_, until| now < *until);
            }
            if known.len() >= DIGESTS_MAX {
                known.clear();
            }
            known.insert(digest, now + KEEP);
        }
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.0.lock().remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_believes_for_a_while_and_stays_bounded() {
        let (known, now) = (Existence::default(), Instant::now());
        let digest = Digest::of(b"x");
        known.saw([digest], now);
        assert!(known.holds(&digest, now) && !known.holds(&digest, now + KEEP));
        known.forget(&digest);
        assert!(!known.holds(&digest, now));
        known.saw((0..DIGESTS_MAX as u64 + 10).map(|n| Digest::of(&n.to_le_bytes())), now);
        assert!(known.0.lock().len() <= DIGESTS_MAX);
    }
}
