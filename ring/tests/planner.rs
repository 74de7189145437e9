//! What the planner promises, measured over random clusters and changes of theirs.
//!
//! A case is a number: it decides the cluster, its placement and the change. A failure names its case, and
//! `QUORATE_CASE=<number> cargo test -p quorate-ring --test planner -- --ignored --nocapture one_case` replays it.
//! The slice that always runs has some hundred cases; the full sweep is
//! `cargo test --release -p quorate-ring --test planner -- --ignored --nocapture full_sweep`.
#![expect(clippy::print_stdout, reason = "the figures are what these tests are for")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;

use ring::{Candidate, Epoch, NodeId, PartitionId, Partitions, Placement, RackId, fair_shares, plan};

/// The prefixes for which movement is promised to be small.
const MOVED_AT: [usize; 2] = [3, 5];

/// SplitMix64: the whole source of chance here.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A cluster of one datacenter, and the chance that decides what becomes of it.
struct Case {
    number: u64,
    chance: Chance,
    partitions: Partitions,
    has_equal_weights: bool,
    racks: u64,
    candidates: Vec<Candidate>,
}

impl Case {
    /// 3 to `nodes_max` nodes in 1 to 5 racks, of equal or unequal sizes and weights.
    fn new(number: u64, partitions: u32, nodes_max: u64) -> Case {
        let mut chance = Chance(number);
        let nodes = 3 + chance.below(nodes_max - 2);
        let racks = 1 + chance.below(5);
        let has_equal_weights = chance.below(2) == 0;
        let has_equal_racks = chance.below(2) == 0;
        let partitions = Partitions::new(partitions).unwrap();
        let mut case = Case { number, chance, partitions, has_equal_weights, racks, candidates: Vec::new() };
        for node in 0..nodes {
            // Of two draws the higher: the last racks get most nodes.
            let draw = case.chance.below(racks).max(case.chance.below(racks));
            case.join(node, if has_equal_racks { node % racks } else { draw });
        }
        case
    }

    fn join(&mut self, node: u64, rack: u64) {
        let weight = if self.has_equal_weights { 100 } else { 50 + self.chance.below(151) };
        self.candidates.push(Candidate {
            node: NodeId(u32::try_from(node).unwrap()),
            rack: RackId(u16::try_from(rack).unwrap()),
            weight: u32::try_from(weight).unwrap(),
        });
    }

    /// One node joins, now and then in a new rack, or one leaves.
    fn change(&mut self, step: u64) {
        if self.candidates.len() <= 3 || self.chance.below(2) == 0 {
            let racks = if self.chance.below(10) == 0 { 5 } else { self.racks };
            let rack = self.chance.below(racks);
            self.join(1000 + step, rack);
        } else {
            let index = self.chance.below(self.candidates.len() as u64);
            self.candidates.remove(usize::try_from(index).unwrap());
        }
    }
}

/// The racks of candidates, and the fewest and most copies of a partition that each holds among the first `n`.
fn rack_bounds(candidates: &[Candidate], n: usize) -> BTreeMap<RackId, (usize, usize)> {
    let mut sizes: BTreeMap<RackId, usize> = BTreeMap::new();
    for candidate in candidates {
        *sizes.entry(candidate.rack).or_default() += 1;
    }
    let mut level = 0;
    while sizes.values().map(|size| *size.min(&level)).sum::<usize>() < n.min(candidates.len()) {
        level += 1;
    }
    sizes.into_iter().map(|(rack, size)| (rack, (size.min(level.max(1) - 1), size.min(level)))).collect()
}

