//! Whom to ask: a replica of the key, near, connected, well of late, and not too busy.

use std::sync::Arc;

use ring::{ClusterDocument, Keyspace, NodeId, Token};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    attempts::Kind,
    nodes::{Condition, Node, Nodes},
    random::Random,
    topology::View,
};

/// How many times the cost of one node has to be in the cost of another for the difference to count.
const CLEARLY: f64 = 1.5;

/// What speaks for and against a node.
#[derive(Clone, Copy, Debug)]
struct Merits {
    /// In a row, of a node that is better left alone; otherwise none.
    failures: u32,
    /// Whether it is sent no more at present, and has just refused a request, because it has too much to do.
    is_full: bool,
    is_avoided: bool,
    is_local: bool,
    is_connected: bool,
    cost: f64,
}

/// A node to ask.
pub(crate) type Choice = Option<Arc<Node>>;

/// Chooses among nodes that were not tried yet.
pub(crate) struct Chooser<'a> {
    pub(crate) nodes: &'a Nodes,
    pub(crate) view: &'a View,
    pub(crate) tried: &'a [NodeId],
    pub(crate) random: &'a Random,
    pub(crate) kind: Kind,
    pub(crate) now: Instant,
}

impl Chooser<'_> {
    /// Chooses a node for a request for `key`: a replica if there is one, else any member, which forwards. None if all
    /// were tried.
    ///
    /// A replica that would do as well and has no connection yet gets one meanwhile, so that what follows is spread
    /// over all of them.
    pub(crate) fn choose(&self, keyspace: &Keyspace, key: &[u8], n: Option<u8>) -> Choice {
        let document = &self.view.document;
        let partition = document.partitions.of(Token::of_key(key));
        let replicas = document.replicas(keyspace, partition, n);
        self.best(replicas.map(|replica| replica.owner.node)).or_else(|| self.choose_any())
    }

    /// Chooses any member.
    pub(crate) fn choose_any(&self) -> Choice {
        self.best(self.view.document.members.keys().copied())
    }

    /// The best of several nodes, and a connection for one that is as good but for that.
    fn best(&self, candidates: impl Iterator<Item = NodeId>) -> Choice {
        let untried = candidates.filter(|node| !self.tried.contains(node));
        let candidates: SmallVec<[Arc<Node>; 8]> = untried.filter_map(|id| self.nodes.get(id)).collect();
        let merits: SmallVec<[Merits; 8]> = candidates.iter().map(|node| self.merits(node)).collect();
        let chosen = pick(&merits, self.random)?;
        candidates[chosen].chosen(self.now);
        if merits[chosen].is_connected {
            let is_as_good = |other: &Merits| {
                other.failures == 0
                    && !other.is_avoided
                    && other.is_local == merits[chosen].is_local
                    && !other.is_connected
            };
            // One at a time: a client of a thousand nodes connects to those whose keys it uses.
            let spare = candidates.iter().zip(&merits).find(|(_, merits)| is_as_good(merits));
            if let Some((node, _)) = spare {
                self.nodes.prepare(node);
            }
        }
        Some(candidates[chosen].clone())
    }

    fn merits(&self, node: &Node) -> Merits {
        let Condition { failures, is_full, is_avoided, cost } = node.condition(self.kind, self.now);
        let (is_local, is_connected) = (self.view.is_local(node.id()), node.is_connected());
        Merits { failures, is_full, is_avoided, is_local, is_connected, cost }
    }
}

/// Picks among the best: of two of them at random the one that clearly costs less, else the first. Always taking the
/// cheapest of all would send every client to the same node at once, and a preference for every small difference would
/// leave a node idle that is as good as the others.
fn pick(merits: &[Merits], random: &Random) -> Option<usize> {
    let rank = |merits: &Merits| {
        (merits.failures, merits.is_full, merits.is_avoided, !merits.is_local, !merits.is_connected)
    };
    let best = merits.iter().map(rank).min()?;
    let equals: SmallVec<[usize; 8]> =
        (0..merits.len()).filter(|index| rank(&merits[*index]) == best).collect();
    let first = random.below(equals.len());
    if equals.len() == 1 {
        return Some(equals[0]);
    }
    let second = (first + 1 + random.below(equals.len() - 1)) % equals.len();
    let (first, second) = (equals[first], equals[second]);
    let is_clearly_cheaper = merits[second].cost * CLEARLY < merits[first].cost;
    Some(if is_clearly_cheaper { second } else { first })
}

/// The replicas of a partition, those of the client's datacenter first.
pub(crate) fn replicas_of(
    document: &ClusterDocument,
    view: &View,
    keyspace: &Keyspace,
    partition: ring::PartitionId,
    n: Option<u8>,
) -> Vec<ring::Replica> {
    let mut replicas: Vec<_> = document.replicas(keyspace, partition, n).collect();
    replicas.sort_by_key(|replica| !view.is_local(replica.owner.node));
    replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Merits = Merits {
        failures: 0,
        is_full: false,
        is_avoided: false,
        is_local: true,
        is_connected: true,
        cost: 0.001,
    };

    /// How often each is picked.
    fn picks(merits: &[Merits]) -> Vec<u32> {
        let random = Random::new();
        let mut picks = vec![0; merits.len()];
        for _ in 0..1000 {
            picks[pick(merits, &random).unwrap()] += 1;
        }
        picks
    }

    #[test]
    fn a_node_that_failed_lately_comes_last_and_a_local_one_before_a_remote_one() {
        let resting = Merits { failures: 1, ..GOOD };
        let remote = Merits { is_local: false, ..GOOD };
        let unconnected = Merits { is_connected: false, ..GOOD };
        assert_eq!(
            picks(&[resting, remote, unconnected]),
            [0, 0, 1000],
            "connecting costs less than distance"
        );
        assert_eq!(picks(&[resting, remote]), [0, 1000]);
        assert_eq!(picks(&[resting]), [1000], "and better than none");
        let dead = Merits { failures: 4, cost: 0.0001, ..GOOD };
        assert_eq!(
            picks(&[dead, resting]),
            [0, 1000],
            "of those that failed, the one that failed least often"
        );
        assert_eq!(pick(&[], &Random::new()), None);
    }

    #[test]
    fn a_node_that_has_too_much_to_do_is_asked_after_all_others_that_are_up() {
        let refusing = Merits { is_avoided: true, ..GOOD };
        let full = Merits { is_full: true, ..refusing };
        let remote = Merits { is_local: false, ..GOOD };
        let dead = Merits { failures: 1, ..GOOD };
        assert_eq!(picks(&[full, refusing, remote, dead]), [0, 0, 1000, 0]);
        assert_eq!(picks(&[full, refusing, dead]), [0, 1000, 0]);
        assert_eq!(picks(&[full, dead]), [1000, 0], "waiting for a dead one would help nobody");
    }

    #[test]
    fn the_clearly_cheaper_of_two_is_taken_and_the_dearest_never() {
        let [cheap, dear, dearest] = [0.001, 0.002, 0.004].map(|cost| Merits { cost, ..GOOD });
        let picks = picks(&[dearest, cheap, dear]);
        assert_eq!(picks[0], 0);
        assert!(picks[1] > 550 && picks[2] > 200, "{picks:?}");
    }

    #[test]
    fn equals_share_the_load() {
        let alike = Merits { cost: GOOD.cost * 1.4, ..GOOD };
        let picks = picks(&[GOOD, alike, GOOD]);
        assert!(picks.iter().all(|picks| (230..440).contains(picks)), "{picks:?}");
    }
}
