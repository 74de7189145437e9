//! How often things happened in a run: faults, outcomes, and what the nodes themselves counted.

use std::collections::BTreeMap;

use node::Counters;

/// Counts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events of all kinds.
    pub events: u64,
    /// Everything else, by name.
    pub by_name: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts one.
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.by_name.entry(name).or_default() += 1;
    }

    /// Adds what a process counted until its end: a run that never went some way proves nothing about it.
    pub(crate) fn add_node(&mut self, counters: &Counters) {
        let counted = [
            ("node: reads diverged", counters.reads_diverged),
            ("node: requests forwarded", counters.forwarded),
            ("node: silent replicas replaced", counters.replicas_replaced),
            ("node: reads hedged", counters.reads_hedged),
            ("node: merged by writes", counters.merged_write.records),
            ("node: merged as stand-in", counters.merged_stand_in.records),
            ("node: writes with stand-ins", counters.writes_sloppy),
            ("node: merged by read repair", counters.merged_read_repair.records),
            ("node: merged by hints", counters.merged_hint.records),
            ("node: merged by exchanges", counters.merged_anti_entropy.records),
            ("node: merged by filling", counters.merged_movement.records),
            ("node: merges refused", counters.merges_refused),
            ("node: merges that came too late", counters.merges_late),
            ("node: merges refused as behind", counters.merges_behind.iter().sum()),
            ("node: watermarks raised", counters.watermarks_raised),
            ("node: tombstones dropped", counters.tombstones_dropped),
            ("node: contexts pruned", counters.contexts_pruned),
            ("node: values quarantined", counters.values_quarantined),
            ("node: unions", counters.unions),
            ("node: concurrent versions discarded", counters.lww_discarded),
            ("node: damaged records found", counters.damaged_records),
            ("node: copies that began to fill", counters.copies_filled),
            ("node: copies made whole", counters.copies_made_whole),
            ("node: exchanges completed", counters.exchanges_completed),
            ("node: exchanges that found all equal", counters.exchanges_equal),
            ("node: exchanges put off", counters.exchanges_put_off),
            ("node: exchanges abandoned", counters.exchanges_abandoned),
            ("node: differences found by exchanges", counters.exchange_differences),
            ("node: hash trees that were wrong", counters.trees_mended),
            ("node: hints left", counters.hints_left),
            ("node: hints replayed", counters.hints_replayed),
            ("node: hints dropped", counters.hints_dropped),
            ("node: messages ignored", counters.messages_ignored),
            ("node: peers found dead", counters.peers_died),
            ("node: rejoined under another name", counters.rejoined),
            ("node: packets ignored", counters.datagrams_ignored),
            ("node: parked messages dropped", counters.parked_dropped),
            ("node: stores that went back", counters.store_went_back),
            ("node: rounds begun", counters.rounds_begun),
            ("node: rounds given up", counters.rounds_given_up),
            ("node: rounds decided", counters.rounds_decided),
            ("node: votes given", counters.votes_given),
            ("node: votes withheld", counters.votes_withheld),
            ("node: documents in conflict", counters.documents_conflicting),
            ("node: documents given up", counters.documents_given_up),
            ("node: founders configured otherwise", counters.configurations_differing),
            ("node: formations refused", counters.formations_refused),
        ];
        for (name, count) in counted {
            *self.by_name.entry(name).or_default() += count;
        }
    }
}