/// Asserts that racks and nodes are distinct, and that every prefix is balanced. The worst deviation from a fair share
/// among those of more than one copy, as a part of the share.
fn check(case: &Case, placement: &Placement) -> f64 {
    let racks: BTreeMap<NodeId, RackId> = case.candidates.iter().map(|c| (c.node, c.rack)).collect();
    let mut worst: f64 = 0.0;
    for n in 1..=case.candidates.len().min(7) {
        let bounds = rack_bounds(&case.candidates, n);
        let mut counts: BTreeMap<NodeId, usize> = racks.keys().map(|node| (*node, 0)).collect();
        for partition in case.partitions.iter() {
            let mut in_rack: BTreeMap<RackId, usize> = BTreeMap::new();
            let replicas = placement.replicas(partition, n);
            assert_eq!(replicas.len(), n, "case {}: a short list", case.number);
            for (position, owner) in replicas.iter().enumerate() {
                let is_earlier = replicas[..position].iter().any(|other| other.node == owner.node);
                assert!(!is_earlier, "case {}: {} twice on a list", case.number, owner.node);
                *counts.get_mut(&owner.node).unwrap() += 1;
                *in_rack.entry(racks[&owner.node]).or_default() += 1;
            }
            for (rack, count) in in_rack {
                assert!(count <= bounds[&rack].1, "case {}: {count} at n = {n} in {rack}", case.number);
            }
        }
        for (candidate, share) in case.candidates.iter().zip(fair_shares(&case.candidates, n)) {
            let (fair, count) = (share * f64::from(case.partitions.count()), counts[&candidate.node] as f64);
            let off = (count - fair).abs();
            let limit = (0.05 * fair).max(1.0) + 1e-6;
            assert!(
                off <= limit,
                "case {}: {} has {count}, not {fair} at n = {n}",
                case.number,
                candidate.node
            );
            worst = if off > 1.0 + 1e-6 { worst.max(off / fair) } else { worst };
        }
    }
    worst
}

/// The fewest copies that racks and balance demand be moved among the first `n`: a lower bound, which not every
/// placement can meet. The greatest of three is taken.
///
/// - What nodes gain: the sum of max(0, fair share after - fair share before); but a rack gains at least one copy for
///   each list on which, without those who left, it stands less often than it must.
/// - What nodes lose, likewise.
/// - List by list, the entries that must change: those of nodes that left, and those that racks demand.
///
/// A rack must stand on each list as often as bounds say, and where its fair share is at a bound, exactly that often.
fn necessary(placement: &Placement, before: &[Candidate], case: &Case, n: usize) -> f64 {
    let after = &case.candidates;
    let count = f64::from(case.partitions.count());
    let shares = |candidates: &[Candidate]| -> BTreeMap<NodeId, (RackId, f64)> {
        let shares = fair_shares(candidates, n).into_iter();
        candidates.iter().zip(shares).map(|(c, share)| (c.node, (c.rack, share))).collect()
    };
    let (old, new) = (shares(before), shares(after));
    let mut bounds = rack_bounds(after, n);
    for (rack, (min, max)) in &mut bounds {
        let total: f64 = new.values().filter(|(of, _)| of == rack).map(|(_, share)| share).sum();
        if (total - *max as f64).abs() < 1e-6 {
            *min = *max;
        } else if (total - *min as f64).abs() < 1e-6 {
            *max = *min;
        }
    }
    let racks: Vec<RackId> = before.iter().chain(after).map(|candidate| candidate.rack).collect();
    let mut gains: BTreeMap<RackId, (f64, f64)> = racks.iter().map(|rack| (*rack, (0.0, 0.0))).collect();
    let mut losses = gains.clone();
    for node in old.keys().chain(new.keys().filter(|node| !old.contains_key(node))) {
        let share =
            |shares: &BTreeMap<NodeId, (RackId, f64)>| shares.get(node).map_or(0.0, |(_, share)| *share);
        let rack = old.get(node).or(new.get(node)).unwrap().0;
        let difference = (share(&new) - share(&old)) * count;
        gains.get_mut(&rack).unwrap().0 += difference.max(0.0);
        losses.get_mut(&rack).unwrap().0 += (-difference).max(0.0);
    }
    let mut by_list = 0;
    for partition in case.partitions.iter() {
        let mut in_rack: BTreeMap<RackId, usize> = racks.iter().map(|rack| (*rack, 0)).collect();
        let (mut gained, mut lost) = (0, 0);
        for owner in placement.replicas(partition, n) {
            match new.get(&owner.node) {
                Some((rack, _)) => *in_rack.get_mut(rack).unwrap() += 1,
                None => {
                    lost += 1;
                    losses.get_mut(&old[&owner.node].0).unwrap().1 += 1.0;
                }
            }
        }
        for (rack, stands) in in_rack {
            let (min, max) = bounds.get(&rack).copied().unwrap_or((0, 0));
            gained += min.saturating_sub(stands);
            lost += stands.saturating_sub(max);
            gains.get_mut(&rack).unwrap().1 += min.saturating_sub(stands) as f64;
            losses.get_mut(&rack).unwrap().1 += stands.saturating_sub(max) as f64;
        }
        by_list += gained.max(lost);
    }
    let sum = |racks: &BTreeMap<RackId, (f64, f64)>| -> f64 { racks.values().map(|(a, b)| a.max(*b)).sum() };
    sum(&gains).max(sum(&losses)).max(f64::from(u32::try_from(by_list).unwrap()))
}

