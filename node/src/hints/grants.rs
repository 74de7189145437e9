//! How many hints this node will take, and from whom: it has come back, and everybody has something for it.
//!
//! A grant is used up by the merges that come, or replaced by the next that its holder asks for; what a holder that is down
//! was granted is free again. All together stay within a bound, and nothing is granted while much waits for the disk.

use std::collections::BTreeMap;

use ring::NodeId;

use crate::{local::Local, storage::Store};

/// What is granted and not used up.
#[derive(Default)]
pub(crate) struct Grants {
    by_holder: BTreeMap<NodeId, u32>,
}

impl Grants {
    /// A holder has so many hints for this node: how many of them it may send.
    pub(crate) fn grant<S: Store>(&mut self, local: &Local<S>, holder: NodeId, waiting: u32) -> u32 {
        self.by_holder.retain(|other, _| *other != holder && local.is_up(*other));
        let is_busy = local.replica.is_refusing()
            || local.is_stopping
            || local.replica.unsynced_bytes() > local.settings.unsynced_bytes_max / 4;
        let out: u32 = self.by_holder.values().sum();
        let most = u32::try_from(local.settings.hints_granted_max).unwrap_or(u32::MAX);
        let granted = if is_busy { 0 } else { waiting.min(most.saturating_sub(out)) };
        if granted > 0 {
            self.by_holder.insert(holder, granted);
        }
        granted
    }

    /// A hint came.
    pub(crate) fn used(&mut self, holder: NodeId) {
        if let Some(granted) = self.by_holder.get_mut(&holder) {
            *granted = granted.saturating_sub(1);
        }
    }
}
