// SPDX-License-Identifier: BSD-3-Clause
//! A histogram of times: fixed memory, no lock, and what it says of a value is wrong by less than 1.6 %.
//!
//! Log-linear: up to `STEPS` each value has a bucket of its own, and above that each doubling is cut
//! into `STEPS` buckets of equal width. So a bucket is at most one part in `STEPS` as wide as its values,
//! from nanoseconds to more than an hour in 19 KiB. To note a value is three additions, by any number of
//! threads at once. That is all that is needed here, and less than a crate would bring: those that
//! there are want a lock or a thread of their own for several writers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets for each doubling.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 6;

/// Values of this many bits and more share the last bucket: 2^42 nanoseconds are 73 minutes.
const BITS: u32 = 42;

const BUCKETS: usize = (BITS - STEP_BITS + 1) as usize * STEPS as usize;

/// How often which time was taken.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Notes a time, in nanoseconds.
    pub fn note(&self, nanoseconds: u64) {
        if let Some(bucket) = self.buckets.get(bucket(nanoseconds)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
        // Nearly always it is not the longest, and reading disturbs nobody.
        if self.max.load(Ordering::Relaxed) < nanoseconds {
            self.max.fetch_max(nanoseconds, Ordering::Relaxed);
        }
    }

    /// What it has counted so far.
    pub fn counted(&self) -> Counted {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            buckets: self.buckets.iter().map(load).collect(),
            sum: load(&self.sum),
            max: load(&self.max),
        }
    }
}

/// A histogram, or the sum of several, at one moment.
#[derive(Clone, Debug)]
pub struct Counted {
    buckets: Vec<u64>,
    sum: u64,
    max: u64,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }
}

impl Counted {
    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += bucket;
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Its figures.
    pub fn quantiles(&self) -> Quantiles {
        let count = self.buckets.iter().sum();
        Quantiles {
            count,
            sum: Duration::from_nanos(self.sum),
            p50: self.quantile(count, 500),
            p90: self.quantile(count, 900),
            p99: self.quantile(count, 990),
            p999: self.quantile(count, 999),
            max: Duration::from_nanos(self.max),
        }
    }

    /// A time that so many of thousand values do not exceed; the largest that it may have been.
    fn quantile(&self, count: u64, thousandths: u64) -> Duration {
        let rank = (u128::from(count) * u128::from(thousandths)).div_ceil(1000);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += u128::from(*bucket);
            if seen >= rank && seen > 0 {
                return Duration::from_nanos(last_of(index).min(self.max));
            }
        }
        Duration::ZERO
    }
}

/// What is told of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// How many values there were.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// Half of them took no longer.
    pub p50: Duration,
    /// Nine of ten.
    pub p90: Duration,
    /// 99 of 100.
    pub p99: Duration,
    /// 999 of 1000.
    pub p999: Duration,
    /// None took longer. This one is exact.
    pub max: Duration,
}

/// Which bucket a value belongs to.
fn bucket(value: u64) -> usize {
    let value = value.min((1 << BITS) - 1);
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    // The highest bit, where it is beyond the first row, is what selects the row.
    ((u64::from(shift) << STEP_BITS) + (value >> shift)) as usize
}

/// The largest value that belongs to a bucket; what is beyond all of them belongs to the last.
fn last_of(index: usize) -> u64 {
    if index + 1 == BUCKETS {
        return u64::MAX;
    }
    let index = index as u64;
    let shift = (index >> STEP_BITS).saturating_sub(1);
    let value = index - (shift << STEP_BITS);
    ((value + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn figures(values: &[u64]) -> Quantiles {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.note(*value));
        histogram.counted().quantiles()
    }

    #[test]
    fn each_bucket_begins_where_the_one_before_it_ends() {
        for index in 0..BUCKETS - 1 {
            let last = last_of(index);
            assert_eq!(bucket(last), index, "the last value, {last}");
            assert_eq!(bucket(last + 1), index + 1, "the value behind it, {last}");
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_counted_is_all_zeroes() {
        assert_eq!(figures(&[]), Quantiles::default());
    }

    #[test]
    fn a_single_value_is_told_exactly() {
        for value in [0, 1, 63, 64, 65, 20_000_000, 1 << 41, 1 << 50, u64::MAX] {
            let one = Duration::from_nanos(value);
            let told = figures(&[value]);
            assert_eq!([told.p50, told.p999, told.max], [one; 3]);
        }
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(
                prop_oneof![0..200_u64, 0..100_000_u64, 0..1_u64 << 41],
                1..3000,
            ),
        ) {
            let told = figures(&values);
            values.sort_unstable();
            prop_assert_eq!(told.count, values.len() as u64);
            prop_assert_eq!(told.sum, Duration::from_nanos(values.iter().sum()));
            prop_assert_eq!(told.max, Duration::from_nanos(values[values.len() - 1]));
            let ranks = [(told.p50, 500), (told.p90, 900), (told.p99, 990), (told.p999, 999)];
            for (told, thousandths) in ranks {
                let told = told.as_nanos() as u64;
                let true_one = values[(values.len() * thousandths).div_ceil(1000) - 1];
                // Never less than it was, and at most one part in 64 more.
                prop_assert!(true_one <= told && told - true_one <= true_one / STEPS);
            }
        }

        #[test]
        fn a_sum_of_histograms_is_that_of_all_values(
            values in prop::collection::vec((any::<bool>(), 0..1_u64 << 41), 0..300),
        ) {
            let both = [Histogram::default(), Histogram::default()];
            for (which, value) in &values {
                both[usize::from(*which)].note(*value);
            }
            let mut counted = Counted::default();
            both.iter().for_each(|histogram| counted.add(&histogram.counted()));
            let all: Vec<u64> = values.iter().map(|(_, value)| *value).collect();
            prop_assert_eq!(counted.quantiles(), figures(&all));
        }
    }
}
