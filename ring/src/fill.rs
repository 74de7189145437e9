//! Filling a layer: open entries get the nodes that have the least of what they should have.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::layer::{Layer, NONE, Source, mix};

/// The nodes of each rack, the emptiest first.
struct Queues {
    racks: Vec<BinaryHeap<Reverse<Entry>>>,
    /// The fullness of the first in each queue.
    firsts: Vec<u64>,
}

/// How full a node would be with its next copy, and the node.
type Entry = (u64, u32);

impl Layer<'_> {
    /// Fills every list up to n.
    pub(crate) fn fill(&mut self) {
        match self.scope.source {
            Source::Within { .. } => self.fill_within(),
            Source::All { home, next } => {
                self.promote(home, next);
                if next.is_some() {
                    self.fill_from_all(next);
                }
                self.fill_from_all(None);
            }
        }
    }

    /// Fills from the rest of each list's set.
    fn fill_within(&mut self) {
        let ground = self.ground;
        for &partition in &ground.order {
            self.enter(partition);
            while self.filled[partition] < self.scope.n {
                let filled = self.filled[partition];
                let list = self.lists.list(partition);
                let open = list[filled..=self.scope.n].iter().copied();
                let has_room = |node: &u32| self.tally.has_room(ground.rack(*node), self.scope.n - filled);
                let tie = |node: u32| mix(u64::from(node) | (partition as u64) << 32);
                let best = open.filter(has_room).min_by_key(|node| (self.fullness(*node, 1), tie(*node)));
                self.push(partition, best.expect("a set within racks' bounds has such subsets"));
            }
            self.leave(partition);
        }
    }

    /// Fills with nodes that stood further down the same list: to keep more copies of the partition would be no
    /// movement for them.
    fn promote(&mut self, home: usize, next: Option<usize>) {
        let (ground, old) = (self.ground, self.old);
        for &partition in &ground.order {
            if self.filled[partition] == self.scope.n || old.width() <= self.scope.n {
                continue;
            }
            self.enter(partition);
            while self.filled[partition] < self.scope.n {
                let filled = self.filled[partition];
                let candidates = old.list(partition).iter().enumerate().skip(self.scope.n);
                let may_come = |(_, node): &(usize, &u32)| {
                    **node != NONE
                        && self.counts[**node as usize] < self.aims[**node as usize].high
                        && !self.lists.list(partition)[..filled].contains(node)
                        && self.tally.has_room(ground.rack(**node), self.scope.n - filled)
                };
                let order = |(position, node): &(usize, &u32)| {
                    (*position >= home, next.is_some_and(|next| *position >= next), self.fullness(**node, 1))
                };
                let Some((_, &node)) = candidates.filter(may_come).min_by_key(order) else { break };
                self.push(partition, node);
            }
            self.leave(partition);
        }
    }

    /// Fills from all nodes. With a `next` prefix, only where that will not force the next layer to drop a node that
    /// it could keep, and only with nodes that have too few copies.
    fn fill_from_all(&mut self, next: Option<usize>) {
        let ground = self.ground;
        let mut queues = self.queues();
        let mut aside = Vec::new();
        for &partition in &ground.order {
            if self.filled[partition] == self.scope.n {
                continue;
            }
            self.enter(partition);
            while self.filled[partition] < self.scope.n {
                let Some(rack) = self.emptiest_rack(&queues, partition, next) else { break };
                // The rack has nodes that are not on the list, but the emptiest may be one that is.
                let node = loop {
                    let Reverse(entry) = queues.racks[rack].pop().expect("a rack with room has more nodes");
                    if !self.lists.list(partition)[..self.filled[partition]].contains(&entry.1) {
                        break entry.1;
                    }
                    aside.push(Reverse(entry));
                };
                let is_full = self.counts[node as usize] >= self.aims[node as usize].high;
                if next.is_none() || !is_full {
                    self.push(partition, node);
                }
                queues.racks[rack].extend(aside.drain(..));
                queues.racks[rack].push(Reverse(self.entry(node)));
                queues.firsts[rack] = queues.racks[rack].peek().expect("just pushed").0.0;
                if next.is_some() && is_full {
                    break;
                }
            }
            self.leave(partition);
        }
    }

    fn queues(&self) -> Queues {
        let mut racks = vec![Vec::new(); self.ground.rack_sizes.len()];
        for node in (0..).take(self.counts.len()) {
            racks[self.ground.rack(node)].push(Reverse(self.entry(node)));
        }
        let racks: Vec<_> = racks.into_iter().map(BinaryHeap::from).collect();
        let firsts = racks.iter().map(|queue| queue.peek().expect("no rack is empty").0.0).collect();
        Queues { racks, firsts }
    }

    /// The next copy counts by a part of itself that differs from copy to copy, so that equals change their order.
    /// Else the same nodes would meet on list after list, and the failure of one would fall on few others.
    fn entry(&self, node: u32) -> Entry {
        let (count, target) = (self.counts[node as usize] as u64, self.aims[node as usize].target as u64);
        let part = mix(u64::from(node) | count << 32 | (self.scope.n as u64) << 56) >> 32;
        let next = count << 32 | part;
        (next.checked_div(target).unwrap_or((count + 1) << 40), node)
    }

    /// The rack with the emptiest first node among those with room on the list.
    fn emptiest_rack(&self, queues: &Queues, partition: usize, next: Option<usize>) -> Option<usize> {
        let open = self.scope.n - self.filled[partition];
        let racks = queues.firsts.len();
        // Of equally empty racks, the first from here on.
        let start = (mix(partition as u64) % racks as u64) as usize;
        let order = (start..racks).chain(0..start);
        let has_room = |rack: &usize| {
            self.tally.has_room(*rack, open)
                && next.is_none_or(|next| self.has_room_next(partition, *rack, next))
        };
        order.filter(has_room).min_by_key(|rack| queues.firsts[*rack])
    }

    /// Whether one more of `rack` can stand beside all that stood among the first `next` before: in an entry that is
    /// open there, or, where none is, in the place of a node of any rack.
    pub(crate) fn has_room_next(&self, partition: usize, rack: usize, next: usize) -> bool {
        let old = self.old.prefix(partition, next);
        let racks = || old.iter().filter(|node| **node != NONE).map(|node| self.ground.rack(*node));
        let count = racks().filter(|other| *other == rack).count();
        let bounds = self.next_bounds[rack];
        let open = next - racks().count();
        let is_demanded = |(index, rack): &(usize, usize)| {
            racks().take(*index).filter(|other| other == rack).count() < self.next_bounds[*rack].min
        };
        let lacking = || self.next_demanded - racks().enumerate().filter(is_demanded).count();
        count < bounds.max && (open == 0 || count < bounds.min || lacking() < open)
    }
}
