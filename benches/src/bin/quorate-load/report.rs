//! What a measurement came to, for people and for programs.

use std::{
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::{
    cpu::Sample,
    load::{Kind, Measured},
};

/// See the module's documentation.
pub(crate) struct Report<'a> {
    measured: &'a Measured,
    all: Histogram<u64>,
    server_cpu_us_per_op: Option<f64>,
    client_cpu_us_per_op: f64,
}

impl<'a> Report<'a> {
    /// Of a measurement, with processor times before and after.
    pub(crate) fn new(measured: &'a Measured, before: &Sample, after: &Sample) -> Report<'a> {
        let mut all = measured.reads.latencies.clone();
        all.add(&measured.writes.latencies).expect("both have the same bounds");
        let operations = number(all.len() + measured.reads.failed + measured.writes.failed).max(1.0);
        let per_operation = |spent: Duration| spent.as_secs_f64() * 1e6 / operations;
        let servers = after.servers.zip(before.servers);
        Report {
            measured,
            all,
            server_cpu_us_per_op: servers.map(|(after, before)| per_operation(after.saturating_sub(before))),
            client_cpu_us_per_op: per_operation(after.client.saturating_sub(before.client)),
        }
    }

    /// Operations that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.measured.reads.failed + self.measured.writes.failed
    }

    fn per_second(&self) -> f64 {
        number(self.all.len()) / self.measured.elapsed.as_secs_f64()
    }

    /// One JSON document.
    pub(crate) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let mut document = Map::new();
        document.insert("ops_per_second".to_owned(), json!(self.per_second()));
        document.insert("operations".to_owned(), json!(self.all.len()));
        document.insert("errors".to_owned(), json!(self.errors()));
        document.insert("seconds".to_owned(), json!(self.measured.elapsed.as_secs_f64()));
        document.extend(latencies(&self.all));
        for (name, kind) in self.kinds() {
            let mut of_kind = Map::from_iter(latencies(&kind.latencies));
            of_kind.insert("operations".to_owned(), json!(kind.latencies.len()));
            of_kind.insert("errors".to_owned(), json!(kind.failed));
            of_kind.insert("missing".to_owned(), json!(kind.missing));
            document.insert(name.to_owned(), Value::Object(of_kind));
        }
        if let Some(cpu) = self.server_cpu_us_per_op {
            document.insert("server_cpu_us_per_op".to_owned(), json!(cpu));
        }
        document.insert("client_cpu_us_per_op".to_owned(), json!(self.client_cpu_us_per_op));
        document.insert("first_errors".to_owned(), json!(self.measured.errors));
        writeln!(out, "{}", Value::Object(document))
    }

    /// A few lines.
    pub(crate) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:.0} operations a second, {} errors", self.per_second(), self.errors())?;
        for (name, kind) in self.kinds() {
            let at = |quantile: f64| kind.latencies.value_at_quantile(quantile);
            writeln!(
                out,
                "  {name:<6} {} operations: p50 {} us, p99 {} us, p99.9 {} us, longest {} us",
                kind.latencies.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                kind.latencies.max()
            )?;
            if kind.missing > 0 {
                writeln!(out, "         {} found nothing", kind.missing)?;
            }
        }
        match self.server_cpu_us_per_op {
            Some(servers) => writeln!(
                out,
                "  processor time an operation: servers {servers:.1} us, client {:.1} us",
                self.client_cpu_us_per_op
            )?,
            None => {
                writeln!(out, "  processor time an operation: client {:.1} us", self.client_cpu_us_per_op)?
            }
        }
        for error in &self.measured.errors {
            writeln!(out, "  error: {error}")?;
        }
        Ok(())
    }

    /// The kinds of operations that there were.
    fn kinds(&self) -> impl Iterator<Item = (&'static str, &Kind)> {
        let kinds = [("reads", &self.measured.reads), ("writes", &self.measured.writes)];
        kinds.into_iter().filter(|(_, kind)| kind.latencies.len() + kind.failed > 0)
    }
}

fn latencies(histogram: &Histogram<u64>) -> impl Iterator<Item = (String, Value)> {
    let at = |quantile: f64| histogram.value_at_quantile(quantile);
    let values =
        [("p50_us", at(0.5)), ("p99_us", at(0.99)), ("p999_us", at(0.999)), ("longest_us", histogram.max())];
    values.into_iter().map(|(name, value)| (name.to_owned(), json!(value)))
}

#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}
