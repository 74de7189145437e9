//! Which layers are planned, in which order: the strategies of the planner.
//!
//! 1. The *sets* of the first 3, 5, 7 and all entries, from the inside out, each containing the one before. These are
//!    the usual numbers of copies, so here a change costs data, and the least is changed.
//! 2. The *order* within each set, which costs no data: the sets of 6, 4, 2 and 1 are each chosen from the one around
//!    them.
//!
//! What is best for a short prefix can stand in the way of a longer one, and what moves least depends on the placement
//! at hand in ways that no one order of planning meets. So there are several strategies, and the best result is taken.

use crate::{
    LIST_MAX, REPLICAS_MAX,
    layer::{Ground, Layer, Lists, NONE, Scope, Source},
    shares,
};

/// What a planner may do this way or that. No way is the best for every placement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strategy {
    /// How far from its fair share a node may be, as a part of it, before copies are moved for balance alone. With a
    /// little play, the copies that have to move anyway restore the balance over time; the promise is 5 %.
    pub(crate) play: f64,
    /// Where more could be kept than there is room for, whether the last on the old list goes, or the fullest.
    pub(crate) drops_last: bool,
    /// The shortest prefix that is planned as a set, at least. Shorter ones are left to the order.
    pub(crate) core: usize,
    /// How many entries of the old lists are looked at. The others do not stay where they were.
    pub(crate) keeps: usize,
}

/// The prefixes that are planned as sets, because so many copies are usually kept. The whole list is the last.
const ANCHORS: [usize; 3] = [3, 5, 7];

/// The prefixes in which movement is counted, to choose between plans.
const MOVED_AT: [usize; 2] = [3, 5];

/// A plan that moves no more than this, relative to what balance makes necessary, is not worth another try.
const ENOUGH: f64 = 1.08;

/// The strategies, in the order in which they are tried.
const STRATEGIES: [Strategy; 6] = [
    Strategy { play: 0.03, drops_last: false, core: 1, keeps: LIST_MAX },
    Strategy { play: 0.03, drops_last: true, core: 1, keeps: LIST_MAX },
    Strategy { play: 0.045, drops_last: false, core: 1, keeps: LIST_MAX },
    Strategy { play: 0.045, drops_last: true, core: 1, keeps: LIST_MAX },
    Strategy { play: 0.045, drops_last: false, core: 5, keeps: LIST_MAX },
    Strategy { play: 0.045, drops_last: true, core: 5, keeps: LIST_MAX },
];

/// What is tried for the sake of balance, in this order, where none of the strategies made every prefix fair. The last
/// ones move many copies at n = 6 and 7, or at n = 5 even.
const LAST_RESORTS: [Strategy; 4] = [
    Strategy { play: 0.0, drops_last: false, core: 1, keeps: LIST_MAX },
    Strategy { play: 0.0, drops_last: false, core: LIST_MAX, keeps: LIST_MAX },
    Strategy { play: 0.03, drops_last: false, core: 1, keeps: 5 },
    Strategy { play: 0.03, drops_last: false, core: 1, keeps: 3 },
];

/// A plan, and what speaks against it.
struct Attempt {
    lists: Lists,
    /// How many prefixes are not fair.
    unfair: usize,
    /// The copies moved, as a part of those that balance makes necessary, for each of [`MOVED_AT`].
    ratios: [f64; 2],
}

/// Plans by one strategy after the other until one moves little, and else takes the best.
pub(crate) fn best_lists(ground: &Ground, old: &Lists, width: usize) -> Lists {
    let necessary = MOVED_AT.map(|n| necessary(ground, old, n.min(width)));
    let attempt = |strategy: Strategy| {
        let kept = old.truncated(strategy.keeps);
        let (lists, unfair) = Planner::new(ground, &kept, width, strategy).plan();
        let mut ratios = MOVED_AT.map(|n| moved(old, &lists, ground, n.min(width)) as f64);
        ratios.iter_mut().zip(necessary).for_each(|(ratio, necessary)| *ratio /= necessary.max(1.0));
        Attempt { lists, unfair, ratios }
    };
    let [first, others @ ..] = STRATEGIES;
    let mut best = attempt(first);
    for strategy in others {
        if best.unfair == 0 && best.ratios.iter().all(|ratio| *ratio <= ENOUGH) {
            break;
        }
        best = best.or_better(attempt(strategy));
    }
    for strategy in LAST_RESORTS {
        if best.unfair == 0 {
            break;
        }
        best = best.or_better(attempt(strategy));
    }
    best.lists
}

impl Attempt {
    /// The better of the two; of equals, this one. Balance counts more than movement.
    fn or_better(self, other: Attempt) -> Attempt {
        let cost = |attempt: &Attempt| (attempt.unfair, attempt.ratios.iter().sum::<f64>());
        if cost(&other) < cost(&self) { other } else { self }
    }
}

