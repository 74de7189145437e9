//! One layer of a plan: which nodes stand among the first n of each list.
//!
//! A layer takes the entries before it as given, and is planned in four steps. It *aims*: each node's fair share is
//! rounded to whole copies. It *keeps* what stood among the first n before, as far as racks allow. It *fills* what is
//! open with the nodes that have the least of what they should have. And it is *balanced*: copies are handed on, from
//! nodes that have too many to nodes that have too few, directly or by way of others. The last two steps have a file
//! each.

use std::cmp::Reverse;

use crate::{
    Candidate, Partitions,
    shares::{self, Ideal, RackBounds},
    strategy::Strategy,
};

/// How far from its fair share a node may be in the end, as a part of it; or one copy, where that is more.
const PROMISE: f64 = 0.05;

/// No node: an entry that is not planned yet, or whose node is gone.
pub(crate) const NONE: u32 = u32::MAX;

/// What a plan is made for; the same for all its layers. Nodes and racks are numbered from 0.
pub(crate) struct Ground {
    pub(crate) candidates: Vec<Candidate>,
    /// The rack of each node.
    pub(crate) rack_of: Vec<usize>,
    /// How many nodes each rack has.
    pub(crate) rack_sizes: Vec<usize>,
    /// The partitions in the order in which they are planned. It is any but their own, so that the lists of
    /// neighbours on the circle have nothing in common.
    pub(crate) order: Vec<usize>,
}

/// Lists of nodes, one for each partition, all of one width.
#[derive(Clone)]
pub(crate) struct Lists {
    width: usize,
    nodes: Vec<u32>,
}

/// Which layer is planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Entries that are decided already and stay.
    pub(crate) fixed: usize,
    /// Entries that are decided when this layer is.
    pub(crate) n: usize,
    /// Where the nodes come from.
    pub(crate) source: Source,
}

/// Where the nodes of a layer come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// From all nodes.
    All {
        /// The prefix in which a change costs copies: n, or the longer one that this layer is only a step to.
        home: usize,
        /// The prefix after that one in which a change costs copies, if there is one.
        next: Option<usize>,
    },
    /// From the first n + 1 entries of the same list, which are known: one of them goes.
    Within {
        /// The prefix in which a change costs copies: n, or the shorter one that this layer is only a step to.
        home: usize,
    },
}

/// How many copies a node should hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aim {
    /// The whole number that fits best.
    pub(crate) target: usize,
    /// With fewer, copies are moved to it.
    pub(crate) low: usize,
    /// With more, copies are moved from it.
    pub(crate) high: usize,
}

/// How often each rack stands on the list under work.
pub(crate) struct Tally {
    bounds: Vec<RackBounds>,
    counts: Vec<usize>,
    /// Entries that racks still lack that must have some.
    lacking: usize,
}

/// The planning of one layer. See the module's documentation.
pub(crate) struct Layer<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) old: &'a Lists,
    pub(crate) lists: &'a mut Lists,
    pub(crate) scope: Scope,
    pub(crate) strategy: Strategy,
    /// How often each node stands among the first n, so far.
    pub(crate) counts: Vec<usize>,
    /// How often it should.
    pub(crate) aims: Vec<Aim>,
    /// How many entries of each list are decided, up to n.
    pub(crate) filled: Vec<usize>,
    pub(crate) tally: Tally,
    /// The bounds of the racks in the next prefix whose change costs copies.
    pub(crate) next_bounds: Vec<RackBounds>,
    /// How many entries racks must have there.
    pub(crate) next_demanded: usize,
}

