// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A token bucket: pure arithmetic on a clock that its user holds.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// How much may be done: so much at once, and so much per second in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    per_second: u64,
    burst: i64,
}

impl RateLimit {
    /// Allows `burst` tokens at once, and `per_second` tokens per second from then on; `None` if
    /// either is 0, which would allow nothing ever. A token is a byte or an operation, whatever the
    /// limit is for. A burst beyond `i64::MAX` is taken for `i64::MAX`.
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let burst = i64::try_from(burst).unwrap_or(i64::MAX);
        (per_second != 0 && burst != 0).then_some(Self { per_second, burst })
    }

    /// Tokens per second, at least 1.
    #[must_use]
    pub const fn per_second(&self) -> u64 {
        self.per_second
    }

    /// Tokens at once, at least 1.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        self.burst.unsigned_abs()
    }
}

/// A token bucket that is charged afterwards, with what was really done.
///
/// Whoever finds a token in it may go on, and is charged with what that came to, even if the bucket
/// does not hold as much: it is overdrawn then, and the next one waits until it is not any more. So
/// nothing is ever too large for the bucket, and the long-term rate is exact all the same.
///
/// Time is told by the caller, counted from any fixed moment; a clock that goes back adds nothing.
///
/// ```
/// use std::time::Duration;
/// use virtio_device_core::{RateLimit, TokenBucket};
///
/// let limit = RateLimit::new(10, 5).unwrap();
/// let mut bucket = TokenBucket::full(limit, Duration::ZERO);
/// assert_eq!(bucket.wait(Duration::ZERO), None);
/// bucket.charge(7);
/// // Two tokens overdrawn, at a tenth of a second each, and one to go on with.
/// assert_eq!(bucket.wait(Duration::ZERO), Some(Duration::from_millis(300)));
/// assert_eq!(bucket.wait(Duration::from_millis(300)), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    limit: RateLimit,
    /// Tokens in the bucket, below 0 if overdrawn; never above the limit's burst.
    level: i64,
    /// The moment up to which tokens have been added.
    filled: Duration,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn full(limit: RateLimit, now: Duration) -> Self {
        Self::at_level(limit, limit.burst, now)
    }

    /// A bucket that holds `level` tokens, or as many as fit; below 0, it is overdrawn.
    #[must_use]
    pub const fn at_level(limit: RateLimit, level: i64, now: Duration) -> Self {
        let level = if level > limit.burst {
            limit.burst
        } else {
            level
        };
        Self {
            limit,
            level,
            filled: now,
        }
    }

    /// A bucket that goes on from a saved level. It is overdrawn by no more than a burst, and by no
    /// more than comes in within an hour.
    #[must_use]
    pub fn restored(limit: RateLimit, level: i64, now: Duration) -> Self {
        let hour = i64::try_from(limit.per_second.saturating_mul(3600)).unwrap_or(i64::MAX);
        let lowest = -limit.burst.min(hour);
        Self::at_level(limit, level.max(lowest), now)
    }

    /// The same bucket under another limit. It keeps what it holds, as far as that fits, and the part
    /// of a token that is on its way.
    #[must_use]
    pub fn with_limit(mut self, limit: RateLimit, now: Duration) -> Self {
        let level = self.level(now);
        let on_its_way = u128::from(nanos(since(self.filled, now)));
        let scaled = on_its_way * u128::from(self.limit.per_second) / u128::from(limit.per_second);
        let scaled = Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX));
        let mut bucket = Self::at_level(limit, level, now);
        bucket.filled = now.max(self.filled).saturating_sub(scaled);
        bucket
    }

    /// The limit that this bucket keeps.
    #[must_use]
    pub const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Tokens in the bucket, below 0 if overdrawn.
    #[must_use]
    pub fn level(&mut self, now: Duration) -> i64 {
        self.fill(now);
        self.level
    }

    /// How long to wait before going on; `None` if there is a token.
    #[must_use]
    pub fn wait(&mut self, now: Duration) -> Option<Duration> {
        self.fill(now);
        if self.level > 0 {
            return None;
        }
        let missing = 1 + u128::from(self.level.unsigned_abs());
        let wait = self.time_for(missing).checked_sub(since(self.filled, now));
        Some(wait.unwrap_or_default().max(Duration::from_nanos(1)))
    }

    /// Takes `tokens` out, more than there are if need be.
    pub fn charge(&mut self, tokens: u64) {
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        self.level = self.level.saturating_sub(tokens);
    }

    /// Adds what has come in since the last time. The part of a token that is on its way is not
    /// lost: the moment kept is the one at which the last whole token came.
    fn fill(&mut self, now: Duration) {
        let nanos = u128::from(nanos(since(self.filled, now)));
        let tokens = nanos * u128::from(self.limit.per_second) / NANOS_PER_SECOND;
        let room = i128::from(self.limit.burst) - i128::from(self.level);
        match i64::try_from(tokens) {
            Ok(new) if i128::from(new) < room => {
                self.level += new;
                self.filled += self.time_for(tokens);
            }
            _ => {
                self.level = self.limit.burst;
                self.filled = self.filled.max(now);
            }
        }
    }

    /// The time that `tokens` take to come in, rounded up.
    fn time_for(&self, tokens: u128) -> Duration {
        let nanos = (tokens * NANOS_PER_SECOND).div_ceil(self.limit.per_second.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

const fn since(earlier: Duration, now: Duration) -> Duration {
    now.saturating_sub(earlier)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn bucket(per_second: u64, burst: u64) -> TokenBucket {
        TokenBucket::full(RateLimit::new(per_second, burst).unwrap(), START)
    }

    #[test]
    fn a_limit_that_allows_nothing_cannot_be_made() {
        assert_eq!(RateLimit::new(0, 1), None);
        assert_eq!(RateLimit::new(1, 0), None);
        assert_eq!(
            RateLimit::new(1, u64::MAX).unwrap().burst(),
            i64::MAX.unsigned_abs()
        );
    }

    #[test]
    fn a_full_bucket_stays_full() {
        let mut bucket = bucket(1000, 10);
        assert_eq!(bucket.level(START + Duration::from_secs(3600)), 10);
    }

    #[test]
    fn tokens_come_in_one_by_one_and_no_time_is_lost() {
        let mut bucket = bucket(3, 100);
        bucket.charge(100);
        // A third of a second is no whole number of nanoseconds; many looks do not slow it down.
        let mut now = START;
        let looks = if cfg!(miri) { 100 } else { 10_000 };
        for _ in 0..looks {
            now += Duration::from_millis(7770) / looks;
            let _ = bucket.level(now);
        }
        // Three tokens a second for 7.77 seconds.
        assert_eq!(bucket.level(now), 23);
    }

    #[test]
    fn setting_a_limit_again_and_again_loses_no_time() {
        let mut bucket = bucket(3, 100);
        bucket.charge(100);
        let mut now = START;
        for (step, rate) in (0..777).zip([7, 1, 11, 3].into_iter().cycle()) {
            now += Duration::from_millis(10);
            let limit = RateLimit::new(rate, 100 + step % 2).unwrap();
            bucket = bucket.with_limit(limit, now);
        }
        // 10 ms at 3 a second, then 194 times as long at each of the four: 42.71 tokens.
        assert_eq!(bucket.level(now), 42);
        bucket.charge(42);
        let exact = Duration::from_nanos(290_000_000 / 7);
        let wait = bucket.wait(now).unwrap();
        // A nanosecond is lost with each change at most.
        assert!(
            (exact..exact + Duration::from_micros(3)).contains(&wait),
            "{wait:?}"
        );
        // Half a token at one rate is half a token at another.
        let mut bucket = TokenBucket::at_level(RateLimit::new(1, 10).unwrap(), 0, START);
        let now = START + Duration::from_millis(500);
        bucket = bucket.with_limit(RateLimit::new(10, 10).unwrap(), now);
        assert_eq!(bucket.wait(now), Some(Duration::from_millis(50)));
    }

    #[test]
    fn a_restored_level_never_makes_anybody_wait_for_more_than_an_hour() {
        for rate in [1, 1000, u64::MAX] {
            for burst in [1, 1 << 20, u64::MAX] {
                for level in [i64::MIN, -1, 0, i64::MAX] {
                    let limit = RateLimit::new(rate, burst).unwrap();
                    let mut bucket = TokenBucket::restored(limit, level, START);
                    let wait = bucket.wait(START).unwrap_or_default();
                    assert!(
                        wait <= Duration::from_secs(3601),
                        "{limit:?} {level}: {wait:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing() {
        let mut bucket = bucket(1, 1);
        bucket.charge(1);
        assert_eq!(
            bucket.wait(START - Duration::from_secs(900)),
            Some(Duration::from_secs(1))
        );
        assert_eq!(bucket.level(START), 0);
        assert_eq!(bucket.level(START + Duration::from_secs(1)), 1);
    }

    #[test]
    fn extremes_neither_overflow_nor_let_through() {
        for rate in [1, u64::MAX] {
            for burst in [1, u64::MAX] {
                let mut bucket = bucket(rate, burst);
                bucket.charge(u64::MAX);
                bucket.charge(u64::MAX);
                let wait = bucket.wait(START);
                assert!(wait.is_some());
                let _ = bucket.wait(Duration::MAX);
                let _ = bucket.wait(Duration::ZERO);
                let _ = bucket.level(Duration::MAX);
            }
        }
    }
}
