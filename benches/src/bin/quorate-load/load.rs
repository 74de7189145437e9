//! The load itself.

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use client::{KeyspaceHandle, Level};
use hdrhistogram::Histogram;
use ring::Durability;
use tokio::{task::LocalSet, time};

use crate::keys::{Chooser, Keys, name};

/// The longest latency that is told apart, in microseconds: a minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;
/// Operations under way while keys are written before reads.
const FILL_CONCURRENCY: u32 = 128;
/// Keys that are looked at to find out whether all of them are there.
const FILL_SAMPLES: u64 = 64;

/// What to do.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) keyspace: KeyspaceHandle,
    pub(crate) concurrency: u32,
    pub(crate) duration: Duration,
    pub(crate) rate: Option<u64>,
    pub(crate) keys: Keys,
    pub(crate) value_bytes: usize,
    pub(crate) read: Level,
    pub(crate) write: Level,
    pub(crate) durability: Option<Durability>,
    pub(crate) reads_percent: u32,
}

/// What came of it.
pub(crate) struct Measured {
    pub(crate) reads: Kind,
    pub(crate) writes: Kind,
    pub(crate) elapsed: Duration,
    /// The first few errors, in words.
    pub(crate) errors: Vec<String>,
}

/// What came of one kind of operation.
pub(crate) struct Kind {
    /// Latencies in microseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) failed: u64,
    /// Reads that found nothing.
    pub(crate) missing: u64,
}

impl Kind {
    fn new() -> Kind {
        let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS);
        Kind { latencies: latencies.expect("the bounds are in order"), failed: 0, missing: 0 }
    }

    fn done(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros.max(1));
    }
}

/// How an operation ended.
enum Ended {
    Found,
    Missing,
    Written,
}

async fn operate(plan: &Plan, is_read: bool, key: Bytes, value: Bytes) -> Result<Ended, String> {
    if is_read {
        let found = plan.keyspace.get(key).r(plan.read).send().await.map_err(|error| error.to_string())?;
        return Ok(if found.values.is_empty() { Ended::Missing } else { Ended::Found });
    }
    let mut put = plan.keyspace.put(key, value).w(plan.write).retry_in_doubt(true);
    if let Some(durability) = plan.durability {
        put = put.durability(durability);
    }
    put.send().await.map(|_| Ended::Written).map_err(|error| error.to_string())
}

/// Writes all keys that reads are to find, unless a sample of them is there already.
pub(crate) async fn fill(plan: &Plan) -> Result<(), String> {
    let mut chooser = plan.keys.chooser(0);
    let step = (plan.keys.count / FILL_SAMPLES).max(1);
    let mut is_there = true;
    for index in (0..plan.keys.count).step_by(usize::try_from(step).unwrap_or(1)).chain([plan.keys.count - 1])
    {
        let found = plan.keyspace.get(name(index)).send().await.map_err(|error| error.to_string())?;
        is_there &= found.values.first().is_some_and(|value| value.bytes.len() == plan.value_bytes);
        if !is_there {
            break;
        }
    }
    if is_there {
        return Ok(());
    }
    let value = chooser.value(plan.value_bytes);
    let state = Rc::new(RefCell::new((0, None)));
    let shows = io::stderr().is_terminal();
    let local = LocalSet::new();
    for _ in 0..FILL_CONCURRENCY {
        let (keyspace, value, state, count) =
            (plan.keyspace.clone(), value.clone(), Rc::clone(&state), plan.keys.count);
        local.spawn_local(async move {
            loop {
                let index = {
                    let mut state = state.borrow_mut();
                    if state.0 == count || state.1.is_some() {
                        return;
                    }
                    state.0 += 1;
                    state.0 - 1
                };
                if shows && index.is_multiple_of(10_000) {
                    drop(write!(io::stderr(), "\rwriting keys: {index} of {count}"));
                }
                let put = keyspace.put(name(index), value.clone()).retry_in_doubt(true);
                if let Err(error) = put.send().await {
                    state.borrow_mut().1 = Some(format!("cannot write the keys to be read: {error}"));
                }
            }
        });
    }
    local.await;
    if shows {
        drop(write!(io::stderr(), "\r\x1b[K"));
    }
    let failed = state.borrow_mut().1.take();
    failed.map_or(Ok(()), Err)
}

