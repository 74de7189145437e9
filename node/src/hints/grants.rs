//! How many hints this node will take, and from whom: it has come back, and everybody has something for it.
//!
//! A grant is used up by the merges that come, or replaced by the next that its holder asks for; what a holder that is down
//! was granted, or does not use, is free again. All together stay within a bound, and nothing is granted while much waits for the disk.

use std::{collections::BTreeMap, time::Duration};

use ring::NodeId;

use crate::{local::Local, storage::Store};

/// How long a grant is good for: twice as long as a holder waits for anything.
const GOOD_FOR: Duration = Duration::from_secs(2);

/// What is granted and not used up, and until when it is good.
#[derive(Default)]
pub(crate) struct Grants {
    by_holder: BTreeMap<NodeId, (u32, Duration)>,
}

impl Grants {
    /// A holder has so many hints for this node: how many of them it may send.
    pub(crate) fn grant<S: Store>(&mut self, local: &Local<S>, holder: NodeId, waiting: u32) -> u32 {
        let now = local.now.monotonic;
        self.by_holder.retain(|other, (_, until)| *other != holder && *until > now && local.is_up(*other));
        let is_busy = local.replica.is_refusing()
            || local.is_stopping
            || local.replica.unsynced_bytes() > local.settings.unsynced_bytes_max / 4;
        let out: u32 = self.by_holder.values().map(|(granted, _)| granted).sum();
        let most = u32::try_from(local.settings.hints_granted_max).unwrap_or(u32::MAX);
        let granted = if is_busy { 0 } else { waiting.min(most.saturating_sub(out)) };
        if granted > 0 {
            self.by_holder.insert(holder, (granted, now + GOOD_FOR));
        }
        granted
    }

    /// A hint came.
    pub(crate) fn used(&mut self, now: Duration, holder: NodeId) {
        if let Some((granted, until)) = self.by_holder.get_mut(&holder) {
            *granted = granted.saturating_sub(1);
            *until = now + GOOD_FOR;
        }
    }
}
