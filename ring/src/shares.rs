//! Fair shares: how many copies each node of a datacenter should hold, as its racks and its weights allow.
//!
//! Two demands come before weights. A node holds at most one copy of a partition. And copies go to distinct racks as
//! far as there are racks: among the first n of a list no rack stands more often than it must, so with r racks of
//! enough nodes each rack stands there ceil(n / r) times at most. Lists nest, so what holds for n - 1 holds within
//! the first n: once every rack has one copy of a partition, none has fewer than one. What the demands leave open is
//! shared by weight, as water fills vessels that are joined: all levels rise together until a vessel is full.

use crate::Candidate;

/// How often one rack stands among the first n of each preference list: at least `min`, at most `max` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RackBounds {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

/// The bounds of every rack for the first `n`, from the racks' numbers of nodes. All nodes together bound `n`.
pub(crate) fn rack_bounds(sizes: &[usize], n: usize) -> Vec<RackBounds> {
    let n = n.min(sizes.iter().sum());
    let room = |level: usize| -> usize { sizes.iter().map(|size| *size.min(&level)).sum() };
    let level = (0..=n).find(|level| room(*level) >= n).expect("at level n, n nodes have room or all have");
    let bounds =
        |size: &usize| RackBounds { min: *size.min(&level.saturating_sub(1)), max: *size.min(&level) };
    sizes.iter().map(bounds).collect()
}

/// The fair share of each candidate, in their order, when each partition has `n` copies: copies of a partition, from
/// 0 to 1, so that all shares add up to `n` (or to the number of candidates, if that is less). Times the number of
/// partitions this is how many copies the node should hold.
///
/// A share is in proportion to the weight, but never above 1, because a node holds one copy of a partition; and a
/// rack's shares add up to no less and no more than distinct racks demand (see [`plan`](crate::plan)). Whoever is
/// held back by such a limit leaves the rest to the others, in proportion to their weights.
///
/// # Panics
///
/// If a weight is zero.
#[must_use]
pub fn fair_shares(candidates: &[Candidate], n: usize) -> Vec<f64> {
    let (racks, sizes) = number_racks(candidates);
    let weights: Vec<f64> = candidates.iter().map(|candidate| f64::from(candidate.weight)).collect();
    assert!(weights.iter().all(|weight| *weight > 0.0), "a weight of zero");
    let mut nodes_of = vec![Vec::new(); sizes.len()];
    for (node, rack) in racks.iter().enumerate() {
        nodes_of[*rack].push(weights[node]);
    }
    let bounds = rack_bounds(&sizes, n);
    let copies = n.min(candidates.len()) as f64;
    let share_of_rack = |rack: usize, level: f64| {
        filled(&nodes_of[rack], level).clamp(bounds[rack].min as f64, bounds[rack].max as f64)
    };
    let level =
        level_at(&weights, copies, |level| (0..sizes.len()).map(|rack| share_of_rack(rack, level)).sum());
    let level_in_rack: Vec<f64> = (0..sizes.len())
        .map(|rack| level_at(&weights, share_of_rack(rack, level), |level| filled(&nodes_of[rack], level)))
        .collect();
    racks.iter().zip(&weights).map(|(rack, weight)| (level_in_rack[*rack] * weight).min(1.0)).collect()
}

/// The racks of the candidates, numbered from 0 in the order of their ids, and how many candidates each has. Where each
/// has a rack of its own, racks demand nothing that nodes do not, and all count as one: that is quicker to plan.
pub(crate) fn number_racks(candidates: &[Candidate]) -> (Vec<usize>, Vec<usize>) {
    let mut ids: Vec<_> = candidates.iter().map(|candidate| candidate.rack).collect();
    ids.sort_unstable();
    ids.dedup();
    let number = |candidate: &Candidate| ids.binary_search(&candidate.rack).expect("it is among them");
    let racks: Vec<usize> = candidates.iter().map(number).collect();
    if ids.len() == candidates.len() && !ids.is_empty() {
        return (vec![0; candidates.len()], vec![candidates.len()]);
    }
    let mut sizes = vec![0; ids.len()];
    for rack in &racks {
        sizes[*rack] += 1;
    }
    (racks, sizes)
}

/// What nodes of these weights hold when the water stands at `level`: each its weight's part, at most 1.
fn filled(weights: &[f64], level: f64) -> f64 {
    weights.iter().map(|weight| (level * weight).min(1.0)).sum()
}

