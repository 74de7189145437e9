//! Laws of tokens, partitions and fair shares, for any arguments.

use proptest::prelude::{ProptestConfig, Strategy, any, prop};
use proptest::test_runner::FileFailurePersistence;
use proptest::{prop_assert, prop_assert_eq, proptest};
use ring::{Candidate, NodeId, Partitions, RackId, Token, fair_shares};

/// Up to 20 candidates in up to 6 racks.
fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec((0_u16..6, 1_u32..300), 1..20).prop_map(|nodes| {
        let candidate = |(id, (rack, weight))| Candidate { node: NodeId(id), rack: RackId(rack), weight };
        (0..).zip(nodes).map(candidate).collect()
    })
}

/// The sum of the shares of a rack, and how many nodes it has.
fn of_rack(candidates: &[Candidate], shares: &[f64], rack: RackId) -> (f64, usize) {
    let own = candidates.iter().zip(shares).filter(|(candidate, _)| candidate.rack == rack);
    own.fold((0.0, 0), |(sum, nodes), (_, share)| (sum + share, nodes + 1))
}

/// A failing case is printed, and kept in a file beside this one, from which every later run begins.
fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_token_lies_in_the_range_of_its_partition(token in any::<u64>(), bits in 0_u32..=16) {
        let partitions = Partitions::new(1 << bits).unwrap();
        let partition = partitions.of(Token(token));
        prop_assert!(u32::from(partition.0) < partitions.count());
        prop_assert!(partitions.range(partition).contains(&token));
    }

    #[test]
    fn shares_add_up_to_the_copies(candidates in candidates(), n in 1_usize..=7) {
        let shares = fair_shares(&candidates, n);
        prop_assert_eq!(shares.len(), candidates.len());
        prop_assert!((shares.iter().sum::<f64>() - n.min(candidates.len()) as f64).abs() < 1e-9);
        prop_assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
    }

    #[test]
    fn no_share_falls_as_copies_are_added(candidates in candidates(), n in 1_usize..7) {
        let (fewer, more) = (fair_shares(&candidates, n), fair_shares(&candidates, n + 1));
        prop_assert!(fewer.iter().zip(&more).all(|(fewer, more)| *more >= fewer - 1e-9));
    }

    /// What characterises water-filling: who has less for its weight than another is full, or its rack is, or the
    /// other's rack has no more than it must.
    #[test]
    fn no_share_could_be_fairer(candidates in candidates(), n in 1_usize..=7) {
        let shares = fair_shares(&candidates, n);
        let sizes: Vec<usize> = (0..6).map(|rack| of_rack(&candidates, &shares, RackId(rack)).1).collect();
        let room = |level: usize| sizes.iter().map(|size| *size.min(&level)).sum::<usize>();
        let level = (1..).find(|level| room(*level) >= n.min(candidates.len())).unwrap();
        for (poor, poor_share) in candidates.iter().zip(&shares) {
            for (rich, rich_share) in candidates.iter().zip(&shares) {
                let of_poor = poor_share / f64::from(poor.weight);
                let of_rich = rich_share / f64::from(rich.weight);
                if of_poor > of_rich - 1e-9 {
                    continue;
                }
                let (poor_rack, poor_size) = of_rack(&candidates, &shares, poor.rack);
                let (rich_rack, rich_size) = of_rack(&candidates, &shares, rich.rack);
                let is_full = *poor_share > 1.0 - 1e-6;
                let is_rack_full = poor_rack > poor_size.min(level) as f64 - 1e-6;
                let is_rack_owed = rich_rack < rich_size.min(level - 1) as f64 + 1e-6;
                let are_strangers = poor.rack != rich.rack;
                prop_assert!(is_full || (are_strangers && (is_rack_full || is_rack_owed)));
            }
        }
    }
}