/// Runs the workload.
pub(crate) async fn run(plan: &Plan) -> Measured {
    let mut chooser = plan.keys.chooser(1);
    // One random buffer, of which each value is a stretch: making values is not what is measured.
    let values = chooser.value(plan.value_bytes + VALUE_OFFSETS);
    let began = Instant::now();
    let shared = Rc::new(Shared {
        plan: plan.clone(),
        values,
        began,
        ends: began + plan.duration,
        state: RefCell::new(State {
            chooser,
            started: 0,
            reads: Kind::new(),
            writes: Kind::new(),
            errors: Vec::new(),
        }),
    });
    let local = LocalSet::new();
    for _ in 0..plan.concurrency {
        let shared = Rc::clone(&shared);
        local.spawn_local(async move { shared.work().await });
    }
    let watched = Rc::clone(&shared);
    local.spawn_local(async move { watched.progress().await });
    local.await;
    let elapsed = began.elapsed();
    let shared = Rc::into_inner(shared).expect("all workers are over");
    let State { reads, writes, errors, .. } = shared.state.into_inner();
    Measured { reads, writes, elapsed, errors }
}

/// Values are stretches of one buffer that begin at one of so many places.
const VALUE_OFFSETS: usize = 4096;

struct Shared {
    plan: Plan,
    values: Bytes,
    began: Instant,
    ends: Instant,
    state: RefCell<State>,
}

struct State {
    chooser: Chooser,
    started: u64,
    reads: Kind,
    writes: Kind,
    errors: Vec<String>,
}

impl Shared {
    /// Does one operation after the other until the time is up.
    async fn work(&self) {
        loop {
            let (is_read, key, value, number) = self.next();
            let intended = match self.plan.rate {
                // When it should begin, however late its turn comes.
                Some(rate) => self.began + Duration::from_secs(1).mul_f64(ratio(number, rate)),
                None => Instant::now(),
            };
            if intended >= self.ends {
                return;
            }
            if self.plan.rate.is_some() {
                // Not in a closed loop: a sleep until now lasts until the next tick of the timer, up to a millisecond.
                time::sleep_until(intended.into()).await;
                if Instant::now() >= self.ends + self.plan.duration {
                    // Hopelessly behind: what is left would only be counted as late.
                    return;
                }
            }
            let ended = operate(&self.plan, is_read, key, value).await;
            let latency = intended.elapsed();
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let kind = if is_read { &mut state.reads } else { &mut state.writes };
            match ended {
                Ok(Ended::Found | Ended::Written) => kind.done(latency),
                Ok(Ended::Missing) => {
                    kind.done(latency);
                    kind.missing += 1;
                }
                Err(error) => {
                    kind.failed += 1;
                    if state.errors.len() < 5 {
                        state.errors.push(error);
                    }
                }
            }
        }
    }

    fn next(&self) -> (bool, Bytes, Bytes, u64) {
        let mut state = self.state.borrow_mut();
        let is_read = state.chooser.percent() < self.plan.reads_percent;
        let key = state.chooser.key();
        let number = state.started;
        state.started += 1;
        let offset = usize::try_from(number).unwrap_or(0) % VALUE_OFFSETS;
        (is_read, key, self.values.slice(offset..offset + self.plan.value_bytes), number)
    }

    /// Says once a second how it goes, if somebody watches.
    async fn progress(&self) {
        if !io::stderr().is_terminal() {
            return;
        }
        let mut before = 0;
        while Instant::now() < self.ends {
            time::sleep(Duration::from_secs(1)).await;
            let done = {
                let state = self.state.borrow();
                state.reads.latencies.len() + state.writes.latencies.len()
            };
            let left = self.ends.saturating_duration_since(Instant::now()).as_secs();
            drop(write!(io::stderr(), "\r\x1b[K{} operations a second, {left} s left", done - before));
            before = done;
        }
        drop(write!(io::stderr(), "\r\x1b[K"));
    }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(number: u64, rate: u64) -> f64 {
    number as f64 / rate as f64
}