/// What was measured over many changes.
#[derive(Default)]
struct Figures {
    balance_worst: f64,
    /// For each of [`MOVED_AT`].
    movement: [Movement; 2],
}

#[derive(Default)]
struct Movement {
    /// Copies moved, in all changes together.
    moved: f64,
    /// Copies that had to be.
    necessary: f64,
    /// The ratio of the two in each change, and its case.
    ratios: Vec<(f64, u64)>,
}

impl Figures {
    /// Plans the case's cluster and then, step by step, changes of it.
    fn measure(&mut self, mut case: Case, steps: u64) {
        let mut placement = plan(None, &case.candidates, case.partitions, Epoch(1)).next;
        self.balance_worst = self.balance_worst.max(check(&case, &placement));
        for step in 0..steps {
            let before = case.candidates.clone();
            case.change(step);
            let plan = plan(Some(&placement), &case.candidates, case.partitions, Epoch(2 + step));
            self.balance_worst = self.balance_worst.max(check(&case, &plan.next));
            for (n, movement) in MOVED_AT.into_iter().zip(&mut self.movement) {
                let (moved, necessary) =
                    (plan.copies_moved(n) as f64, necessary(&placement, &before, &case, n));
                // Where every node has every copy, or one copy is a tenth of all, a ratio says nothing.
                if n < before.len().min(case.candidates.len()) && necessary >= 10.0 {
                    movement.moved += moved;
                    movement.necessary += necessary;
                    movement.ratios.push((moved / necessary, case.number));
                }
            }
            placement = plan.next;
        }
    }

    /// Prints the figures and asserts what is promised of them: no more than necessary on average, and above 1.1 times
    /// as much at most in `exceptions` of the changes, never above `worst`.
    fn report(&mut self, what: &str, exceptions: f64, worst: f64) {
        println!("{what}: worst deviation from a fair share {:.2} %", 100.0 * self.balance_worst);
        for (n, Movement { moved, necessary, ratios }) in MOVED_AT.into_iter().zip(&mut self.movement) {
            ratios.sort_by(|a, b| b.partial_cmp(a).unwrap());
            let above = ratios.iter().take_while(|(ratio, _)| *ratio > 1.1).count();
            let part = above as f64 / ratios.len() as f64;
            println!(
                "  n = {n}: {moved} copies moved, {necessary:.0} necessary: {:.4}; of {} changes {above} ({:.2} %) \
                 above 1.1; worst (ratio, case) {:?}",
                *moved / *necessary,
                ratios.len(),
                100.0 * part,
                &ratios[..3],
            );
            assert!(*moved <= 1.02 * *necessary, "{what}: too much movement at n = {n} on average");
            assert!(part <= exceptions, "{what}: too often too much movement at n = {n}");
            assert!(ratios[0].0 <= worst, "{what}: far too much movement at n = {n}: {:?}", ratios[0]);
        }
    }
}

#[test]
fn every_prefix_is_balanced_racks_are_distinct_and_little_moves() {
    let mut figures = Figures::default();
    for number in 0..80 {
        figures.measure(Case::new(number, 1024, 100), 1);
    }
    for number in 10_000..10_060 {
        figures.measure(Case::new(number, 1024, 14), 2);
    }
    figures.report("slice", 0.05, 1.8);
}

#[test]
fn balance_and_racks_hold_for_other_numbers_of_partitions_and_through_many_changes() {
    let mut figures = Figures::default();
    for number in 40_000..40_030 {
        figures.measure(Case::new(number, 64, 20), 8);
    }
    for number in 30_000..30_004 {
        figures.measure(Case::new(number, 16_384, 100), 1);
    }
    println!("worst deviation from a fair share {:.2} %", 100.0 * figures.balance_worst);
}

#[test]
fn a_placement_without_plan_comes_into_balance() {
    // Lists as a clockwise walk leaves them: each node is followed by the next. Racks and balance are both wrong.
    let case = Case::new(7, 256, 30);
    let nodes = case.candidates.len();
    let node = |index: usize| case.candidates[index % nodes].node;
    let owner = |index: usize| ring::Owner { node: node(index), gained: Epoch(1) };
    let owners = (0..256).flat_map(|start| (start..start + nodes.min(9)).map(owner)).collect();
    let next =
        plan(Some(&Placement::new(nodes.min(9), owners)), &case.candidates, case.partitions, Epoch(2)).next;
    check(&case, &next);
}

