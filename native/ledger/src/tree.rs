//! Growing the Merkle tree of RFC 6962, section 2.1: a leaf is hashed behind a 0, the two below a node behind a 1.

use sha2::{Digest, Sha256};

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// A leaf's or a node's.
pub type Hash = [u8; HASH_BYTES];

/// Add leaves by their bodies to a tree of `size`; the hashes that are complete now, of each leaf and of what it completes.
///
/// `edge` has the complete subtrees that make up the tree, largest first: one for each bit of `size` that is set. It is
/// that of the grown tree afterwards.
///
/// # Panics
/// When `edge` is not of a tree of that size.
pub fn extend<'a>(size: u64, edge: &mut Vec<Hash>, bodies: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut complete = Vec::new();
    for (mut index, body) in (size..).zip(bodies) {
        let mut node: Hash = Sha256::new().chain_update([0]).chain_update(body).finalize().into();
        complete.extend_from_slice(&node);
        // Each trailing one of the index is a subtree on the left that is complete with this leaf.
        while index & 1 == 1 {
            let left = edge.pop().expect("a subtree for each bit of the size");
            node = Sha256::new().chain_update([1]).chain_update(left).chain_update(node).finalize().into();
            complete.extend_from_slice(&node);
            index >>= 1;
        }
        edge.push(node);
    }
    complete
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root_of(bodies: &[Vec<u8>]) -> Hash {
        match bodies {
            [] => Sha256::digest([]).into(),
            [body] => Sha256::new().chain_update([0]).chain_update(body).finalize().into(),
            _ => {
                let (left, right) = bodies.split_at(bodies.len().next_power_of_two() / 2);
                Sha256::new()
                    .chain_update([1])
                    .chain_update(root_of(left))
                    .chain_update(root_of(right))
                    .finalize()
                    .into()
            }
        }
    }

    proptest! {
        #[test]
        fn the_edge_is_of_subtrees_as_the_rfc_has_them(bodies: Vec<Vec<u8>>, cut: prop::sample::Index) {
            let (first, rest) = bodies.split_at(cut.index(bodies.len() + 1));
            let mut edge = Vec::new();
            let mut complete = extend(0, &mut edge, first.iter().map(Vec::as_slice));
            complete.extend(extend(first.len() as u64, &mut edge, rest.iter().map(Vec::as_slice)));
            let mut start = 0;
            for (place, bit) in (0..usize::BITS).rev().filter(|bit| bodies.len() >> bit & 1 == 1).enumerate() {
                prop_assert_eq!(edge[place], root_of(&bodies[start..start + (1 << bit)]));
                start += 1 << bit;
            }
            prop_assert_eq!(edge.len(), bodies.len().count_ones() as usize);
            prop_assert_eq!(complete.len() / HASH_BYTES, 2 * bodies.len() - edge.len());
        }
    }
}
