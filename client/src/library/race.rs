//! Staggered races: the next begins when the one before has failed or has taken too long.

use std::{future::Future, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Runs `attempts` in order, each with a head start before the next, until one succeeds; the others are then
/// dropped. None waits for one that has failed.
///
/// # Errors
///
/// Every failure with the position of its attempt, in the order in which they happened.
pub(crate) async fn race<T, E, A>(attempts: Vec<A>, head_start: Duration) -> Result<T, Vec<(usize, E)>>
where
    A: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut waiting = attempts.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut failed = Vec::new();
    let mut next_at = Instant::now();
    loop {
        if Instant::now() >= next_at || running.is_empty() {
            if let Some((index, attempt)) = waiting.next() {
                running.spawn(async move { (index, attempt.await) });
            }
            next_at = Instant::now() + head_start;
        }
        if running.is_empty() {
            return Err(failed);
        }
        tokio::select! {
            Some(ended) = running.join_next() => match ended {
                Ok((_, Ok(won))) => return Ok(won),
                Ok((index, Err(error))) => {
                    failed.push((index, error));
                    next_at = Instant::now();
                }
                // Only a panic ends a task otherwise, and a panic is a bug that must not hide here.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = sleep_until(next_at), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, time::Duration};

    use tokio::time::{Instant, sleep};

    use super::*;

    type Attempt = Pin<Box<dyn Future<Output = Result<u32, &'static str>> + Send>>;

    type Ended = Result<u32, Vec<(usize, &'static str)>>;

    const HEAD_START: Duration = Duration::from_millis(50);

    fn dead() -> Attempt {
        Box::pin(std::future::pending())
    }

    fn after(wait_ms: u64, result: Result<u32, &'static str>) -> Attempt {
        Box::pin(async move {
            sleep(Duration::from_millis(wait_ms)).await;
            result
        })
    }

    fn run(attempts: Vec<Attempt>) -> (Ended, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let begun = Instant::now();
        let result = runtime.block_on(race(attempts, HEAD_START));
        (result, begun.elapsed())
    }

    #[test]
    fn a_dead_one_costs_one_head_start() {
        let (won, took) = run(vec![dead(), dead(), after(0, Ok(3))]);
        assert_eq!(won, Ok(3));
        assert!(took >= HEAD_START * 2 && took < HEAD_START * 4, "{took:?}");
    }

    #[test]
    fn a_failed_one_costs_nothing() {
        let (won, took) = run(vec![after(0, Err("no")), after(0, Err("no")), after(0, Ok(3))]);
        assert_eq!(won, Ok(3));
        assert!(took < HEAD_START, "{took:?}");
    }

    #[test]
    fn a_slow_one_may_still_win() {
        let (won, _) = run(vec![after(75, Ok(1)), dead()]);
        assert_eq!(won, Ok(1));
    }

    #[test]
    fn all_failures_are_reported() {
        let (failed, _) = run(vec![after(20, Err("late")), after(0, Err("no"))]);
        assert_eq!(failed, Err(vec![(0, "late"), (1, "no")]));
        assert_eq!(run(Vec::new()).0, Err(Vec::new()));
    }
}
