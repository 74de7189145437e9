//! How much of the node's time exchanges get while clients' requests are served.
//!
//! What disturbs a request is the time that the node's thread spends on something else. So exchanges get a share of that time:
//! after one of their messages took so long, the next waits until it is no more than that. The share follows from what
//! requests feel. While nothing is exchanged, the latency is learnt that all but one in a hundred stay under; while something
//! is, each request that takes a quarter longer than that lowers the share, and each other raises it, so that it comes to rest
//! where one in a hundred does. Each time that much is to be exchanged the share begins low: what was no harm when little was
//! to be done may be one now. Without requests, of clients or of peers that serve theirs, exchanges have all the time.

use std::time::Duration;

/// How much longer than usual one request in a hundred may take.
const RATIO: f64 = 1.25;
/// The least share, so that an exchange ends however slow requests are for other reasons. Less of it helps them little: what they
/// feel is how long a piece is, more than how often there is one, and a wiped disk takes a minute instead of ten seconds.
const SHARE_MIN: f64 = 0.2;
/// The share to begin with.
const SHARE_BEGIN: f64 = 0.4;
/// How much one good request raises the share, relatively. A bad one lowers it by as much as 99 good ones raise it.
const RAISE: f64 = 0.002;
/// How much the usual latency follows each request, relatively.
const LEARN: f64 = 0.02;
/// Requests that are seen before a usual latency is known.
const SEEN_MIN: u32 = 100;
/// How long after the last request nobody is disturbed.
const QUIET_AFTER: Duration = Duration::from_millis(200);
/// The shortest wait: a timer's millisecond.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// The longest wait: whoever leads gives up an exchange that is silent for two seconds.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// Pieces of work that follow each other within this time disturb; a single one now and then is usual.
const IN_A_ROW: Duration = Duration::from_millis(100);
/// How long after an exchange's last message the share that it had come to says nothing any more.
const FORGET_AFTER: Duration = Duration::from_secs(2);
/// How long after an exchange's last message requests are as usual again.
const CALM_AFTER: Duration = Duration::from_millis(500);

/// See the module's documentation.
pub(crate) struct Pace {
    share: f64,
    /// The latency that all but one in a hundred stay under while nothing is exchanged, in seconds.
    usual: f64,
    seen: u32,
    last_request: Option<Duration>,
    /// When the last piece of work ended, and the last of several in a row.
    last_piece: Option<Duration>,
    last_work: Option<Duration>,
    /// Until when the pieces so far have taken no more than the share.
    paid_until: Duration,
}

impl Pace {
    /// Nothing is known yet.
    pub(crate) fn new() -> Pace {
        Pace {
            share: SHARE_BEGIN,
            usual: 0.001,
            seen: 0,
            last_request: None,
            last_piece: None,
            last_work: None,
            paid_until: Duration::ZERO,
        }
    }

    /// A request was answered now and took so long.
    pub(crate) fn answered(&mut self, now: Duration, taken: Duration) {
        self.last_request = Some(now);
        let taken = taken.as_secs_f64();
        // Whoever works from its start on learns what is usual at the share that it begins with.
        if self.seen < SEEN_MIN || self.last_work.is_none_or(|worked| now > worked + CALM_AFTER) {
            // Faster at first, when it is far off.
            let learn = if self.seen < SEEN_MIN { 10.0 * LEARN } else { LEARN };
            self.seen = self.seen.saturating_add(1);
            self.usual *= if taken > self.usual { (learn * 0.99).exp() } else { (-learn * 0.01).exp() };
        } else {
            let change = if taken > self.usual * RATIO { -99.0 * RAISE } else { RAISE };
            self.share = (self.share * change.exp()).clamp(SHARE_MIN, 1.0);
        }
    }

    /// A peer asks for its part in a client's request.
    pub(crate) fn asked(&mut self, now: Duration) {
        self.last_request = Some(now);
    }

    /// A message of an exchange was handled, which took so long and ended now.
    pub(crate) fn worked(&mut self, now: Duration, taken: Duration) {
        if self.last_piece.replace(now).is_some_and(|last| now <= last + IN_A_ROW) {
            let before = self.last_work.replace(now);
            if before.is_none_or(|worked| now > worked + FORGET_AFTER) {
                self.share = self.share.min(SHARE_BEGIN);
            }
        }
        let is_quiet = self.last_request.is_none_or(|last| now > last + QUIET_AFTER);
        if is_quiet {
            self.paid_until = now;
            return;
        }
        // What it waited too long before, as timers do, it need not wait now.
        let began = now.saturating_sub(taken);
        let paid_until = self.paid_until.max(began.saturating_sub(WAIT_MIN)) + taken.div_f64(self.share);
        self.paid_until = paid_until.min(now + WAIT_MAX);
    }

    /// When the next may be handled. Short waits are saved up for one that a timer can keep.
    pub(crate) fn not_before(&self, now: Duration) -> Duration {
        if self.paid_until < now + WAIT_MIN { now } else { self.paid_until }
    }

    /// The share of the time that exchanges get while there are requests.
    pub(crate) fn share(&self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A thousand requests, one a millisecond, of which one in so many is slow.
    fn serve(pace: &mut Pace, now: &mut Duration, one_in: u32, slow: Duration, works: bool) {
        for number in 0..1000 {
            *now += MS;
            if works {
                pace.worked(*now, MS / 10);
            }
            pace.answered(*now, if number % one_in == 0 { slow } else { MS });
        }
    }

    #[test]
    fn the_share_rises_while_requests_are_as_usual_and_falls_while_they_are_slow() {
        let (mut pace, mut now) = (Pace::new(), Duration::ZERO);
        for _ in 0..20 {
            serve(&mut pace, &mut now, 100, 4 * MS, false);
        }
        assert!((0.001..0.005).contains(&pace.usual), "{}", pace.usual);
        let before = pace.share();
        serve(&mut pace, &mut now, 1001, MS, true);
        assert!(pace.share() > before);
        let before = pace.share();
        serve(&mut pace, &mut now, 10, 20 * MS, true);
        assert!(pace.share() < before && pace.share() >= SHARE_MIN);
    }

    #[test]
    fn an_exchange_waits_for_requests_alone() {
        let (mut pace, now) = (Pace::new(), Duration::from_secs(1));
        pace.worked(now, MS);
        assert_eq!(pace.not_before(now), now, "nobody is disturbed");
        pace.asked(now);
        pace.worked(now, MS);
        assert_eq!(pace.not_before(now), now + MS.div_f64(SHARE_BEGIN));
        let later = now + QUIET_AFTER + MS;
        pace.worked(later, MS);
        assert_eq!(pace.not_before(later), later);
    }

    #[test]
    fn short_pieces_get_their_share_although_timers_are_coarse() {
        let (mut pace, mut now, mut worked) = (Pace::new(), Duration::from_secs(1), Duration::ZERO);
        let (began, piece) = (now, MS / 20);
        while now < began + Duration::from_secs(1) {
            pace.asked(now);
            now += piece;
            worked += piece;
            pace.worked(now, piece);
            let wait = pace.not_before(now) - now;
            // A timer fires late, at the next millisecond but one.
            now +=
                Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(0)) + wait / 4;
        }
        let share = worked.as_secs_f64() / (now - began).as_secs_f64();
        assert!((SHARE_BEGIN * 0.8..SHARE_BEGIN * 1.1).contains(&share), "{share}");
    }
}
