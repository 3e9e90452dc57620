//! Latencies in buckets within 1/64 of their value. It never allocates while time runs, and never drops a value.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

/// Values in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    /// Count one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// How many values.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value below which `share` (0 to 1) of the values lie; 0 when there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    (((u64::from(shift) + 1) << SUB_BITS) + ((value >> shift) - SUB)) as usize
}

fn upper(index: usize) -> u64 {
    let (row, column) = ((index >> SUB_BITS) as u64, index as u64 & (SUB - 1));
    match row {
        0 => column,
        _ => ((SUB + column) << (row - 1)) + ((1 << (row - 1)) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_is_within_its_error(value: u64) {
            let top = upper(bucket(value));
            prop_assert!(top >= value && top - value <= value / SUB + 1);
        }
    }

    #[test]
    fn quantiles_rise() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|value| histogram.record(value));
        assert_eq!((histogram.total(), histogram.max()), (1000, 1000));
        assert!((495..=510).contains(&histogram.quantile(0.5)));
        assert!((985..=1000).contains(&histogram.quantile(0.99)));
        assert_eq!(Histogram::new().quantile(0.5), 0);
    }
}
