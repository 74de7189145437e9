//! Progress on stderr: a bar where a person watches, and a line every few seconds elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn anew.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of something that is counted in records, and whose end is known in another unit, if at all.
pub(crate) struct Progress {
    verb: &'static str,
    bar: Option<ProgressBar>,
    begun: Instant,
    shown: Instant,
}

impl Progress {
    /// Begins something that is done at `total`, or nobody knows when.
    pub(crate) fn begin(verb: &'static str, total: Option<u64>) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5));
            let template = match total {
                Some(_) => "{bar:30} {percent:>3}%  {msg}",
                None => "{spinner}  {msg}",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("a template that is right"));
            bar
        });
        Progress { verb, bar, begun: Instant::now(), shown: Instant::now() }
    }

    /// It has come so far: to `position` of the total, with `records` done.
    pub(crate) fn show(&mut self, position: u64, records: u64, remark: &str) {
        let interval = if self.bar.is_some() { DRAW_INTERVAL } else { LINE_INTERVAL };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let message = format!("{}{remark}", self.rate(records));
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(message);
            }
            // Where stderr is closed there is nobody to tell.
            None => drop(writeln!(io::stderr(), "{message}")),
        }
    }

    /// It has ended. Takes the bar away, and says how it went.
    pub(crate) fn end(self, records: u64, remark: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        // Where stderr is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "{}{remark}", self.rate(records));
    }

    /// How long it has taken.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn rate(&self, records: u64) -> String {
        let elapsed_s = self.begun.elapsed().as_secs_f64();
        let rate = records as f64 / elapsed_s.max(1e-3);
        let noun = if records == 1 { "record" } else { "records" };
        format!("{} {records} {noun} in {elapsed_s:.1} s ({rate:.0} a second)", self.verb)
    }
}
