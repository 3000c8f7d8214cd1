//! Latency histograms of flow reports: fixed bounds, so that reports add up.

/// Upper bounds in microseconds; a value above the last falls into the overflow bucket.
pub const LATENCY_BOUNDS_US: [u64; 24] = [
    50, 75, 100, 150, 200, 300, 400, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000, 10_000, 20_000, 50_000,
    100_000, 200_000, 500_000, 1_000_000, 5_000_000, 30_000_000,
];
/// Buckets in a report: one per bound and the overflow.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// The bucket of a latency.
#[must_use]
pub fn bucket_of(us: u64) -> usize {
    LATENCY_BOUNDS_US.partition_point(|bound| *bound < us)
}

/// The latency that the `q`-quantile (0 to 1) lies below, in microseconds, interpolated inside its bucket; 0 if there are none.
#[must_use]
pub fn quantile(buckets: &[u64], q: f64) -> u64 {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return 0;
    }
    let rank = (q * total as f64).ceil().max(1.0) as u64;
    let mut below = 0;
    for (i, count) in buckets.iter().enumerate() {
        if below + count >= rank {
            let low = if i == 0 {
                0
            } else {
                LATENCY_BOUNDS_US[(i - 1).min(LATENCY_BOUNDS_US.len() - 1)]
            };
            let high = LATENCY_BOUNDS_US.get(i).copied().unwrap_or(low);
            return low + (high - low) * (rank - below) / count.max(&1);
        }
        below += count;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_falls_into_the_first_bucket_that_holds_it() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(50), 0);
        assert_eq!(bucket_of(51), 1);
        assert_eq!(bucket_of(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn quantiles_stay_inside_the_bucket_of_their_rank() {
        let mut buckets = [0u64; LATENCY_BUCKETS];
        buckets[bucket_of(180)] = 99;
        buckets[bucket_of(9_000)] = 1;
        assert!((150..=200).contains(&quantile(&buckets, 0.5)));
        assert!((7_000..=10_000).contains(&quantile(&buckets, 0.995)));
        assert_eq!(quantile(&[0; LATENCY_BUCKETS], 0.99), 0);
    }
}