/// The copies that fairness makes necessary among the first `n`, at least.
fn necessary(ground: &Ground, old: &Lists, n: usize) -> f64 {
    let mut counts = vec![0.0; ground.candidates.len()];
    for partition in 0..ground.partitions() {
        old.prefix(partition, n)
            .iter()
            .filter(|node| **node != NONE)
            .for_each(|node| counts[*node as usize] += 1.0);
    }
    let fair = shares::fair_shares(&ground.candidates, n);
    let missing = |(fair, count): (&f64, &f64)| (fair * ground.partitions() as f64 - count).max(0.0);
    fair.iter().zip(&counts).map(missing).sum()
}

/// The copies that `lists` need among the first `n` and `old` has not.
fn moved(old: &Lists, lists: &Lists, ground: &Ground, n: usize) -> usize {
    let of = |partition| {
        let before = old.prefix(partition, n);
        lists.prefix(partition, n).iter().filter(|node| !before.contains(node)).count()
    };
    (0..ground.partitions()).map(of).sum()
}

/// One way to plan all lists of a datacenter, layer by layer.
struct Planner<'a> {
    ground: &'a Ground,
    old: &'a Lists,
    width: usize,
    strategy: Strategy,
    /// The prefixes in which a change costs copies.
    homes: Vec<usize>,
    /// The prefixes that are planned as sets.
    sets: Vec<usize>,
}

impl<'a> Planner<'a> {
    fn new(ground: &'a Ground, old: &'a Lists, width: usize, strategy: Strategy) -> Planner<'a> {
        let homes: Vec<usize> = ANCHORS.into_iter().filter(|home| *home < width).chain([width]).collect();
        // Where a prefix fills up all racks, the sets around it leave no choice of the rack, so no order of theirs
        // makes it fair: it is a set too, unless there is but one rack to choose from.
        let is_forced = |n: usize| {
            let bounds = shares::rack_bounds(&ground.rack_sizes, n);
            let (min, max) =
                bounds.iter().fold((0, 0), |(min, max), bounds| (min + bounds.min, max + bounds.max));
            max == n && max > min + 1
        };
        let sets =
            (strategy.core.min(width)..=width).filter(|n| homes.contains(n) || is_forced(*n)).collect();
        Planner { ground, old, width, strategy, homes, sets }
    }

    /// The planned lists, and how many prefixes could not be made fair.
    fn plan(&self) -> (Lists, usize) {
        let mut lists = Lists::new(self.ground.partitions(), self.width);
        let mut unfair = self.plan_sets(&mut lists);
        let mut fixed = 0;
        for &set in &self.sets {
            unfair.extend(self.plan_order(self.old, &mut lists, fixed, set));
            fixed = set;
        }
        let unfair = self.mend(&mut lists, unfair);
        (lists, unfair)
    }

    /// Plans each of the sets, from all nodes. Which could not be made fair.
    fn plan_sets(&self, lists: &mut Lists) -> Vec<usize> {
        let mut unfair = Vec::new();
        let mut fixed = 0;
        for &n in &self.sets {
            let home = *self.homes.iter().find(|home| **home >= n).expect("the last is the whole list");
            let next = self.homes.iter().copied().find(|next| *next > home);
            let scope = Scope { fixed, n, source: Source::All { home, next } };
            if !Layer::new(self.ground, self.old, lists, scope, self.strategy).plan() && n <= REPLICAS_MAX {
                unfair.push(n);
            }
            fixed = n;
        }
        unfair
    }

    /// Plans the order of the entries from `fixed` to `set`, the longest prefix first. Which could not be made fair.
    fn plan_order(&self, old: &Lists, lists: &mut Lists, fixed: usize, set: usize) -> Vec<usize> {
        let mut unfair = Vec::new();
        for n in (fixed + 1..set).rev() {
            let homes = self.homes.iter().copied().filter(|home| *home <= n && *home > fixed);
            let scope = Scope { fixed, n, source: Source::Within { home: homes.max().unwrap_or(0) } };
            if !Layer::new(self.ground, old, lists, scope, self.strategy).plan() && n <= REPLICAS_MAX {
                unfair.push(n);
            }
        }
        unfair
    }

    /// Mends prefixes that are not fair: a shorter set may stand in the way of a longer prefix, but not the other way
    /// round. So the order within the set around them is planned over, giving up one shorter set after the other. How
    /// many prefixes are not fair in the end.
    fn mend(&self, lists: &mut Lists, unfair: Vec<usize>) -> usize {
        let planned = lists.clone();
        let mut least_unfair = unfair.len();
        let (Some(&least), Some(&most)) = (unfair.iter().min(), unfair.iter().max()) else { return 0 };
        let around = self.sets.iter().copied().find(|set| *set > most).unwrap_or(self.width);
        let below = self.sets.iter().copied().rev().filter(|set| *set < least).map(|set| (set, around));
        for (fixed, around) in below.chain([(0, around), (0, self.width)]) {
            let mut mended = planned.clone();
            let unfair = self.plan_order(&planned, &mut mended, fixed, around).len();
            if unfair < least_unfair {
                (least_unfair, *lists) = (unfair, mended);
            }
            if unfair == 0 {
                break;
            }
        }
        least_unfair
    }
}