impl Ground {
    pub(crate) fn new(candidates: &[Candidate], partitions: Partitions) -> Ground {
        let (rack_of, rack_sizes) = shares::number_racks(candidates);
        let mut order: Vec<usize> = (0..partitions.iter().len()).collect();
        order.sort_by_cached_key(|partition| mix(*partition as u64));
        Ground { candidates: candidates.to_vec(), rack_of, rack_sizes, order }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn rack(&self, node: u32) -> usize {
        self.rack_of[node as usize]
    }
}

/// The finaliser of SplitMix64: spreads numbers, so that ties are broken the same everywhere but without a pattern.
pub(crate) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Lists {
    /// Lists of `width` entries, all empty.
    pub(crate) fn new(partitions: usize, width: usize) -> Lists {
        Lists { width, nodes: vec![NONE; partitions * width] }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The same lists without what comes after their first `width` entries.
    pub(crate) fn truncated(&self, width: usize) -> Lists {
        let width = width.min(self.width);
        let rows = self.nodes.chunks(self.width.max(1));
        Lists { width, nodes: rows.flat_map(|list| &list[..width]).copied().collect() }
    }

    pub(crate) fn list(&self, partition: usize) -> &[u32] {
        &self.nodes[partition * self.width..(partition + 1) * self.width]
    }

    pub(crate) fn list_mut(&mut self, partition: usize) -> &mut [u32] {
        &mut self.nodes[partition * self.width..(partition + 1) * self.width]
    }

    /// The first `n` entries, or as many as there are.
    pub(crate) fn prefix(&self, partition: usize, n: usize) -> &[u32] {
        &self.list(partition)[..n.min(self.width)]
    }
}

impl Tally {
    fn new(bounds: Vec<RackBounds>) -> Tally {
        let lacking = bounds.iter().map(|bounds| bounds.min).sum();
        Tally { counts: vec![0; bounds.len()], bounds, lacking }
    }

    pub(crate) fn bounds(&self, rack: usize) -> RackBounds {
        self.bounds[rack]
    }

    pub(crate) fn add(&mut self, rack: usize) {
        self.lacking -= usize::from(self.counts[rack] < self.bounds[rack].min);
        self.counts[rack] += 1;
    }

    pub(crate) fn remove(&mut self, rack: usize) {
        self.counts[rack] -= 1;
        self.lacking += usize::from(self.counts[rack] < self.bounds[rack].min);
    }

    /// Whether one of the list's `open` entries may be of `rack`.
    pub(crate) fn has_room(&self, rack: usize, open: usize) -> bool {
        let (bounds, count) = (self.bounds[rack], self.counts[rack]);
        count < bounds.max && (count < bounds.min || self.lacking < open)
    }
}

impl<'a> Layer<'a> {
    pub(crate) fn new(
        ground: &'a Ground,
        old: &'a Lists,
        lists: &'a mut Lists,
        scope: Scope,
        strategy: Strategy,
    ) -> Layer<'a> {
        let bounds_of = |n| shares::rack_bounds(&ground.rack_sizes, n);
        let next_bounds = match scope.source {
            Source::All { next: Some(next), .. } => bounds_of(next),
            Source::All { next: None, .. } | Source::Within { .. } => Vec::new(),
        };
        Layer {
            ground,
            old,
            lists,
            scope,
            strategy,
            counts: vec![0; ground.rack_of.len()],
            aims: Vec::new(),
            filled: vec![scope.fixed; ground.partitions()],
            tally: Tally::new(bounds_of(scope.n)),
            next_demanded: next_bounds.iter().map(|bounds| bounds.min).sum(),
            next_bounds,
        }
    }

    /// Plans the layer. Whether every node then has its fair share, within the promise.
    pub(crate) fn plan(mut self) -> bool {
        self.count_before();
        let fair = shares::fair_shares(&self.ground.candidates, self.scope.n);
        let fair: Vec<f64> = fair.iter().map(|share| share * self.ground.partitions() as f64).collect();
        self.aim(&fair);
        self.keep();
        self.fill();
        self.balance();
        let is_fair =
            |(count, fair): (&usize, &f64)| (*count as f64 - fair).abs() <= (PROMISE * fair).max(1.0) + 1e-6;
        self.counts.iter().zip(&fair).all(is_fair)
    }

    /// Counts the entries that are fixed and those that could be kept.
    fn count_before(&mut self) {
        for partition in 0..self.ground.partitions() {
            for &node in &self.lists.list(partition)[..self.scope.fixed] {
                self.counts[node as usize] += 1;
            }
            for node in self.kept(partition) {
                self.counts[node as usize] += 1;
            }
        }
    }

    /// The nodes that stood among the first n before and could stand there again.
    fn kept(&self, partition: usize) -> Vec<u32> {
        let list = self.lists.list(partition);
        let (fixed, rest) = list.split_at(self.scope.fixed);
        let may_stay = |node: &u32| match self.scope.source {
            Source::All { .. } => *node != NONE && !fixed.contains(node),
            Source::Within { .. } => rest[..self.scope.n + 1 - fixed.len()].contains(node),
        };
        self.old.prefix(partition, self.scope.n).iter().copied().filter(may_stay).collect()
    }

    /// Rounds the fair shares, first those of whole racks and then, within each, those of its nodes.
    fn aim(&mut self, fair: &[f64]) {
        let (mut racks, nodes) = self.limits(fair);
        let mut nodes_of = vec![Vec::new(); racks.len()];
        for (node, ideal) in nodes.iter().enumerate() {
            let rack = self.ground.rack_of[node];
            racks[rack].fair += ideal.fair;
            racks[rack].current += ideal.current;
            nodes_of[rack].push(node);
        }
        let totals = shares::round(&racks, self.scope.n * self.ground.partitions());
        self.aims = vec![Aim::default(); nodes.len()];
        for (members, total) in nodes_of.iter().zip(totals) {
            let ideals: Vec<Ideal> = members.iter().map(|node| nodes[*node]).collect();
            for (&node, target) in members.iter().zip(shares::round(&ideals, total)) {
                let play = (fair[node] * self.strategy.play).max(1.0);
                let low = ((fair[node] - play).max(0.0).ceil() as usize).min(target);
                let high = ((fair[node] + play).floor() as usize).max(target);
                self.aims[node] = Aim { target, low, high };
            }
        }
    }

    /// What the entries that are decided leave possible, for racks and for nodes.
    fn limits(&mut self, fair: &[f64]) -> (Vec<Ideal>, Vec<Ideal>) {
        let partitions = self.ground.partitions();
        let known = match self.scope.source {
            Source::All { .. } => self.scope.fixed,
            Source::Within { .. } => self.scope.n + 1,
        };
        let is_within = known > self.scope.fixed;
        let top = |most: usize| if is_within { 0 } else { most * partitions };
        let ideal =
            |(fair, current): (&f64, &usize)| Ideal { fair: *fair, min: 0, max: top(1), current: *current };
        let mut nodes: Vec<Ideal> = fair.iter().zip(&self.counts).map(ideal).collect();
        let of_rack =
            |b: &RackBounds| Ideal { fair: 0.0, min: b.min * partitions, max: top(b.max), current: 0 };
        let mut racks: Vec<Ideal> = self.tally.bounds.iter().map(of_rack).collect();
        for partition in 0..partitions {
            let list = &self.lists.list(partition)[..known];
            for (position, &node) in list.iter().enumerate() {
                let rack = self.ground.rack(node);
                self.tally.add(rack);
                let (bounds, count) = (self.tally.bounds[rack], self.tally.counts[rack]);
                if position < self.scope.fixed {
                    nodes[node as usize].min += 1;
                    racks[rack].min += usize::from(count > bounds.min);
                }
                if is_within {
                    nodes[node as usize].max += 1;
                    racks[rack].max += usize::from(count <= bounds.max);
                }
            }
            list.iter().for_each(|node| self.tally.remove(self.ground.rack(*node)));
        }
        (racks, nodes)
    }

    /// How much of what it should have the node has, were it to stand on `more` more lists: in parts of 2^32.
    pub(crate) fn fullness(&self, node: u32, more: usize) -> u64 {
        let (count, target) = (self.counts[node as usize] + more, self.aims[node as usize].target);
        // Without a target, any copy is more than any share of one could be.
        (count as u64 * (1 << 32)).checked_div(target as u64).unwrap_or((count as u64 + 1) << 40)
    }

    /// Keeps what stood among the first n before, as far as racks allow; where that is more than n, the fullest go.
    fn keep(&mut self) {
        let ground = self.ground;
        for &partition in &ground.order {
            let mut kept = self.kept(partition);
            self.enter(partition);
            kept.iter().for_each(|node| self.tally.add(ground.rack(*node)));
            while let Some(index) = self.to_drop(&kept) {
                let node = kept.remove(index);
                self.tally.remove(ground.rack(node));
                self.counts[node as usize] -= 1;
            }
            kept.iter().for_each(|node| self.tally.remove(ground.rack(*node)));
            self.leave(partition);
            for (position, node) in (self.scope.fixed..).zip(kept) {
                self.set(partition, position, node);
                self.filled[partition] = position + 1;
            }
        }
    }

    /// Which of `kept` has to go, if any has.
    fn to_drop(&self, kept: &[u32]) -> Option<usize> {
        let above = |index: &usize, limit: fn(RackBounds) -> usize| {
            let rack = self.ground.rack(kept[*index]);
            self.tally.counts[rack] > limit(self.tally.bounds[rack])
        };
        let fullest = |index: &usize| match self.strategy.drops_last {
            true => (*index as u64, Reverse(0)),
            false => (self.fullness(kept[*index], 0), Reverse(*index)),
        };
        let crowded = (0..kept.len()).filter(|index| above(index, |bounds| bounds.max)).max_by_key(fullest);
        let is_too_long = self.scope.fixed + kept.len() + self.tally.lacking > self.scope.n;
        let spare = (0..kept.len()).filter(|index| above(index, |bounds| bounds.min));
        crowded.or_else(|| if is_too_long { spare.max_by_key(fullest) } else { None })
    }

    /// Tallies the racks of what is decided of a list.
    pub(crate) fn enter(&mut self, partition: usize) {
        let decided = &self.lists.list(partition)[..self.filled[partition]];
        decided.iter().for_each(|node| self.tally.add(self.ground.rack(*node)));
    }

    /// Takes the list's racks out of the tally again.
    pub(crate) fn leave(&mut self, partition: usize) {
        let decided = &self.lists.list(partition)[..self.filled[partition]];
        decided.iter().for_each(|node| self.tally.remove(self.ground.rack(*node)));
    }

    /// Puts `node` at `position`. Within a set, the node that stood there changes places with it.
    pub(crate) fn set(&mut self, partition: usize, position: usize, node: u32) {
        let list = self.lists.list_mut(partition);
        match self.scope.source {
            Source::All { .. } => list[position] = node,
            Source::Within { .. } => {
                let at = list[..=self.scope.n].iter().position(|other| *other == node);
                list.swap(position, at.expect("the set contains it"));
            }
        }
    }

    /// Puts `node` at the first entry that is open, and counts it.
    pub(crate) fn push(&mut self, partition: usize, node: u32) {
        self.set(partition, self.filled[partition], node);
        self.filled[partition] += 1;
        self.counts[node as usize] += 1;
        self.tally.add(self.ground.rack(node));
    }
}
