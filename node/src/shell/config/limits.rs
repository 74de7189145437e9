//! What may be set of a node's limits and intervals, with what raising each costs.

use std::time::Duration;

use antientropy::version::ContextKey;

use super::read::{FaultReason, Section};
use crate::Settings;

/// A node's limits.
#[derive(Clone, Debug)]
pub struct Limits {
    settings: Settings,
    /// Those that the configuration gives: keys and values.
    pub given: Vec<(String, String)>,
    /// Connections of clients at once.
    pub client_connections_max: usize,
    /// Requests under way on one connection.
    pub connection_requests_max: usize,
    /// Bytes that wait to be sent on one connection.
    pub outgoing_bytes_max: usize,
    /// How long a stop waits for what is under way.
    pub stop_timeout: Duration,
    /// How often the files of the certificates are looked at.
    pub certificate_interval: Duration,
}

impl Limits {
    /// Reads `[limits]`.
    pub(super) fn read(mut section: Section<'_>) -> Limits {
        // The secret is put in place when the settings are asked for.
        let defaults = Settings::new(ContextKey::new([0; 32]));
        let settings = Settings {
            read_retry_after: section.millis(
                "read_retry_after_ms",
                defaults.read_retry_after,
                "milliseconds after which a silent replica is replaced by the next in a read, or twice as many as its \
                 slowest answers take of late, if that is more; a higher number waits longer for a slow one",
            ),
            forward_retry_after: section.millis(
                "forward_retry_after_ms",
                defaults.forward_retry_after,
                "milliseconds after which a forwarded read goes to another replica too; more waits longer",
            ),
            probe_interval: section.millis(
                "probe_interval_ms",
                defaults.probe_interval,
                "milliseconds between probes for whether peers live; more is slower to notice a death",
            ),
            probe_round_trip: section.millis(
                "probe_round_trip_ms",
                defaults.probe_round_trip,
                "milliseconds that a probe may take before others are asked to probe too; less than the interval",
            ),
            suspicion: section.millis(
                "suspicion_ms",
                defaults.suspicion,
                "milliseconds that a peer nobody can reach has to say that it lives; more is slower to notice a death",
            ),
            peer_silent_after: section.millis(
                "peer_silent_after_ms",
                defaults.peer_silent_after,
                "milliseconds without any answer after which a peer counts as down, whatever others say of it; more \
                 is slower to notice",
            ),
            timeout_max: section.millis(
                "timeout_max_ms",
                defaults.timeout_max,
                "the longest time that a request may ask for, in milliseconds; more holds memory for longer",
            ),
            requests_max: section.count(
                "requests_max",
                defaults.requests_max,
                (1, 1 << 20),
                "requests under way before new ones are refused; each holds its record in memory",
            ),
            queue_time_max: section.millis(
                "queue_time_max_ms",
                defaults.queue_time_max,
                "milliseconds that a request may wait for its turn; above as many as are answered in that time new ones \
                 are refused; more takes longer bursts and makes all slower when there is too much to do",
            ),
            record_cache_bytes: section.count(
                "record_cache_bytes",
                defaults.record_cache_bytes,
                (0, 1 << 38),
                "bytes of recently used records that are kept in memory; more answers more reads without the store",
            ),
            unsynced_bytes_max: section.count(
                "unsynced_bytes_max",
                defaults.unsynced_bytes_max,
                (1 << 20, 1 << 34),
                "bytes written and not yet synced before writes are refused; held in memory",
            ),
            clock_drift_max: section.millis(
                "clock_drift_max_ms",
                defaults.clock_drift_max,
                "milliseconds that the clock may be from its peers' before the node refuses to date writes",
            ),
            siblings_max: section.count(
                "siblings_max",
                defaults.siblings_max,
                (1, 1024),
                "concurrent values of one key before a write is refused",
            ),
            object_bytes_max: section.count(
                "object_bytes_max",
                defaults.object_bytes_max,
                (1 << 16, 8 << 20),
                "bytes of all values of one key before a write is refused",
            ),
            hints_per_peer_max: section.count(
                "hints_per_peer_max",
                defaults.hints_per_peer_max,
                (1, 1 << 24),
                "merges owed to one peer that are kept; a few hundred bytes each in memory. Beyond, exchanges mend it, and \
                 sloppy writes in its place are refused",
            ),
            exchange_interval: section.millis(
                "exchange_interval_ms",
                defaults.exchange_interval,
                "milliseconds between two comparisons of a partition with the same peer; more finds differences later",
            ),
            ..defaults
        };
        if settings.probe_round_trip >= settings.probe_interval {
            let given = settings.probe_round_trip.as_millis().to_string();
            let reason = "must be less than probe_interval_ms: a probe has a second round".to_owned();
            section.fault("probe_round_trip_ms", Some(given), FaultReason::Unfit(reason));
        }
        let limits = Limits {
            settings,
            given: Vec::new(),
            client_connections_max: section.count(
                "client_connections_max",
                1024,
                (1, 65_536),
                "connections of clients at once; each holds buffers",
            ),
            connection_requests_max: section.count(
                "connection_requests_max",
                4096,
                (1, 1 << 20),
                "requests under way on one connection before new ones are refused",
            ),
            outgoing_bytes_max: section.count(
                "outgoing_bytes_max",
                128 << 20,
                (1 << 20, 1 << 32),
                "bytes that may wait to be sent on one connection; held in memory",
            ),
            stop_timeout: section.millis(
                "stop_timeout_ms",
                Duration::from_secs(10),
                "milliseconds that a stop waits for what is under way",
            ),
            certificate_interval: section.millis(
                "certificate_interval_ms",
                Duration::from_secs(60),
                "milliseconds between two looks at whether the files of the certificates have changed; more uses new ones later",
            ),
        };
        section.finish();
        limits
    }

    /// The settings of the core, under the cluster's secret.
    #[must_use]
    pub fn settings(&self, secret: [u8; 32]) -> Settings {
        Settings { context_key: ContextKey::new(secret), ..self.settings.clone() }
    }
}