/// The lowest level at which `held`, which never falls as the level rises, reaches `copies`.
fn level_at(weights: &[f64], copies: f64, held: impl Fn(f64) -> f64) -> f64 {
    // At the top level even the lightest node is full. 64 halvings leave less than a copy's millionth.
    let lightest = weights.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (0.0, 1.0 / lightest);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if held(middle) < copies {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// What is to be rounded for one node, or for one rack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ideal {
    /// The fair number of copies.
    pub(crate) fair: f64,
    /// The fewest copies that can be had.
    pub(crate) min: usize,
    /// The most copies that can be had.
    pub(crate) max: usize,
    /// The copies that it has now. Of two that could be rounded up, the one that already has the copy is.
    pub(crate) current: usize,
}

/// Rounds to whole copies, up or down, so that they add up to `total`; further from the fair number only where `min`
/// or `max` demand it.
pub(crate) fn round(ideals: &[Ideal], total: usize) -> Vec<usize> {
    // Bisection leaves a share of 3 at 2.999...: the margin is far above its error and far below a copy.
    const MARGIN: f64 = 1e-6;
    let floor =
        |ideal: &Ideal| ((ideal.fair + MARGIN).floor() as usize).clamp(ideal.min, ideal.max.max(ideal.min));
    let mut whole: Vec<usize> = ideals.iter().map(floor).collect();
    let mut sum: usize = whole.iter().sum();
    while sum < total {
        let mut order: Vec<usize> =
            (0..ideals.len()).filter(|&index| whole[index] < ideals[index].max).collect();
        if order.is_empty() {
            break;
        }
        let above = |index: usize| (whole[index] + 1) as f64 - ideals[index].fair;
        let key = |index: &usize| (above(*index) >= 1.0 - MARGIN, ideals[*index].current <= whole[*index]);
        order.sort_by(|a, b| key(a).cmp(&key(b)).then(above(*a).total_cmp(&above(*b))).then(a.cmp(b)));
        order.truncate(total - sum);
        // One copy each in a round, and only to those as deserving as the first: the rest wait for the next round.
        let deserving = key(&order[0]).0;
        order.retain(|index| key(index).0 == deserving);
        sum += order.len();
        order.iter().for_each(|&index| whole[index] += 1);
    }
    while sum > total {
        let spare = (0..ideals.len()).filter(|&index| whole[index] > ideals[index].min);
        let above = |index: usize| whole[index] as f64 - ideals[index].fair;
        let Some(most) = spare.max_by(|a, b| above(*a).total_cmp(&above(*b)).then(b.cmp(a))) else { break };
        whole[most] -= 1;
        sum -= 1;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, RackId};

    /// Candidates from pairs of rack and weight.
    fn candidates(nodes: &[(u16, u32)]) -> Vec<Candidate> {
        let candidate = |(id, &(rack, weight)): (u32, &(u16, u32))| Candidate {
            node: NodeId(id),
            rack: RackId(rack),
            weight,
        };
        (0..).zip(nodes).map(candidate).collect()
    }

    fn assert_shares(nodes: &[(u16, u32)], n: usize, expected: &[f64]) {
        let shares = fair_shares(&candidates(nodes), n);
        let is_near = |(share, expected): (&f64, &f64)| (share - expected).abs() < 1e-9;
        assert!(shares.iter().zip(expected).all(is_near), "{nodes:?} n={n}: {shares:?}, not {expected:?}");
    }

    #[test]
    fn without_limits_weight_decides() {
        assert_shares(&[(0, 100), (0, 100), (0, 200)], 1, &[0.25, 0.25, 0.5]);
    }

    #[test]
    fn a_node_holds_one_copy_of_a_partition_and_the_others_share_the_rest() {
        assert_shares(&[(0, 100), (0, 100), (0, 200)], 2, &[0.5, 0.5, 1.0]);
        assert_shares(&[(0, 100), (0, 100), (0, 900)], 2, &[0.5, 0.5, 1.0]);
        assert_shares(&[(0, 100), (0, 300)], 5, &[1.0, 1.0]);
    }

    #[test]
    fn with_as_many_racks_as_copies_each_rack_holds_each_partition_once() {
        let nodes = [(0, 100), (1, 100), (1, 100), (2, 100), (2, 300)];
        assert_shares(&nodes, 3, &[1.0, 0.5, 0.5, 0.25, 0.75]);
    }

    #[test]
    fn a_rack_that_is_full_leaves_the_rest_to_the_others_by_weight() {
        // By weight alone the first rack would hold 1.5 copies of each partition. It holds 1; the other two share 1.
        let nodes = [(0, 300), (0, 300), (1, 100), (2, 100)];
        assert_shares(&nodes, 2, &[0.5, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn a_small_rack_keeps_what_shorter_prefixes_demand() {
        // At n = 2 both racks hold each partition once. At n = 3 the second would have less by its weight alone.
        let nodes = [(0, 200), (0, 200), (0, 200), (1, 50), (1, 50)];
        assert_shares(&nodes, 2, &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.5, 0.5]);
        assert_shares(&nodes, 3, &[2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 0.5, 0.5]);
    }

    #[test]
    fn racks_are_bounded_as_evenly_as_their_sizes_allow() {
        let bounds = |sizes: &[usize], n| -> Vec<(usize, usize)> {
            rack_bounds(sizes, n).iter().map(|bounds| (bounds.min, bounds.max)).collect()
        };
        assert_eq!(bounds(&[4, 4, 4], 3), [(0, 1); 3]);
        assert_eq!(bounds(&[4, 4, 4], 4), [(1, 2); 3]);
        assert_eq!(bounds(&[1, 5], 4), [(1, 1), (2, 3)]);
        assert_eq!(bounds(&[1, 1], 7), [(0, 1); 2]);
    }

    #[test]
    fn rounding_adds_up_and_leaves_copies_where_they_are() {
        let ideal = |fair, current| Ideal { fair, min: 0, max: 10, current };
        assert_eq!(round(&[ideal(2.5, 2), ideal(2.5, 3)], 5), [2, 3]);
        assert_eq!(round(&[ideal(2.6, 2), ideal(2.2, 3), ideal(2.2, 2)], 7), [2, 3, 2]);
        assert_eq!(round(&[ideal(3.0 - 1e-12, 3), ideal(1.0 + 1e-12, 1)], 4), [3, 1]);
        let tight = Ideal { fair: 2.5, min: 4, max: 4, current: 4 };
        assert_eq!(round(&[tight, ideal(2.5, 2)], 5), [4, 1]);
    }
}
