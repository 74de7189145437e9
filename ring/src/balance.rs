//! Balancing a layer: copies are handed on from nodes that have too many to nodes that have too few.
//!
//! What costs nothing comes first: handing on what this plan gave in the first place, and what either node held
//! before. Then, from and to the nodes that are outside their play, copies that cost data: directly where that can
//! be done, and else along the cheapest path, over nodes that gain one copy and lose another. Paths are those of
//! augmentation in a flow network, with the lists as its edges.

use crate::layer::{Layer, Source};

/// One copy handed on: of which partition, from which node, to which.
type Step = (usize, u32, u32);

/// What handing a copy on may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// Nothing, in this layer or the next.
    Nothing,
    /// Nothing in this layer.
    Later,
    /// A copy.
    Copies,
}

/// The partitions on whose lists each node stands in this layer. Entries are not taken out when they become untrue,
/// so each is checked when it is used.
type Holders = Vec<Vec<u32>>;

/// How far a search has come.
struct Search {
    /// The list and the node from which each node was reached.
    came_by: Vec<Option<(usize, u32)>>,
    /// The nodes that were not reached, in order.
    unseen: Vec<u32>,
}

impl Layer<'_> {
    /// Balances the layer.
    pub(crate) fn balance(&mut self) {
        let mut holders = self.holders();
        self.augment(&mut holders, &self.surplus(), |_, _| true, Cost::Nothing);
        self.restore(&mut holders, Cost::Later);
        let nodes = 0..self.counts.len();
        let over: Vec<bool> = nodes.clone().map(|node| self.counts[node] > self.aims[node].high).collect();
        let under: Vec<bool> = nodes.map(|node| self.counts[node] < self.aims[node].low).collect();
        if let Source::All { home, next } = self.scope.source {
            for rank in 0..4 {
                self.hand_over(&mut holders, &over, &under, rank, home, next);
            }
        }
        self.restore(&mut holders, Cost::Copies);
    }

    /// Brings the nodes that are outside their play to their targets, as far as that can be done at this cost.
    fn restore(&mut self, holders: &mut Holders, cost: Cost) {
        let is_over = |node: &u32| self.counts[*node as usize] > self.aims[*node as usize].high;
        let over: Vec<u32> = self.surplus().into_iter().filter(is_over).collect();
        self.augment(holders, &over, |_, _| true, cost);
        let is_under = |layer: &Layer, node: usize| layer.counts[node] < layer.aims[node].low;
        if (0..self.counts.len()).any(|node| is_under(self, node)) {
            self.augment(holders, &self.surplus(), is_under, cost);
        }
    }

    fn holders(&self) -> Holders {
        let mut holders = vec![Vec::new(); self.counts.len()];
        for &partition in &self.ground.order {
            for &node in &self.lists.list(partition)[self.scope.fixed..self.scope.n] {
                holders[node as usize].push(u32::try_from(partition).expect("at most 65,536"));
            }
        }
        holders
    }

    /// The nodes with more copies than their target.
    fn surplus(&self) -> Vec<u32> {
        let nodes = (0..).zip(self.counts.iter().zip(&self.aims));
        nodes.filter(|(_, (count, aim))| **count > aim.target).map(|(node, _)| node).collect()
    }

    /// Hands copies over directly, wherever one of the two is outside its play; those of one `rank` only.
    fn hand_over(
        &mut self,
        holders: &mut Holders,
        over: &[bool],
        under: &[bool],
        rank: u8,
        home: usize,
        next: Option<usize>,
    ) {
        let nodes = (0..).zip(self.counts.iter().zip(&self.aims));
        let mut needy: Vec<u32> =
            nodes.filter(|(_, (c, aim))| **c < aim.target).map(|(node, _)| node).collect();
        let mut under_needy: Vec<u32> = needy.iter().copied().filter(|node| under[*node as usize]).collect();
        for from in self.surplus() {
            let mut index = 0;
            while index < holders[from as usize].len()
                && self.counts[from as usize] > self.aims[from as usize].target
            {
                let takers = if over[from as usize] { &needy } else { &under_needy };
                if takers.is_empty() {
                    break;
                }
                let partition = holders[from as usize][index] as usize;
                index += 1;
                if !self.holds(partition, from) {
                    continue;
                }
                let fits = |to: &u32| {
                    self.can_replace(partition, from, *to)
                        && self.rank(partition, from, *to, home, next) == rank
                };
                let Some(to) = takers.iter().copied().filter(fits).min_by_key(|to| self.fullness(*to, 1))
                else {
                    continue;
                };
                self.replace(holders, (partition, from, to));
                if self.counts[to as usize] == self.aims[to as usize].target {
                    needy.retain(|node| *node != to);
                    under_needy.retain(|node| *node != to);
                }
            }
        }
    }

    /// What it means for other layers that `to` comes onto the list in the place of `from`: the lower, the better. Best
    /// (0) if it stood on the list before; worst (3) if the next layer then cannot keep what it has; and rather (1)
    /// where `from` stood late among the replicas, so that shorter prefixes keep it, than (2) early.
    fn rank(&self, partition: usize, from: u32, to: u32, home: usize, next: Option<usize>) -> u8 {
        if self.old.list(partition).contains(&to) {
            0
        } else if next.is_some_and(|next| !self.has_room_next(partition, self.ground.rack(to), next)) {
            3
        } else if self.old.prefix(partition, home.saturating_sub(2)).contains(&from) {
            2
        } else {
            1
        }
    }

    /// Hands copies on from each of `sources`, until it is at its target, along shortest paths to nodes below theirs
    /// that `is_wanted`.
    fn augment(
        &mut self,
        holders: &mut Holders,
        sources: &[u32],
        is_wanted: impl Fn(&Layer, usize) -> bool,
        cost: Cost,
    ) {
        // What a search in vain has seen leads nowhere for the next one either.
        let mut dead = vec![false; self.counts.len()];
        for &from in sources {
            while self.counts[from as usize] > self.aims[from as usize].target {
                let Some(path) = self.search(holders, from, &is_wanted, cost, &mut dead) else { break };
                self.push_along(holders, path, &is_wanted, cost);
            }
        }
    }

    /// Hands copies on along the path, and then along other lists of the same nodes, for as long as the first has too
    /// many, the last too few and there are lists: with few nodes and many partitions that is often.
    fn push_along(
        &mut self,
        holders: &mut Holders,
        mut path: Vec<Step>,
        is_wanted: &impl Fn(&Layer, usize) -> bool,
        cost: Cost,
    ) {
        let (first, last) = (path[0].1 as usize, path[path.len() - 1].2 as usize);
        let mut cursors = vec![0; path.len()];
        loop {
            for &step in &path {
                // A path that visits one list twice may spoil its own end; what is left of it is found again.
                if !self.may_hand(step, cost) {
                    return;
                }
                self.replace(holders, step);
            }
            let is_needed = self.counts[first] > self.aims[first].target
                && self.counts[last] < self.aims[last].target
                && is_wanted(self, last);
            if !is_needed {
                return;
            }
            for (step, cursor) in path.iter_mut().zip(&mut cursors) {
                let lists = &holders[step.1 as usize];
                let Some(ahead) = lists[*cursor..]
                    .iter()
                    .position(|list| self.may_hand((*list as usize, step.1, step.2), cost))
                else {
                    return;
                };
                *cursor += ahead + 1;
                step.0 = lists[*cursor - 1] as usize;
            }
        }
    }

    /// Whether the step can be taken now.
    fn may_hand(&self, (partition, from, to): Step, cost: Cost) -> bool {
        self.holds(partition, from)
            && self.few_choices(partition, from, cost).is_none_or(|few| few.contains(&to))
            && self.spares_next(partition, to, cost)
            && self.can_replace(partition, from, to)
    }

    /// Whether the next layer can keep what it has beside `to`, if that matters.
    fn spares_next(&self, partition: usize, to: u32, cost: Cost) -> bool {
        match self.scope.source {
            Source::All { next: Some(next), .. } if cost == Cost::Nothing && self.old.width() > 0 => {
                self.old.prefix(partition, next).contains(&to)
                    || self.has_room_next(partition, self.ground.rack(to), next)
            }
            Source::All { .. } | Source::Within { .. } => true,
        }
    }

    /// The cheapest path from a node to one that is below its target and wanted.
    fn search(
        &self,
        holders: &Holders,
        from: u32,
        is_wanted: &impl Fn(&Layer, usize) -> bool,
        cost: Cost,
        dead: &mut [bool],
    ) -> Option<Vec<Step>> {
        let mut search = Search {
            came_by: vec![None; self.counts.len()],
            unseen: (0..)
                .take(self.counts.len())
                .filter(|node| *node != from && !dead[*node as usize])
                .collect(),
        };
        // All that the same number of copies leads to, from those that no copy does.
        let mut level = vec![from];
        while !level.is_empty() {
            let mut next = Vec::new();
            for paid in [false, true] {
                let step_cost = if paid || cost != Cost::Copies { cost } else { Cost::Later };
                let mut index = 0;
                while index < level.len() && (!paid || cost == Cost::Copies) {
                    let reached = if paid { &mut next } else { &mut Vec::new() };
                    let found =
                        self.expand(holders, level[index], is_wanted, step_cost, &mut search, reached);
                    if let Some(found) = found {
                        return Some(path_to(found, from, &search.came_by));
                    }
                    if !paid {
                        level.append(&mut std::mem::take(reached));
                    }
                    index += 1;
                }
            }
            level = next;
        }
        dead[from as usize] = true;
        for (node, step) in search.came_by.iter().enumerate() {
            dead[node] |= step.is_some();
        }
        None
    }

    /// Looks where one step leads from `node`. The first node that is below its target and wanted, if there is one.
    fn expand(
        &self,
        holders: &Holders,
        node: u32,
        is_wanted: &impl Fn(&Layer, usize) -> bool,
        cost: Cost,
        search: &mut Search,
        reached: &mut Vec<u32>,
    ) -> Option<u32> {
        let Search { came_by, unseen } = search;
        for &partition in &holders[node as usize] {
            let partition = partition as usize;
            if unseen.is_empty() {
                return None;
            }
            if !self.holds(partition, node) {
                continue;
            }
            let mut found = None;
            let mut visit = |to: u32| {
                let is_open = found.is_none() && self.can_replace(partition, node, to);
                if !is_open || !self.spares_next(partition, to, cost) {
                    return false;
                }
                came_by[to as usize] = Some((partition, node));
                reached.push(to);
                if self.counts[to as usize] < self.aims[to as usize].target && is_wanted(self, to as usize) {
                    found = Some(to);
                }
                true
            };
            match self.few_choices(partition, node, cost) {
                Some(few) => {
                    for to in few {
                        if let Ok(at) = unseen.binary_search(to)
                            && visit(*to)
                        {
                            unseen.remove(at);
                        }
                    }
                }
                None => unseen.retain(|to| !visit(*to)),
            }
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The nodes that may take a copy over from `node`, if they are not just any: in a set the rest of it, and at no
    /// cost only those that held it before, unless `node` did not.
    fn few_choices(&self, partition: usize, node: u32, cost: Cost) -> Option<&[u32]> {
        let list = self.lists.list(partition);
        match self.scope.source {
            Source::Within { home } => {
                let old = self.old.prefix(partition, home.min(self.scope.n));
                let rest = &list[self.scope.n..=self.scope.n];
                let is_costly = cost != Cost::Copies
                    && home <= self.scope.n
                    && old.contains(&node)
                    && !old.contains(&rest[0]);
                Some(if is_costly { &[] } else { rest })
            }
            Source::All { home, .. } => {
                let old = self.old.prefix(partition, home);
                (cost != Cost::Copies && old.contains(&node)).then_some(old)
            }
        }
    }

    /// Whether the node stands on the list in this layer.
    fn holds(&self, partition: usize, node: u32) -> bool {
        self.lists.list(partition)[self.scope.fixed..self.scope.n].contains(&node)
    }

    /// Whether `to` may stand on the list in the place of `from`.
    fn can_replace(&self, partition: usize, from: u32, to: u32) -> bool {
        let list = &self.lists.list(partition)[..self.scope.n];
        if list.contains(&to) {
            return false;
        }
        let (from, to) = (self.ground.rack(from), self.ground.rack(to));
        let count = |rack| list.iter().filter(|node| self.ground.rack(**node) == rack).count();
        from == to || (count(to) < self.tally.bounds(to).max && count(from) > self.tally.bounds(from).min)
    }

    fn replace(&mut self, holders: &mut Holders, (partition, from, to): Step) {
        let list = self.lists.list(partition);
        let position = list.iter().position(|node| *node == from).expect("it stands there");
        self.set(partition, position, to);
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        holders[to as usize].push(u32::try_from(partition).expect("at most 65,536"));
    }
}

/// The steps from `from` to `to`, by which a search came there.
fn path_to(to: u32, from: u32, came_by: &[Option<(usize, u32)>]) -> Vec<Step> {
    let mut path = Vec::new();
    let mut node = to;
    while node != from {
        let (partition, before) = came_by[node as usize].expect("the search was here");
        path.push((partition, before, node));
        node = before;
    }
    path.reverse();
    path
}
