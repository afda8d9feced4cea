// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A token bucket: pure arithmetic on a clock that its user holds.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// How much may be done: so much at once, and so much per second in the long run; and how much of
/// that is left.
///
/// Holds no timestamp; tokens do not accrue while it is saved.
///
/// ```
/// use virtio_device_core::RateLimit;
///
/// // A megabyte a second in the long run, 64 KiB at once.
/// let limit = RateLimit::new(1_000_000, 64 << 10).unwrap();
/// assert_eq!(limit.left(), 64 << 10);
/// assert!(RateLimit::new(0, 1).is_none(), "nothing would ever go on");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw", into = "Raw"))]
pub struct RateLimit {
    per_second: u64,
    burst: i64,
    /// Tokens that are left, below 0 if overdrawn; never above `burst`.
    left: i64,
}

/// What is stored, right or wrong.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Raw {
    per_second: u64,
    burst: u64,
    left: i64,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for RateLimit {
    type Error = &'static str;

    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        let limit = Self::new(raw.per_second, raw.burst);
        let limit = limit.ok_or("a rate limit allows nothing ever")?;
        Ok(limit.with_left(raw.left))
    }
}

#[cfg(feature = "serde")]
impl From<RateLimit> for Raw {
    fn from(limit: RateLimit) -> Self {
        Self {
            per_second: limit.per_second,
            burst: limit.burst(),
            left: limit.left,
        }
    }
}

impl RateLimit {
    /// Allows `burst` tokens at once, and `per_second` tokens per second from then on; `None` if
    /// either is 0, which would allow nothing ever. A token is a byte or an operation, whatever the
    /// limit is for. A burst beyond `i64::MAX` is taken for `i64::MAX`.
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let burst = i64::try_from(burst).unwrap_or(i64::MAX);
        (per_second != 0 && burst != 0).then_some(Self {
            per_second,
            burst,
            left: burst,
        })
    }

    /// The same limit with `left` tokens left, or as many as fit; below 0, it is overdrawn.
    #[must_use]
    pub const fn with_left(self, left: i64) -> Self {
        let left = if left > self.burst { self.burst } else { left };
        Self { left, ..self }
    }

    /// Tokens that are left: all of them unless the limit was [saved](crate::RateLimits::save) or said
    /// to have [fewer](Self::with_left). Below 0, it is overdrawn.
    #[must_use]
    pub const fn left(&self) -> i64 {
        self.left
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    limit: RateLimit,
    /// Tokens in the bucket, below 0 if overdrawn; never above the limit's burst.
    level: i64,
    /// The moment up to which tokens have been added.
    filled: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) const fn full(limit: RateLimit, now: Duration) -> Self {
        Self::at_level(limit, limit.burst, now)
    }

    /// A bucket that holds `level` tokens, or as many as fit; below 0, it is overdrawn.
    const fn at_level(limit: RateLimit, level: i64, now: Duration) -> Self {
        let limit = limit.with_left(level);
        Self {
            limit,
            level: limit.left,
            filled: now,
        }
    }

    /// A bucket that goes on with what a limit has left. It is overdrawn by no more than a burst, and
    /// by no more than comes in within an hour.
    pub(crate) fn restored(limit: RateLimit, now: Duration) -> Self {
        let hour = i64::try_from(limit.per_second.saturating_mul(3600)).unwrap_or(i64::MAX);
        let lowest = -limit.burst.min(hour);
        Self::at_level(limit, limit.left.max(lowest), now)
    }

    /// The same bucket under another limit. It keeps what it holds, as far as that fits, and the part
    /// of a token that is on its way.
    pub(crate) fn with_limit(mut self, limit: RateLimit, now: Duration) -> Self {
        let level = self.level(now);
        let on_its_way = u128::from(nanos(since(self.filled, now)));
        let scaled = on_its_way * u128::from(self.limit.per_second) / u128::from(limit.per_second);
        let scaled = Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX));
        let mut bucket = Self::at_level(limit, level, now);
        bucket.filled = now.max(self.filled).saturating_sub(scaled);
        bucket
    }

    /// The limit that this bucket keeps.
    pub(crate) const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// The limit, with what is left of it now.
    pub(crate) fn saved(mut self, now: Duration) -> RateLimit {
        let level = self.level(now);
        self.limit.with_left(level)
    }

    /// Tokens in the bucket, below 0 if overdrawn.
    pub(crate) fn level(&mut self, now: Duration) -> i64 {
        self.fill(now);
        self.level
    }

    /// How long to wait before going on; `None` if there is a token.
    pub(crate) fn wait(&mut self, now: Duration) -> Option<Duration> {
        self.fill(now);
        if self.level > 0 {
            return None;
        }
        let missing = 1 + u128::from(self.level.unsigned_abs());
        let wait = self.time_for(missing).checked_sub(since(self.filled, now));
        Some(wait.unwrap_or_default().max(Duration::from_nanos(1)))
    }

    /// Takes `tokens` out, more than there are if need be.
    pub(crate) fn charge(&mut self, tokens: u64) {
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
                    let mut bucket = TokenBucket::restored(limit.with_left(level), START);
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

    /// The bucket against exact arithmetic: what it lets through from the start never exceeds the
    /// burst, what has come in, and the one request by which it may be overdrawn; and it never
    /// makes anybody wait longer than it must.
    #[test]
    fn a_bucket_keeps_its_limit() {
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..if cfg!(miri) { 4 } else { 512 } {
            let (rate, burst) = (1 + random(5000), 1 + random(500));
            let (mut bucket, mut now, mut charged) = (bucket(rate, burst), START, 0);
            for _ in 0..60 {
                if random(2) == 0 {
                    now += Duration::from_nanos(random(1 << 31));
                    continue;
                }
                if let Some(wait) = bucket.wait(now) {
                    // One nanosecond earlier there is no token; then there is.
                    let mut earlier = bucket;
                    assert!(earlier.wait(now + wait - Duration::from_nanos(1)).is_some());
                    now += wait;
                    assert_eq!(bucket.wait(now), None);
                }
                let tokens = (1 + random(300)).min(burst);
                bucket.charge(tokens);
                charged += u128::from(tokens);
                let came_in = (now - START).as_nanos() * u128::from(rate) / NANOS_PER_SECOND;
                assert!(charged < came_in + 2 * u128::from(burst));
            }
            let burst = i64::try_from(burst).unwrap();
            assert!((1 - burst..=burst).contains(&bucket.level(now)));
        }
    }

    #[test]
    #[cfg(feature = "serde")]
    fn a_stored_limit_that_allows_nothing_is_refused() {
        let limit = |per_second, burst, left| {
            RateLimit::try_from(Raw {
                per_second,
                burst,
                left,
            })
        };
        assert!(limit(0, 7, 7).is_err() && limit(5, 0, 0).is_err());
        assert_eq!(limit(5, 7, i64::MAX).unwrap().left(), 7);
        assert_eq!(limit(5, 7, i64::MIN).unwrap().left(), i64::MIN);
    }
}