#[test]
fn the_load_of_a_node_that_fails_falls_on_many_others() {
    let mut case = Case::new(0, 1024, 3);
    case.candidates.clear();
    case.has_equal_weights = true;
    (0..60).for_each(|node| case.join(node, node % 5));
    let placement = plan(None, &case.candidates, case.partitions, Epoch(1)).next;
    for candidate in &case.candidates {
        let lists = case.partitions.iter().map(|partition| placement.replicas(partition, 3));
        let shared = lists.filter(|list| list.iter().any(|owner| owner.node == candidate.node));
        let mut partners: Vec<NodeId> = shared.flatten().map(|owner| owner.node).collect();
        partners.sort_unstable();
        partners.dedup();
        // 51 lists with two others each, of 48 that are in other racks.
        assert!(partners.len() > 35, "{} shares its lists with {} only", candidate.node, partners.len());
    }
}

#[test]
fn another_rack_is_used_as_soon_as_it_is_there() {
    let mut case = Case::new(0, 256, 3);
    case.candidates.clear();
    (0..6).for_each(|node| case.join(node, node % 2));
    let first = plan(None, &case.candidates, case.partitions, Epoch(1)).next;
    case.join(6, 2);
    let next = plan(Some(&first), &case.candidates, case.partitions, Epoch(2)).next;
    check(&case, &next);
    let has_new =
        |partition: PartitionId| next.replicas(partition, 3).iter().any(|owner| owner.node == NodeId(6));
    assert!(case.partitions.iter().all(has_new));
}

#[test]
#[ignore = "takes a minute; see the module's documentation for the command"]
fn full_sweep() {
    let mut figures = Figures::default();
    (0..2000).for_each(|number| figures.measure(Case::new(number, 1024, 100), 1));
    figures.report("3 to 100 nodes, 1,024 partitions", 0.03, 1.8);
    let mut figures = Figures::default();
    (10_000..12_000).for_each(|number| figures.measure(Case::new(number, 1024, 14), 1));
    figures.report("3 to 14 nodes, 1,024 partitions", 0.04, 1.8);
    let mut figures = Figures::default();
    (20_000..20_200).for_each(|number| figures.measure(Case::new(number, 1024, 40), 12));
    figures.report("12 changes one after the other", 0.05, 2.0);
    let mut figures = Figures::default();
    (30_000..30_040).for_each(|number| figures.measure(Case::new(number, 16_384, 100), 1));
    figures.report("3 to 100 nodes, 16,384 partitions", 0.05, 1.8);
    let mut figures = Figures::default();
    (40_000..40_500).for_each(|number| figures.measure(Case::new(number, 64, 20), 4));
    println!("64 partitions: worst deviation from a fair share {:.2} %", 100.0 * figures.balance_worst);
}

#[test]
#[ignore = "replays the case that QUORATE_CASE names"]
fn one_case() {
    let number = option_env!("QUORATE_CASE").map_or(0, |number| number.parse().unwrap());
    // The thousands say which part of the sweep it is from; more steps than that had do no harm.
    let (partitions, nodes_max, steps) = match number {
        10_000..20_000 => (1024, 14, 2),
        40_000.. => (64, 20, 8),
        20_000..30_000 => (1024, 40, 12),
        30_000..40_000 => (16_384, 100, 1),
        _ => (1024, 100, 1),
    };
    let mut figures = Figures::default();
    figures.measure(Case::new(number, partitions, nodes_max), steps);
    for (n, Movement { moved, necessary, .. }) in MOVED_AT.into_iter().zip(&figures.movement) {
        println!("case {number}, n = {n}: {moved} copies moved, {necessary:.1} necessary");
    }
}

#[test]
#[ignore = "times a release build: cargo test --release -p quorate-ring --test planner -- --ignored under_a_second"]
#[expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this one measures time")]
fn a_thousand_nodes_and_65536_partitions_are_planned_under_a_second() {
    let mut case = Case::new(1, 65_536, 3);
    case.candidates.clear();
    case.has_equal_weights = false;
    (0..1000).for_each(|node| case.join(node, node % 5));
    let start = std::time::Instant::now();
    let first = plan(None, &case.candidates, case.partitions, Epoch(1)).next;
    let planned = start.elapsed();
    case.join(1000, 2);
    let start = std::time::Instant::now();
    let next = plan(Some(&first), &case.candidates, case.partitions, Epoch(2));
    let joined = start.elapsed();
    println!(
        "planned in {planned:?}, one more node joined in {joined:?}, {} copies moved",
        next.copies_moved(3)
    );
    assert!(planned.as_secs() < 1 && joined.as_secs() < 1);
}
